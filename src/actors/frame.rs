//! Frames on the pipe between front and worker: a length in bytes, then that many bytes of postcard.

use bytes::{Buf, BytesMut};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, Read};

/// The largest frame. A request has at most a few MiB of text, its replay at most 16,384 tokens with 20 alternatives each
/// (under 4 MiB), and the tokens of a 2 MiB text take at most 10 MiB. A greater length means a corrupt stream.
pub(super) const FRAME_BYTES: usize = 32 << 20;

/// Size of the length prefix: a `u32`, little-endian.
const PREFIX_BYTES: usize = size_of::<u32>();

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("frame of {bytes} bytes exceeds the limit of {FRAME_BYTES}")]
    TooLong { bytes: u64 },
    #[error("frame can't be decoded: {0}")]
    Malformed(#[from] postcard::Error),
    #[error("frame has {0} bytes after its message")]
    Trailing(usize),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Encodes one frame.
pub(super) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    let mut frame = postcard::to_extend(message, vec![0; PREFIX_BYTES])?;
    let bytes = frame.len() - PREFIX_BYTES;
    if bytes > FRAME_BYTES {
        return Err(Error::TooLong { bytes: bytes as u64 });
    }
    frame[..PREFIX_BYTES].copy_from_slice(&(bytes as u32).to_le_bytes());
    Ok(frame)
}

/// Removes the first frame from a buffer; `None` while it is incomplete. Reserves no memory for the announced length.
pub(super) fn split<T: DeserializeOwned>(buffer: &mut BytesMut) -> Result<Option<T>, Error> {
    let Some(prefix) = buffer.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
    let bytes = length(*prefix)?;
    if buffer.len() < PREFIX_BYTES + bytes {
        return Ok(None);
    }
    buffer.advance(PREFIX_BYTES);
    decode(&buffer.split_to(bytes)).map(Some)
}

/// Reads one frame; `None` at the end of the input, also in the middle of a frame, because its writer has ended then.
pub(super) fn read<T: DeserializeOwned>(input: &mut impl Read) -> Result<Option<T>, Error> {
    let mut prefix = [0; PREFIX_BYTES];
    if !is_complete(input.read_exact(&mut prefix))? {
        return Ok(None);
    }
    let mut body = vec![0; length(prefix)?];
    if !is_complete(input.read_exact(&mut body))? {
        return Ok(None);
    }
    decode(&body).map(Some)
}

fn length(prefix: [u8; PREFIX_BYTES]) -> Result<usize, Error> {
    let bytes = u32::from_le_bytes(prefix);
    if bytes as usize > FRAME_BYTES { Err(Error::TooLong { bytes: bytes.into() }) } else { Ok(bytes as usize) }
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    let (message, rest) = postcard::take_from_bytes(body)?;
    if rest.is_empty() { Ok(message) } else { Err(Error::Trailing(rest.len())) }
}

fn is_complete(read: io::Result<()>) -> io::Result<bool> {
    match read {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::{
        Answer, DecoderStatus, End, Error as Failure, File, FinishReason, FromWorker, ModelSource, Prompt, PrompterActivity, Question,
        Rendered, Replay, Request, Sampled, Sampling, Settings, Step, ToWorker, Usage, front::tests::fake_worker,
    };
    use std::fmt::Debug;

    fn round_trip<T: Serialize + DeserializeOwned + PartialEq + Debug>(messages: Vec<T>) {
        let mut pipe = BytesMut::new();
        for message in &messages {
            pipe.extend_from_slice(&encode(message).unwrap());
        }
        let mut blocking = &pipe.to_vec()[..];
        for message in messages {
            assert_eq!(split::<T>(&mut pipe).unwrap().as_ref(), Some(&message));
            assert_eq!(read::<T>(&mut blocking).unwrap(), Some(message));
        }
        assert!(split::<T>(&mut pipe).unwrap().is_none() && read::<T>(&mut blocking).unwrap().is_none());
    }

    fn request() -> Request {
        Request {
            model: "m".into(),
            prompt: Prompt::Infill {
                prefix: "fn main() {".into(),
                suffix: "}".into(),
                path: Some("src/main.rs".into()),
                repository: None,
                files: vec![File { path: "a".into(), text: "b".into() }],
                order: None,
            },
            sampling: Sampling { logit_bias: vec![(3, -1.5)], seed: u64::MAX, ..Sampling::default() },
            stop: vec!["\n\n".into()],
            tokens_max: 9,
            logprobs: Some(2),
        }
    }

    fn sampled() -> Sampled {
        Sampled { token: 7, logprob: -0.5, top: vec![(7, -0.5), (8, f32::NEG_INFINITY)] }
    }

    #[test]
    fn every_message_to_a_worker_survives_a_round_trip() {
        let questions = [
            Question::Tokenize("a".into()),
            Question::Detokenize(vec![1, 2]),
            Question::Render(Prompt::Text("é".into())),
            Question::Render(Prompt::Chat { messages: Vec::new(), language: Some("rust".into()) }),
        ];
        let replay = Replay { tokens: vec![sampled()], delivered_bytes: 4 };
        let mut messages = vec![
            ToWorker::Load { source: ModelSource::Embedded, settings: Settings::default() },
            ToWorker::Load { source: ModelSource::Folder("models/a".into()), settings: Settings::default() },
            ToWorker::Load { source: ModelSource::File("models/b.gguf".into()), settings: Settings::default() },
            ToWorker::Inspect { source: ModelSource::Embedded, settings: Settings::default() },
            ToWorker::Generate { id: 1, request: request(), replay },
            ToWorker::Cancel { id: u64::MAX },
            ToWorker::Ping { id: 0 },
        ];
        messages.extend(questions.into_iter().map(|question| ToWorker::Ask { id: 5, question }));
        round_trip(messages);
    }

    #[test]
    fn every_message_from_a_worker_survives_a_round_trip() {
        let prompter = Some(PrompterActivity { id: 7, elapsed: std::time::Duration::from_millis(8) });
        let rendered = Rendered { text: "a".into(), tokens: vec![1], control: vec![0] };
        let done =
            End::Done { reason: FinishReason::Stop, usage: Usage { decode_us: 1, ..Usage::default() }, applied: Sampling::default() };
        let mut messages = vec![
            FromWorker::Hello { version: 1 },
            FromWorker::Loading { done: 1, total: 2 },
            FromWorker::Loaded(Ok(fake_worker::model_info())),
            FromWorker::Loaded(Err(crate::models::Error::Memory { needed: 2, free: 1 }.into())),
            FromWorker::Step { id: 1, step: Step { text: "a".into(), tokens: vec![sampled()] } },
            FromWorker::End { id: 1, end: done },
            FromWorker::End { id: 1, end: End::Failed(Failure::StagePanicked { stage: "template".into(), cause: "x".into() }) },
            FromWorker::Pong { id: 3, status: DecoderStatus { steps: 4, prompter, ..DecoderStatus::default() } },
            FromWorker::Broken { cause: "decoder panicked".into() },
            FromWorker::Answer { id: 2, answer: Err(Failure::ShuttingDown) },
        ];
        let answers = [Answer::Tokens(vec![1]), Answer::Text("a".into()), Answer::Rendered(rendered)];
        messages.extend(answers.into_iter().map(|answer| FromWorker::Answer { id: 2, answer: Ok(answer) }));
        round_trip(messages);
    }

    #[test]
    fn a_frame_may_arrive_in_parts_and_a_partial_frame_is_the_end() {
        let frame = encode(&ToWorker::Cancel { id: 300 }).unwrap();
        let mut buffer = BytesMut::new();
        for byte in &frame[..frame.len() - 1] {
            buffer.extend_from_slice(&[*byte]);
            assert!(split::<ToWorker>(&mut buffer).unwrap().is_none());
        }
        assert!(read::<ToWorker>(&mut &frame[..frame.len() - 1]).unwrap().is_none());
        assert!(read::<ToWorker>(&mut &frame[..2]).unwrap().is_none());
    }

    #[test]
    fn oversized_frames_and_trailing_bytes_are_refused() {
        let mut huge = BytesMut::from(&u32::MAX.to_le_bytes()[..]);
        assert!(matches!(split::<ToWorker>(&mut huge), Err(Error::TooLong { bytes }) if bytes == u64::from(u32::MAX)));
        assert!(matches!(read::<ToWorker>(&mut &u32::MAX.to_le_bytes()[..]), Err(Error::TooLong { .. })));
        assert!(matches!(encode(&Question::Tokenize("a".repeat(FRAME_BYTES))), Err(Error::TooLong { .. })));
        let mut trailing = BytesMut::from(&[3, 0, 0, 0, 3, 1, 0][..]);
        assert!(matches!(split::<ToWorker>(&mut trailing), Err(Error::Trailing(1))));
        let mut unknown = BytesMut::from(&[1, 0, 0, 0, 99][..]);
        assert!(matches!(split::<ToWorker>(&mut unknown), Err(Error::Malformed(_))));
    }
}
