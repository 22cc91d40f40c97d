//! Runs a completion. Its text is streamed to the peer as partial results, or collected for the response.

use super::{
    call::Call,
    error::ResponseError,
    types::{Completion, CompletionResult, PartialResult, logprobs},
};
use crate::actors::{End, FinishReason, Reader, Runtime, Update, Usage};

/// Runs a completion to its end. With a `partialResultToken`, it sends `$/progress` notifications and waits for the peer to
/// read them: text that is generated meanwhile is joined into one partial result.
pub(super) async fn complete(runtime: &Runtime, call: &Call, completion: Completion) -> Result<CompletionResult, ResponseError> {
    let wants_logprobs = completion.request.logprobs.is_some();
    let progress = completion.partial_result_token.map(|token| call.progress(token));
    let mut reader = runtime.complete(completion.request)?;
    let (mut text, mut all_logprobs) = (String::new(), Vec::new());
    let end = loop {
        let Update { seq, text: new_text, tokens, end } = tokio::select! {
            biased;
            () = call.cancelled() => return Err(stop_and_wait(call, reader).await),
            update = reader.next() => update,
        };
        match &progress {
            Some(progress) if !new_text.is_empty() || (wants_logprobs && !tokens.is_empty()) => {
                let logprobs = wants_logprobs.then(|| logprobs(tokens).collect());
                let partial = PartialResult { seq, text: new_text, logprobs };
                tokio::select! {
                    biased;
                    () = call.cancelled() => return Err(stop_and_wait(call, reader).await),
                    () = progress.send(&partial) => {}
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
            call.record_completion_tokens(usage.completion_tokens);
            Err(ResponseError::cancelled(usage))
        }
        End::Done { reason, usage, applied } => {
            call.record_completion_tokens(usage.completion_tokens);
            let logprobs = (wants_logprobs && progress.is_none()).then_some(all_logprobs);
            Ok(CompletionResult::new(text, reason, usage, applied, logprobs))
        }
        End::Failed(error) => Err(error.into()),
    }
}

/// Cancels the completion and waits until its computation has stopped. Returns the `cancelled` error with the completion's
/// usage.
async fn stop_and_wait(call: &Call, reader: Reader) -> ResponseError {
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
    call.record_completion_tokens(usage.completion_tokens);
    ResponseError::cancelled(usage)
}
