//! The connection to a worker: pipes to a child process, or channels to a thread.

use crate::actors::{FromWorker, ToWorker, frame, worker};
use crate::config::{Config, Isolation};
use crate::failpoints::{self, Point};
use crate::models::Embedded;
use bytes::BytesMut;
use std::{
    collections::VecDeque,
    io, iter,
    process::{ExitStatus, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::mpsc,
    time::timeout,
};

/// Bytes reserved for a read: the default capacity of a Linux pipe.
const READ_BYTES: usize = 64 << 10;
/// Messages in a worker thread's channel: enough that neither side waits within one step of a full batch.
const CHANNEL_CAPACITY: usize = 64;
/// How long a worker may take to exit after its stdin was closed, or after it was killed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);

/// Starts a worker for the model of this name.
pub(super) type WorkerLauncher = Arc<dyn Fn(&str) -> io::Result<Link> + Send + Sync>;

pub(super) fn worker_launcher(config: &Config) -> WorkerLauncher {
    match config.isolation.clone() {
        Isolation::Thread { embedded } => Arc::new(move |model| Link::thread(model, embedded)),
        Isolation::Process { program, arguments } => Arc::new(move |_| {
            let mut worker = Command::new(&program);
            worker.args(&arguments).arg("worker");
            Link::process(worker)
        }),
    }
}

pub(super) enum Link {
    Process {
        child: Box<Child>,
        /// `None` once the worker has closed it. Its stdout is still read to the end.
        stdin: Option<ChildStdin>,
        stdout: ChildStdout,
        unread: BytesMut,
        /// Bounded by the requests in flight: each is posted once and cancelled at most once.
        unwritten: BytesMut,
    },
    Channel {
        to: Option<mpsc::Sender<ToWorker>>,
        /// Bounded like `unwritten`.
        unsent: VecDeque<ToWorker>,
        from: mpsc::Receiver<FromWorker>,
    },
}

/// How a worker is shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shutdown {
    /// Closes the worker's input and waits for it to exit; kills it after a timeout.
    Graceful,
    /// For a worker with nothing to save: kills a process, waits for a thread.
    Immediate,
    /// Kills a process, detaches a thread.
    Kill,
}

impl Link {
    fn process(mut command: Command) -> io::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        // A terminal sends Ctrl-C to the whole foreground process group; only this process should decide when a worker ends.
        #[cfg(unix)]
        command.process_group(0);
        failpoints::check(Point::FrontSpawn, None)?;
        let mut child = command.spawn()?;
        failpoints::check(Point::FrontSpawned, None)?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("piped above");
        Ok(Self::Process { child: Box::new(child), stdin, stdout, unread: BytesMut::new(), unwritten: BytesMut::new() })
    }

    fn thread(model: &str, embedded: Option<Embedded>) -> io::Result<Self> {
        let (to, mut inbox) = mpsc::channel(CHANNEL_CAPACITY);
        let (outbox, from) = mpsc::channel(CHANNEL_CAPACITY);
        let outbox = worker::Outbox::new(move |message| outbox.blocking_send(message).map_err(|_| worker::Disconnected));
        let inbox = iter::from_fn(move || inbox.blocking_recv());
        thread::Builder::new().name(format!("receiver/{model}")).spawn(move || worker::run(inbox, outbox, embedded))?;
        Ok(Self::channel(to, from))
    }

    pub(super) fn channel(to: mpsc::Sender<ToWorker>, from: mpsc::Receiver<FromWorker>) -> Self {
        Self::Channel { to: Some(to), unsent: VecDeque::new(), from }
    }

    pub(super) fn pid(&self) -> Option<u32> {
        match self {
            Self::Process { child, .. } => child.id(),
            Self::Channel { .. } => None,
        }
    }

    /// Queues a message; `receive` does the sending. Fails only for a message that exceeds the frame limit.
    pub(super) fn post(&mut self, message: ToWorker) -> Result<(), frame::Error> {
        match self {
            Self::Process { unwritten, .. } => unwritten.extend_from_slice(&frame::encode(&message)?),
            Self::Channel { unsent, .. } => unsent.push_back(message),
        }
        Ok(())
    }

    /// Waits for the worker's next message, and sends posted messages meanwhile. `None` after the last one. Cancel-safe.
    pub(super) async fn receive(&mut self) -> Result<Option<FromWorker>, frame::Error> {
        match self {
            Self::Process { stdin, stdout, unread, unwritten, .. } => loop {
                if let Some(message) = frame::split(unread)? {
                    failpoints::check(Point::FrontReadAfter, None)?;
                    return Ok(Some(message));
                }
                failpoints::check(Point::FrontReadBefore, None)?;
                unread.reserve(READ_BYTES);
                let sent = tokio::select! {
                    read = stdout.read_buf(unread) => {
                        if read? == 0 {
                            return Ok(None);
                        }
                        continue;
                    }
                    sent = write(stdin, unwritten), if stdin.is_some() && !unwritten.is_empty() => sent,
                };
                if sent.is_err() {
                    // The worker may have sent its last messages already; keep reading to learn why it ended.
                    *stdin = None;
                }
            },
            Self::Channel { to, unsent, from } => loop {
                tokio::select! {
                    message = from.recv() => return Ok(message),
                    sent = forward(to, unsent), if to.is_some() && !unsent.is_empty() => if sent.is_none() {
                        *to = None;
                    },
                }
            },
        }
    }

    /// Ends the worker and describes how it ended.
    pub(super) async fn end(self, shutdown: Shutdown) -> String {
        match self {
            Self::Process { mut child, stdin, stdout, .. } => {
                drop((stdin, stdout));
                if shutdown == Shutdown::Graceful
                    && let Ok(status) = timeout(EXIT_TIMEOUT, child.wait()).await
                {
                    return describe_exit(status);
                }
                if let Err(error) = child.start_kill() {
                    return describe_exit(Err(error));
                }
                match timeout(EXIT_TIMEOUT, child.wait()).await {
                    Ok(status) => describe_exit(status),
                    Err(_) => "did not exit after it was killed".into(),
                }
            }
            Self::Channel { to, mut from, .. } => {
                drop(to);
                let end = async { while from.recv().await.is_some() {} };
                // A thread can't be killed, so a stuck one is detached.
                let ended = shutdown != Shutdown::Kill && timeout(EXIT_TIMEOUT, end).await.is_ok();
                if ended { "its thread ended" } else { "its thread was detached" }.into()
            }
        }
    }
}

async fn write(stdin: &mut Option<ChildStdin>, unwritten: &mut BytesMut) -> io::Result<()> {
    let Some(stdin) = stdin else { return Ok(()) };
    if let Err(fault) = failpoints::check(Point::FrontWriteBefore, None) {
        if fault.kind() == io::ErrorKind::WriteZero {
            stdin.write_all(&unwritten[..unwritten.len() / 2]).await?;
        }
        return Err(fault);
    }
    stdin.write_buf(unwritten).await?;
    failpoints::check(Point::FrontWriteAfter, None)
}

async fn forward(to: &Option<mpsc::Sender<ToWorker>>, unsent: &mut VecDeque<ToWorker>) -> Option<()> {
    let slot = to.as_ref()?.reserve().await.ok()?;
    if let Some(message) = unsent.pop_front() {
        slot.send(message);
    }
    Some(())
}

fn describe_exit(status: io::Result<ExitStatus>) -> String {
    let status = match status {
        Ok(status) => status,
        Err(error) => return format!("exit status unknown: {error}"),
    };
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return format!("killed by signal {signal}");
    }
    match status.code() {
        Some(code) => format!("exited with status {code}"),
        None => "exit status unknown".into(),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::actors::Question;

    fn shell(script: &str) -> Link {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]);
        Link::process(shell).unwrap()
    }

    #[tokio::test]
    async fn exit_status_or_signal_describes_an_ended_process() {
        for (script, description) in [("exit 3", "exited with status 3"), ("kill -9 $$", "killed by signal 9")] {
            let mut link = shell(script);
            link.post(ToWorker::Cancel { id: 1 }).unwrap();
            assert!(link.receive().await.unwrap().is_none());
            assert_eq!(link.end(Shutdown::Graceful).await, description);
        }
        assert_eq!(shell("cat").end(Shutdown::Graceful).await, "exited with status 0");
        assert_eq!(shell("exec sleep 600").end(Shutdown::Kill).await, "killed by signal 9");
    }

    #[tokio::test]
    async fn a_long_message_is_written_while_receiving() {
        let long = ToWorker::Ask { id: 1, question: Question::Tokenize("a".repeat(1 << 20)) };
        let bytes = frame::encode(&long).unwrap().len();
        let hello = |version: u8| format!("printf '\\002\\000\\000\\000\\000\\00{version}'");
        let mut link = shell(&format!("{}; head -c {bytes} >/dev/null; {}; cat >/dev/null", hello(1), hello(2)));
        assert_eq!(link.receive().await.unwrap(), Some(FromWorker::Hello { version: 1 }));
        link.post(long).unwrap();
        assert_eq!(link.receive().await.unwrap(), Some(FromWorker::Hello { version: 2 }));
        assert_eq!(link.end(Shutdown::Graceful).await, "exited with status 0");
    }

    #[tokio::test]
    async fn an_oversized_frame_is_refused_before_allocation() {
        let mut link = shell(r"printf '\377\377\377\377'; cat >/dev/null");
        assert!(matches!(link.receive().await, Err(frame::Error::TooLong { .. })));
        link.end(Shutdown::Kill).await;
    }

    #[tokio::test]
    async fn a_worker_that_closed_its_stdin_is_read_to_its_end() {
        let mut link = shell(r"exec <&-; printf '\002\000\000\000\000\001'");
        link.post(ToWorker::Ask { id: 1, question: Question::Tokenize("a".repeat(1 << 20)) }).unwrap();
        assert_eq!(link.receive().await.unwrap(), Some(FromWorker::Hello { version: 1 }));
        assert!(link.receive().await.unwrap().is_none());
        assert_eq!(link.end(Shutdown::Graceful).await, "exited with status 0");
    }
}
