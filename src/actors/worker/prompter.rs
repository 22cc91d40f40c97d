//! Renders and tokenizes prompts, and answers the questions that need only the tokenizer.

use super::messages::{Disconnected, Job, Outbox, Prepared, ToDecoder, ToPrompter};
use super::probe::ActivityProbe;
use crate::actors::{Answer, End, Error, FinishReason, FromWorker, ModelSource, Prompt, Question, Rendered, Result, Usage};
use crate::failpoints::{self, Point};
use crate::models::codec::TextCodec;
use crate::models::network::DecoderSpec;
use crate::models::weights::Files;
use crate::models::{self, Embedded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

pub(super) fn run(
    inbox: Receiver<ToPrompter>,
    to_decoder: SyncSender<ToDecoder>,
    outbox: Outbox,
    probe: ActivityProbe,
    embedded: Option<Embedded>,
) {
    let mut codec = Err(Error::Internal("a request arrived before the model was loaded".into()));
    for message in inbox {
        // Failed sends are ignored: they mean that the worker is ending, and then the inbox ends too.
        match message {
            ToPrompter::Load { source } => {
                let loaded = open(&source, embedded).map(Arc::new);
                let _ = to_decoder.send(ToDecoder::Codec(loaded.clone()));
                codec = loaded.map_err(Error::Model);
            }
            ToPrompter::Generate(job) => generate(job, &codec, &to_decoder, &outbox, &probe),
            ToPrompter::Ask { id, question } => {
                let answer = codec.clone().and_then(|codec| probe.record(id, || answer(&codec, question)));
                let _ = outbox.send(FromWorker::Answer { id, answer });
            }
        }
    }
}

/// Opens the tokenizer and the prompt template, without the weights.
fn open(source: &ModelSource, embedded: Option<Embedded>) -> models::Result<TextCodec> {
    failpoints::check(Point::LoadTokenizer, None).map_err(|fault| models::Error::Unsupported(fault.to_string()))?;
    let files = Files::open(source, embedded)?;
    TextCodec::open(&files, &DecoderSpec::parse(&files)?)
}

fn generate(job: Job, codec: &Result<Arc<TextCodec>>, to_decoder: &SyncSender<ToDecoder>, outbox: &Outbox, probe: &ActivityProbe) {
    if job.is_cancelled() {
        let queue_us = job.arrived.elapsed().as_micros() as u64;
        let usage = Usage { queue_us, ..Usage::default() };
        let end = End::Done { reason: FinishReason::Cancelled, usage, applied: job.request.sampling };
        let _ = outbox.send(FromWorker::End { id: job.id, end });
        return;
    }
    let seed = Some(job.request.sampling.seed);
    let prompt = codec.clone().and_then(|codec| probe.record(job.id, || encode(&codec, &job.request.prompt, seed)));
    let _ = match prompt {
        Ok(prompt) => to_decoder.send(ToDecoder::Generate(Box::new(Prepared { job, prompt }))).map_err(|_| Disconnected),
        Err(error) => outbox.send(FromWorker::End { id: job.id, end: End::Failed(error) }),
    };
}

/// Renders and tokenizes a prompt. `seed` is that of its request, for failpoints.
fn encode(codec: &TextCodec, prompt: &Prompt, seed: Option<u64>) -> Result<Vec<u32>> {
    let parts = guarded("template", Point::Template, seed, || codec.render(prompt))?;
    guarded("tokenizer", Point::Tokenizer, seed, || codec.encode_parts(&parts))
}

fn answer(codec: &TextCodec, question: Question) -> Result<Answer> {
    let tokenizer = &codec.tokenizer;
    let decode = |tokens: &[u32]| guarded("tokenizer", Point::Tokenizer, None, || tokenizer.decode(tokens));
    Ok(match question {
        Question::Tokenize(text) => Answer::Tokens(guarded("tokenizer", Point::Tokenizer, None, || tokenizer.encode(&text))?),
        Question::Detokenize(tokens) => Answer::Text(decode(&tokens)?),
        Question::Render(prompt) => {
            let tokens = encode(codec, &prompt, None)?;
            let control = (0..).zip(&tokens).filter(|(_, id)| tokenizer.is_control(**id)).map(|(index, _)| index).collect();
            Answer::Rendered(Rendered { text: decode(&tokens)?, tokens, control })
        }
    })
}

/// Runs `work` so that a panic fails only this request. A stage keeps no state between requests, so nothing has to be reset.
fn guarded<T>(stage: &str, point: Point, seed: Option<u64>, work: impl FnOnce() -> models::Result<T>) -> Result<T> {
    let work = || {
        failpoints::check(point, seed).map_err(|fault| models::Error::Unsupported(fault.to_string()))?;
        work()
    };
    let result = catch_unwind(AssertUnwindSafe(work)).map_err(|_| {
        // The panic message may quote the prompt, so it is omitted; the panic hook has logged the location.
        Error::StagePanicked { stage: stage.into(), cause: "reading the prompt".into() }
    })?;
    Ok(result?)
}
