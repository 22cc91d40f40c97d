//! Runs a completion and sends it to the peer, streamed or as one text; and loads a model with progress.

use super::{
    call::Call,
    error::ResponseError,
    types::{Completion, CompletionResult, LoadParams, PartialResult, WorkDoneProgress, logprobs},
};
use crate::actors::{End, FinishReason, ModelInfo, Reader, Runtime, Update, Usage};
use tokio::sync::watch;

/// Streams partial results under the request's token at the speed the peer reads, or collects the whole text.
pub(super) async fn complete(runtime: &Runtime, call: &Call, completion: Completion) -> Result<CompletionResult, ResponseError> {
    let wants_logprobs = completion.request.logprobs.is_some();
    let stream = completion.stream.map(|token| call.progress(token));
    let mut reader = runtime.complete(completion.request)?;
    let (mut text, mut all_logprobs) = (String::new(), Vec::new());
    let end = loop {
        let Update { seq, text: new_text, tokens, end } = tokio::select! {
            biased;
            () = call.cancelled() => return Err(cancelled(call, reader).await),
            news = reader.next() => news,
        };
        match &stream {
            Some(stream) if !new_text.is_empty() || (wants_logprobs && !tokens.is_empty()) => {
                let logprobs = wants_logprobs.then(|| logprobs(tokens).collect());
                let partial = PartialResult { seq, text: new_text, logprobs };
                tokio::select! {
                    biased;
                    () = call.cancelled() => return Err(cancelled(call, reader).await),
                    () = stream.send(&partial) => {}
                }
            }
            Some(_) => {}
            None => {
                text.push_str(&new_text);
                if wants_logprobs {
                    all_logprobs.extend(logprobs(tokens));
                }
            }
        }
        if let Some(end) = end {
            break end;
        }
    };
    match end {
        End::Done { reason: FinishReason::Cancelled, usage, .. } => {
            call.computed(usage.completion_tokens);
            Err(ResponseError::cancelled(usage))
        }
        End::Done { reason, usage, applied } => {
            call.computed(usage.completion_tokens);
            let logprobs = (wants_logprobs && stream.is_none()).then_some(all_logprobs);
            Ok(CompletionResult::new(text, reason, usage, applied, logprobs))
        }
        End::Failed(error) => Err(error.into()),
    }
}

/// Stops the completion, waits until its computation has ended, and gives the error with its usage.
async fn cancelled(call: &Call, reader: Reader) -> ResponseError {
    let end = tokio::select! {
        end = reader.abandon().wait() => Some(end),
        () = call.force_ended() => None,
    };
    let usage = match end {
        Some(End::Done { usage, .. }) => usage,
        None => Usage::default(),
        Some(End::Failed(error)) => {
            tracing::debug!(%error, "failed while being cancelled");
            Usage::default()
        }
    };
    call.computed(usage.completion_tokens);
    ResponseError::cancelled(usage)
}

/// Loads a model. With a token, reports progress: percentages only rise, and a slow peer misses some.
pub(super) async fn load(runtime: &Runtime, call: &Call, params: &LoadParams) -> Result<ModelInfo, ResponseError> {
    let Some(token) = params.work_done_token.clone() else { return Ok(runtime.load(&params.model, |_, _| ()).await?) };
    let progress = call.progress(token);
    progress.send(&WorkDoneProgress::Begin { title: format!("Loading {}", params.model), percentage: 0 }).await;
    let (percentage, mut changes) = watch::channel(0u8);
    let loading = runtime.load(&params.model, move |done, total| {
        let now = (done.saturating_mul(100) / total.max(1)).min(100) as u8;
        percentage.send_if_modified(|percentage| {
            now > *percentage && {
                *percentage = now;
                true
            }
        });
    });
    let report = async {
        while changes.changed().await.is_ok() {
            let percentage = *changes.borrow_and_update();
            progress.send(&WorkDoneProgress::Report { percentage }).await;
        }
        // The callback was dropped: `loading` is about to resolve.
        std::future::pending().await
    };
    let loaded = tokio::select! {
        loaded = loading => loaded,
        () = report => unreachable!("report never ends"),
    };
    let message = match &loaded {
        Ok(_) => "loaded".to_owned(),
        Err(error) => error.to_string(),
    };
    progress.send(&WorkDoneProgress::End { message }).await;
    Ok(loaded?)
}
