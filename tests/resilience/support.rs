//! A random number generator, process helpers, and numbers from the environment.

use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// A wait that takes longer is a hang.
pub(crate) const HANG: Duration = Duration::from_secs(60);

/// These tests measure time, so only one of them runs at a time.
pub(crate) fn exclusive() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number in an environment variable, to make a test longer than its default or to repeat a run.
pub(crate) fn number_from_env(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// SplitMix64.
#[derive(Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    /// Seeded by the clock, or by `SOUFFLEUR_SEED` to repeat a run.
    pub(crate) fn new() -> Self {
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as usize;
        let seed = number_from_env("SOUFFLEUR_SEED", seed);
        eprintln!("SOUFFLEUR_SEED={seed}");
        Self(seed as u64)
    }

    /// A number in `0..end`, or 0 if `end` is 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end.max(1) as u64) as usize
    }
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).expect("a process id"), signal).expect("the process exists");
}

impl From<u64> for Rng {
    fn from(seed: u64) -> Self {
        Self(seed)
    }
}

/// A field of `/proc/PID/status`, in the unit used there. `None` if the process has exited; a zombie has no memory fields.
pub(crate) fn status(pid: u32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Whether the process still runs. A zombie does not.
pub(crate) fn is_running(pid: u32) -> bool {
    status(pid, "VmRSS").is_some()
}

/// Waits for a process to exit, which must happen within `limit` after `since`.
#[track_caller]
pub(crate) fn exits_within(pid: u32, since: Instant, limit: Duration) {
    while is_running(pid) {
        assert!(since.elapsed() < limit, "process {pid} still runs after {:?}", since.elapsed());
        thread::sleep(Duration::from_millis(2));
    }
}

/// Minimum, median, 99th percentile and maximum: NaN if there are no samples.
pub(crate) fn summary(mut samples: Vec<f64>) -> [f64; 4] {
    samples.sort_by(f64::total_cmp);
    let at = |share: f64| samples.get((samples.len().saturating_sub(1) as f64 * share).round() as usize).copied().unwrap_or(f64::NAN);
    [at(0.0), at(0.5), at(0.99), at(1.0)]
}
