//! A process that keeps one processor busy, as a compiler does.

use std::process::{Child, Command, ExitCode};
use std::time::Duration;

/// Time for the process to start spinning.
const START_TIME: Duration = Duration::from_millis(100);

/// Killed when dropped. Ends by itself when this process ends.
pub(super) struct CpuHog(Child);

impl CpuHog {
    pub(super) fn start() -> anyhow::Result<Self> {
        let mut command = Command::new(crate::cli::program()?);
        let child = command.args(["bench", "--cpu-hog", &std::process::id().to_string()]).spawn()?;
        std::thread::sleep(START_TIME);
        Ok(Self(child))
    }
}

impl Drop for CpuHog {
    fn drop(&mut self) {
        // After the wait its time counts as our own, not as other load.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Spins on one processor while `parent` is the parent process. Polls for that, because a second thread on the same
/// processor might never run.
pub(super) fn spin(parent: u32) -> anyhow::Result<ExitCode> {
    pin()?;
    while rustix::process::getppid().is_some_and(|pid| pid.as_raw_pid().cast_unsigned() == parent) {
        (0..1_000_000).for_each(|_| std::hint::spin_loop());
    }
    Ok(ExitCode::SUCCESS)
}

/// Pins this process to the first processor available to it.
#[cfg(target_os = "linux")]
fn pin() -> anyhow::Result<()> {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let may = sched_getaffinity(None)?;
    let mut one = CpuSet::new();
    one.set((0..CpuSet::MAX_CPU).find(|&processor| may.is_set(processor)).expect("this process runs on one"));
    Ok(sched_setaffinity(None, &one)?)
}

/// Other systems can't pin a process.
#[cfg(not(target_os = "linux"))]
fn pin() -> anyhow::Result<()> {
    Ok(())
}
