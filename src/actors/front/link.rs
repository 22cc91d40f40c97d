//! The two queues between a life and its worker, over a child's pipes or over channels.

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

/// Bytes asked of a pipe at once: what a Linux pipe holds.
const READ_BYTES: usize = 64 << 10;
/// Messages of a worker thread's channels: enough that neither side waits within one step of a full batch.
const CHANNEL: usize = 64;
/// A worker that is asked to end does so at its input's end; one that takes longer is killed.
const EXIT_TIME: Duration = Duration::from_secs(2);

/// Starts a worker for the model of this name.
pub(super) type Launch = Arc<dyn Fn(&str) -> io::Result<Link> + Send + Sync>;

pub(super) fn launch(config: &Config) -> Launch {
    let embedded = config.embedded;
    match config.isolation.clone() {
        Isolation::Thread => Arc::new(move |model| Link::thread(model, embedded)),
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
        /// `None` once the worker stopped reading; what it still says is heard.
        stdin: Option<ChildStdin>,
        stdout: ChildStdout,
        unread: BytesMut,
        /// Holds no more than the requests in hand: each is posted once and cancelled once.
        unwritten: BytesMut,
    },
    Channel {
        to: Option<mpsc::Sender<ToWorker>>,
        /// As `unwritten`.
        unsent: VecDeque<ToWorker>,
        from: mpsc::Receiver<FromWorker>,
    },
}

/// How a worker is parted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parting {
    /// Its input ends, so it ends; killed only if it does not.
    Close,
    /// Nothing more is wanted of it, and it has nothing to save: a process is killed, a thread waited for.
    Done,
    Kill,
}

impl Link {
    fn process(mut command: Command) -> io::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        // A terminal's Ctrl-C goes to the whole foreground group; what becomes of a worker is the front's to decide.
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
        let (to, mut inbox) = mpsc::channel(CHANNEL);
        let (outbox, from) = mpsc::channel(CHANNEL);
        let outbox = worker::Outbox::new(move |message| outbox.blocking_send(message).map_err(|_| worker::Gone));
        let inbox = iter::from_fn(move || inbox.blocking_recv());
        thread::Builder::new().name(format!("wire/{model}")).spawn(move || worker::run(inbox, outbox, embedded))?;
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

    /// Never waits: `receive` sends what could not go at once. Fails only for a message too long for a frame.
    pub(super) fn post(&mut self, message: ToWorker) -> Result<(), frame::Error> {
        match self {
            Self::Process { unwritten, .. } => unwritten.extend_from_slice(&frame::encode(&message)?),
            Self::Channel { unsent, .. } => unsent.push_back(message),
        }
        Ok(())
    }

    /// The worker's next message, `None` when it will say no more. Sends what was posted meanwhile; cancel-safe.
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
                    // Its last words may still be on the way, and then its end says why.
                    *stdin = None;
                }
            },
            Self::Channel { to, unsent, from } => loop {
                tokio::select! {
                    message = from.recv() => return Ok(message),
                    sent = hand_over(to, unsent), if to.is_some() && !unsent.is_empty() => if sent.is_none() {
                        *to = None;
                    },
                }
            },
        }
    }

    /// Ends the worker and says how it ended, in words.
    pub(super) async fn end(self, parting: Parting) -> String {
        match self {
            Self::Process { mut child, stdin, stdout, .. } => {
                drop((stdin, stdout));
                if parting == Parting::Close
                    && let Ok(status) = timeout(EXIT_TIME, child.wait()).await
                {
                    return told(status);
                }
                if let Err(error) = child.start_kill() {
                    return told(Err(error));
                }
                match timeout(EXIT_TIME, child.wait()).await {
                    Ok(status) => told(status),
                    Err(_) => "did not die when killed".into(),
                }
            }
            Self::Channel { to, mut from, .. } => {
                drop(to);
                let end = async { while from.recv().await.is_some() {} };
                // A thread can't be killed: one that is stuck is left behind, cut off.
                let ended = parting != Parting::Kill && timeout(EXIT_TIME, end).await.is_ok();
                if ended { "its thread ended" } else { "its thread was left behind" }.into()
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

async fn hand_over(to: &Option<mpsc::Sender<ToWorker>>, unsent: &mut VecDeque<ToWorker>) -> Option<()> {
    let place = to.as_ref()?.reserve().await.ok()?;
    if let Some(message) = unsent.pop_front() {
        place.send(message);
    }
    Some(())
}

fn told(status: io::Result<ExitStatus>) -> String {
    let status = match status {
        Ok(status) => status,
        Err(error) => return format!("could not be waited for: {error}"),
    };
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return format!("killed by signal {signal}");
    }
    match status.code() {
        Some(code) => format!("exited with status {code}"),
        None => "ended in an unknown way".into(),
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
    async fn a_process_that_ends_is_told_by_its_status_or_signal() {
        for (script, words) in [("exit 3", "exited with status 3"), ("kill -9 $$", "killed by signal 9")] {
            let mut link = shell(script);
            link.post(ToWorker::Cancel { id: 1 }).unwrap();
            assert!(link.receive().await.unwrap().is_none());
            assert_eq!(link.end(Parting::Close).await, words);
        }
        assert_eq!(shell("cat").end(Parting::Close).await, "exited with status 0");
        assert_eq!(shell("exec sleep 600").end(Parting::Kill).await, "killed by signal 9");
    }

    #[tokio::test]
    async fn a_long_message_is_written_while_waiting_for_the_next_one() {
        let long = ToWorker::Ask { id: 1, question: Question::Tokenize("a".repeat(1 << 20)) };
        let bytes = frame::encode(&long).unwrap().len();
        let hello = |wire: u8| format!("printf '\\002\\000\\000\\000\\000\\00{wire}'");
        let mut link = shell(&format!("{}; head -c {bytes} >/dev/null; {}; cat >/dev/null", hello(1), hello(2)));
        assert_eq!(link.receive().await.unwrap(), Some(FromWorker::Hello { wire: 1 }));
        link.post(long).unwrap();
        assert_eq!(link.receive().await.unwrap(), Some(FromWorker::Hello { wire: 2 }));
        assert_eq!(link.end(Parting::Close).await, "exited with status 0");
    }

    #[tokio::test]
    async fn what_is_no_frame_is_an_error_before_it_is_memory() {
        let mut link = shell(r"printf '\377\377\377\377'; cat >/dev/null");
        assert!(matches!(link.receive().await, Err(frame::Error::TooLong { .. })));
        link.end(Parting::Kill).await;
    }

    #[tokio::test]
    async fn a_worker_that_stopped_reading_is_heard_to_its_end() {
        let mut link = shell(r"exec <&-; printf '\002\000\000\000\000\001'");
        link.post(ToWorker::Ask { id: 1, question: Question::Tokenize("a".repeat(1 << 20)) }).unwrap();
        assert_eq!(link.receive().await.unwrap(), Some(FromWorker::Hello { wire: 1 }));
        assert!(link.receive().await.unwrap().is_none());
        assert_eq!(link.end(Parting::Close).await, "exited with status 0");
    }
}
