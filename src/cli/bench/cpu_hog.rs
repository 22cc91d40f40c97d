//! A process that keeps one processor busy, as a compiler does.

use std::process::{Child, Command, ExitCode};
use std::time::Duration;

/// Until a neighbour has begun to be one.
const SETTLING: Duration = Duration::from_millis(100);

/// Gone when dropped, or when this process is.
pub(super) struct CpuHog(Child);

impl CpuHog {
    pub(super) fn start() -> anyhow::Result<Self> {
        let mut command = Command::new(crate::cli::program()?);
        let child = command.args(["bench", "--cpu-hog", &std::process::id().to_string()]).spawn()?;
        std::thread::sleep(SETTLING);
        Ok(Self(child))
    }
}

impl Drop for CpuHog {
    fn drop(&mut self) {
        // It may have ended by itself. Waiting for it makes its time ours, so that it does not count as others' load.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What that process does: turns on one processor for as long as `parent` is its parent. No second thread waits for
/// that, because it might never run beside this one.
pub(super) fn spin(parent: u32) -> anyhow::Result<ExitCode> {
    pin()?;
    while rustix::process::getppid().is_some_and(|pid| pid.as_raw_pid().cast_unsigned() == parent) {
        (0..1_000_000).for_each(|_| std::hint::spin_loop());
    }
    Ok(ExitCode::SUCCESS)
}

/// To the first processor this process may use.
#[cfg(target_os = "linux")]
fn pin() -> anyhow::Result<()> {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let may = sched_getaffinity(None)?;
    let mut one = CpuSet::new();
    one.set((0..CpuSet::MAX_CPU).find(|&processor| may.is_set(processor)).expect("this one runs on one"));
    Ok(sched_setaffinity(None, &one)?)
}

/// Other systems place it themselves.
#[cfg(not(target_os = "linux"))]
fn pin() -> anyhow::Result<()> {
    Ok(())
}
