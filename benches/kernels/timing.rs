//! Times one routine: warm-up, samples of many calls each, and the median time of a call.

use std::time::{Duration, Instant};

const WARM_UP: Duration = Duration::from_millis(200);
const SAMPLE: Duration = Duration::from_millis(30);
const SAMPLES: usize = 20;

/// Runs the routines whose names contain every word of the command line.
pub(crate) struct Timing {
    filters: Vec<String>,
}

impl Timing {
    /// Cargo itself passes `--bench`.
    pub(crate) fn from_arguments() -> Self {
        Self { filters: std::env::args().skip(1).filter(|argument| argument != "--bench").collect() }
    }

    /// Prints the time of a call and the throughput; `elements` is the work of one call.
    pub(crate) fn measure(&self, name: &str, elements: usize, mut routine: impl FnMut()) {
        // One pair of clock reads per sample, not per call: some routines take less than a microsecond.
        self.report(name, elements, |calls| {
            let start = Instant::now();
            (0..calls).for_each(|_| routine());
            start.elapsed()
        });
    }

    /// As `measure`, for a routine that changes its input: each call gets a new one. Making it is not timed.
    pub(crate) fn measure_with_setup<T>(&self, name: &str, elements: usize, setup: impl Fn() -> T, mut routine: impl FnMut(&mut T)) {
        self.report(name, elements, |calls| {
            let mut time = Duration::ZERO;
            for _ in 0..calls {
                let mut input = setup();
                let start = Instant::now();
                routine(&mut input);
                time += start.elapsed();
            }
            time
        });
    }

    /// `sample` returns the time of that many calls.
    fn report(&self, name: &str, elements: usize, mut sample: impl FnMut(usize) -> Duration) {
        if !self.filters.iter().all(|filter| name.contains(filter.as_str())) {
            return;
        }
        let (mut calls, mut warm_up) = (1, Duration::ZERO);
        let estimate = loop {
            let time = sample(calls);
            warm_up += time;
            if warm_up >= WARM_UP {
                break time.as_secs_f64() / calls as f64;
            }
            if time < SAMPLE {
                calls *= 2;
            }
        };
        let calls = ((SAMPLE.as_secs_f64() / estimate) as usize).max(1);
        let mut micros: Vec<f64> = (0..SAMPLES).map(|_| sample(calls).as_secs_f64() * 1e6 / calls as f64).collect();
        micros.sort_by(f64::total_cmp);
        let (least, median, most) = (micros[0], micros[SAMPLES / 2], micros[SAMPLES - 1]);
        println!("{name:<56} {median:>10.2} µs ({least:.2} to {most:.2}) {:>8.2} G elements/s", elements as f64 / median / 1e3);
    }
}
