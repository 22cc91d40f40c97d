//! Renders and encodes: prompts to tokens, and the questions that need nothing but a tokenizer.

use super::{Job, Outbox, Prepared, ToDecoder, ToPrompter};
use crate::actors::{Answer, End, Error, FinishReason, FromWorker, ModelSource, Question, Rendered, Result, Usage};
use crate::models::language::Language;
use crate::models::network::DecoderSpec;
use crate::models::weights::Files;
use crate::models::{self, Embedded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

pub(super) fn run(inbox: Receiver<ToPrompter>, to_decoder: SyncSender<ToDecoder>, outbox: Outbox, embedded: Option<Embedded>) {
    let mut language = Err(Error::Internal("a worker is asked before it has a model".into()));
    for message in inbox {
        // Where the decoder or the front is gone, this worker is ending, and so does the inbox.
        match message {
            ToPrompter::Load { source } => {
                let loaded = open(&source, embedded).map(Arc::new);
                let _ = to_decoder.send(ToDecoder::Language(loaded.clone()));
                language = loaded.map_err(Error::Model);
            }
            ToPrompter::Generate(job) => generate(job, &language, &to_decoder, &outbox),
            ToPrompter::Ask { id, question } => {
                let answer = language.clone().and_then(|language| guarded(|| answer(&language, question)));
                let _ = outbox.send(FromWorker::Answer { id, answer });
            }
        }
    }
}

/// What can be known of a model's texts without its weights.
fn open(source: &ModelSource, embedded: Option<Embedded>) -> models::Result<Language> {
    let files = Files::open(source, embedded)?;
    Language::open(&files, &DecoderSpec::parse(&files)?)
}

fn generate(job: Job, language: &Result<Arc<Language>>, to_decoder: &SyncSender<ToDecoder>, outbox: &Outbox) {
    if job.is_cancelled() {
        let queue_us = job.arrived.elapsed().as_micros() as u64;
        let usage = Usage { queue_us, ..Usage::default() };
        let end = End::Done { reason: FinishReason::Cancelled, usage, applied: job.request.sampling };
        let _ = outbox.send(FromWorker::End { id: job.id, end });
        return;
    }
    let prompt = language.clone().and_then(|language| guarded(|| Ok(language.encode(&job.request.prompt)?)));
    let _ = match prompt {
        Ok(prompt) => to_decoder.send(ToDecoder::Generate(Box::new(Prepared { job, prompt }))).map_err(|_| super::Gone),
        Err(error) => outbox.send(FromWorker::End { id: job.id, end: End::Failed(error) }),
    };
}

/// The wall of this stage: what panics for one request ends that request.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        // The panic's text may quote the prompt; the hook told the log where it happened.
        Err(Error::StagePanicked { stage: "prompter".into(), cause: "rendering or encoding the prompt".into() })
    })
}

fn answer(language: &Language, question: Question) -> Result<Answer> {
    let tokenizer = &language.tokenizer;
    Ok(match question {
        Question::Tokenize(text) => Answer::Tokens(tokenizer.encode(&text)?),
        Question::Detokenize(tokens) => Answer::Text(tokenizer.decode(&tokens)?),
        Question::Render(prompt) => {
            let tokens = language.encode(&prompt)?;
            let control = (0..).zip(&tokens).filter(|(_, id)| tokenizer.is_control(**id)).map(|(index, _)| index).collect();
            Answer::Rendered(Rendered { text: tokenizer.decode(&tokens)?, tokens, control })
        }
    })
}
