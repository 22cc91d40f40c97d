//! Dice, processes, and how often to do what.

use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// What only a hang takes.
pub(crate) const HANG: Duration = Duration::from_secs(60);

/// These tests are about time as well, so each has the machine to itself.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A count from the environment: the full runs take minutes.
pub(crate) fn count(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// SplitMix64.
#[derive(Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    /// Every run is another one, and can be had again.
    pub(crate) fn new() -> Self {
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as usize;
        let seed = count("SOUFFLEUR_SEED", seed);
        eprintln!("SOUFFLEUR_SEED={seed}");
        Self(seed as u64)
    }

    /// From 0, below `sides`.
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides.max(1) as u64) as usize
    }
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).expect("a process"), signal).expect("it lives");
}

impl From<u64> for Dice {
    fn from(seed: u64) -> Self {
        Self(seed)
    }
}

/// A field of `/proc/PID/status`, in its own unit; `None` when the process is gone or a zombie, which has no memory.
pub(crate) fn status(pid: u32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Whether it still runs: what its parent has not yet fetched has ended.
pub(crate) fn runs(pid: u32) -> bool {
    status(pid, "VmRSS").is_some()
}

/// Waits for a process's end, which must come this soon after `since`.
#[track_caller]
pub(crate) fn ended_within(pid: u32, since: Instant, limit: Duration) {
    while runs(pid) {
        assert!(since.elapsed() < limit, "process {pid} still runs after {:?}", since.elapsed());
        thread::sleep(Duration::from_millis(2));
    }
}

/// The sorted samples' least, median, 99th of a hundred, and largest.
pub(crate) fn spread(mut samples: Vec<f64>) -> [f64; 4] {
    samples.sort_by(f64::total_cmp);
    let at = |share: f64| samples.get(((samples.len() - 1) as f64 * share).round() as usize).copied().unwrap_or(f64::NAN);
    [at(0.0), at(0.5), at(0.99), at(1.0)]
}
