//! The process that `initialize` named: when it is gone, nobody is left to speak to.

use rustix::process::{Pid, test_kill_process};
use std::{thread, time::Duration};
use tokio::sync::oneshot;

/// How often we look where no event tells it.
const PERIOD: Duration = Duration::from_secs(1);

pub(super) async fn gone(parent: Pid) {
    let (tell, told) = oneshot::channel::<()>();
    // It waits without waking anybody, and ends with us at the latest.
    let wait = move || {
        if wait(parent) {
            let _ = tell.send(());
        }
    };
    if thread::Builder::new().name("parent".into()).spawn(wait).is_ok() && told.await.is_ok() {
        return;
    }
    while exists(parent) {
        tokio::time::sleep(PERIOD).await;
    }
}

/// Also when it has ended and its own parent has not asked how.
pub(super) fn exists(process: Pid) -> bool {
    test_kill_process(process) != Err(rustix::io::Errno::SRCH)
}

/// Blocks until the process has ended; false where that can't be waited for: on another system, an old kernel, in a sandbox.
#[cfg(target_os = "linux")]
fn wait(process: Pid) -> bool {
    use rustix::{
        event::{PollFd, PollFlags, poll},
        io::Errno,
        process::{PidfdFlags, pidfd_open},
    };
    let Ok(descriptor) = pidfd_open(process, PidfdFlags::empty()) else { return false };
    loop {
        match poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], None) {
            Err(Errno::INTR) => {}
            ended => return ended.is_ok(),
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn wait(_: Pid) -> bool {
    false
}
