//! A process that keeps one processor busy, as a compiler does.

use std::io::Read as _;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Until a neighbour has begun to be one.
const SETTLING: Duration = Duration::from_millis(100);

/// Gone when dropped, or when this process is.
pub(super) struct Neighbour(Child);

impl Neighbour {
    pub(super) fn start() -> anyhow::Result<Self> {
        let mut command = Command::new(crate::cli::program()?);
        let child = command.args(["bench", "--neighbour"]).stdin(Stdio::piped()).spawn()?;
        std::thread::sleep(SETTLING);
        Ok(Self(child))
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        // It may have ended by itself. Waiting for it makes its time ours, so that it does not count as others' load.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What that process does: turns on one processor until its input ends.
pub(super) fn be_one() -> anyhow::Result<ExitCode> {
    // Before any thread starts, so that all of them have it.
    pin()?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = std::io::stdin().read(&mut [0]);
            over.store(true, Ordering::Relaxed);
        });
        while !over.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
    });
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
