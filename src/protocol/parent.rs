//! Waits for the exit of the process that `initialize` names, usually the editor.

use rustix::process::{Pid, test_kill_process};
use std::{thread, time::Duration};
use tokio::sync::oneshot;

/// Polling period where the system can't notify.
const POLL_PERIOD: Duration = Duration::from_secs(1);

pub(super) async fn exited(parent: Pid) {
    let (sender, receiver) = oneshot::channel::<()>();
    // The thread blocks without wake-ups, until the parent or this process exits.
    let wait = move || {
        if wait(parent) {
            let _ = sender.send(());
        }
    };
    if thread::Builder::new().name("parent".into()).spawn(wait).is_ok() && receiver.await.is_ok() {
        return;
    }
    while exists(parent) {
        tokio::time::sleep(POLL_PERIOD).await;
    }
}

/// True for a zombie, too.
pub(super) fn exists(process: Pid) -> bool {
    test_kill_process(process) != Err(rustix::io::Errno::SRCH)
}

/// Blocks until the process has exited. False where that is not possible: other systems, old kernels, sandboxes.
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
            result => return result.is_ok(),
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn wait(_: Pid) -> bool {
    false
}
