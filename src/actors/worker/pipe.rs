//! A worker process: reads frames from stdin and writes frames to a private copy of stdout.

use super::messages::{Disconnected, Outbox};
use super::threads::{panic_message, run};
use crate::actors::{FromWorker, ModelError, ToWorker, frame};
use crate::failpoints::{self, Point};
use crate::models::Embedded;
use std::{
    fs::File,
    io::{self, BufReader, Read, Write},
    iter,
    os::fd::AsFd,
    panic, process,
    sync::{Mutex, PoisonError},
    thread,
};

/// Runs a worker in this process until its stdin ends, which happens when the front closes it or exits.
pub fn over_pipe(embedded: Option<Embedded>) -> ! {
    failpoints::at(Point::WorkerStart, None);
    let (stdin, stdout) = match private_descriptors() {
        Ok(files) => files,
        Err(error) => {
            tracing::error!(%error, "a worker needs stdin and stdout");
            process::exit(1)
        }
    };
    let inbox = frames(BufReader::new(stdin), |code| process::exit(code));
    run(inbox, outbox(stdout, |code| process::exit(code)), embedded);
    unreachable!("the inbox ends with the process")
}

/// Redirects stdout to stderr, so that a stray print can't break the framing.
fn private_descriptors() -> io::Result<(File, File)> {
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    let stdout = io::stdout().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    Ok((stdin.into(), stdout.into()))
}

/// Iterates over frames. At the end of the input it calls `end` with the exit status of the process.
fn frames(mut input: impl Read, end: impl Fn(i32)) -> impl Iterator<Item = ToWorker> {
    iter::from_fn(move || match read(&mut input) {
        Ok(Some(message)) => Some(message),
        Ok(None) => {
            end(0);
            None
        }
        Err(error) => {
            tracing::error!(%error, "invalid frame on stdin");
            end(1);
            None
        }
    })
}

fn read(input: &mut impl Read) -> Result<Option<ToWorker>, frame::Error> {
    failpoints::check(Point::WorkerReadBefore, None)?;
    let message = frame::read(input)?;
    failpoints::check(Point::WorkerReadAfter, None)?;
    Ok(message)
}

/// Writes each message as one frame under a lock. A failed write calls `end` with the exit status of the process: part of the
/// frame may be written, and the reader would take the next frame for its rest.
fn outbox(output: impl Write + Send + 'static, end: impl Fn(i32) + Send + Sync + 'static) -> Outbox {
    let output = Mutex::new(output);
    Outbox::new(move |message: FromWorker| {
        let frame = frame::encode(&message).or_else(|error| match message {
            // The text of many tokens can exceed the frame limit, and the question still needs an answer.
            FromWorker::Answer { id, .. } => {
                let error = ModelError::Unsupported(format!("the answer is too long: {error}"));
                frame::encode(&FromWorker::Answer { id, answer: Err(error.into()) })
            }
            _ => Err(error),
        });
        let frame = frame.map_err(|error| {
            tracing::error!(%error, "message can't be encoded");
            end(1);
            Disconnected
        })?;
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        write(&mut *output, &frame).map_err(|_| {
            end(1);
            Disconnected
        })
    })
}

fn write(output: &mut impl Write, frame: &[u8]) -> io::Result<()> {
    failpoints::write(Point::WorkerWriteBefore, output, frame)?;
    output.write_all(frame).and_then(|()| output.flush())?;
    failpoints::check(Point::WorkerWriteAfter, None)
}

/// Installs a panic hook for the process that omits formatted messages, which may quote a prompt. The default hook prints them.
pub fn log_panics_without_payload() {
    panic::set_hook(Box::new(|info| {
        let thread = thread::current();
        let (name, message) = (thread.name().unwrap_or("a thread"), panic_message(info.payload()));
        let location = info.location().map(|location| format!(" at {location}")).unwrap_or_default();
        tracing::error!("{name} panicked{location}{message}");
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::Answer;
    use std::{cell::Cell, io::pipe, sync::mpsc::sync_channel};

    #[test]
    fn frames_end_with_their_input_and_the_exit_status_reports_whether_it_was_valid() {
        let mut input = frame::encode(&ToWorker::Ping { id: 1 }).unwrap();
        let status = Cell::new(None);
        assert_eq!(frames(&input[..], |code| status.set(Some(code))).collect::<Vec<_>>(), [ToWorker::Ping { id: 1 }]);
        assert_eq!(status.get(), Some(0));
        input.extend_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(frames(&input[..], |code| status.set(Some(code))).count(), 1);
        assert_eq!(status.get(), Some(1));
    }

    #[test]
    fn an_outbox_writes_whole_frames_from_many_threads_and_detects_a_closed_reader() {
        let (mut reader, writer) = pipe().unwrap();
        let (ended, status) = sync_channel(1);
        let outbox = outbox(writer, move |code| ended.send(code).unwrap());
        thread::scope(|scope| {
            for id in 0..4 {
                let outbox = outbox.clone();
                // Longer than the pipe's capacity, so that writers block in the middle of a frame.
                scope.spawn(move || outbox.send(FromWorker::Broken { cause: id.to_string().repeat(200_000) }));
            }
            for _ in 0..4 {
                let Ok(Some(FromWorker::Broken { cause })) = frame::read(&mut reader) else { panic!("four frames were written") };
                assert!(cause.len() == 200_000 && cause.bytes().all(|byte| byte == cause.as_bytes()[0]));
            }
        });
        let long = Answer::Text("a".repeat(frame::FRAME_BYTES));
        assert_eq!(outbox.send(FromWorker::Answer { id: 7, answer: Ok(long) }), Ok(()));
        let Ok(Some(FromWorker::Answer { id: 7, answer: Err(error) })) = frame::read(&mut reader) else { panic!("no answer") };
        assert!(error.to_string().starts_with("the answer is too long"), "{error}");
        drop(reader);
        assert!(status.try_recv().is_err());
        assert_eq!(outbox.send(FromWorker::Hello { version: 1 }), Err(Disconnected));
        assert_eq!(status.try_recv(), Ok(1));
    }
}
