//! From a transcript to the wire: the one path of everything that completes, and the progress of a load.

use super::{
    call::Call,
    error::Fault,
    types::{Completion, CompletionResult, LoadParams, Piece, WorkDone, logprobs},
};
use crate::actors::{End, FinishReason, ModelInfo, Reader, Runtime, Update, Usage};
use tokio::sync::watch;

/// Streams under the request's token as fast as the peer reads, or gathers the text; then the end.
pub(super) async fn complete(runtime: &Runtime, call: &Call, completion: Completion) -> Result<CompletionResult, Fault> {
    let wants_logprobs = completion.request.logprobs.is_some();
    let stream = completion.stream.map(|token| call.progress(token));
    let mut reader = runtime.complete(completion.request)?;
    let (mut text, mut gathered) = (String::new(), Vec::new());
    let end = loop {
        let Update { seq, text: piece, tokens, end } = tokio::select! {
            biased;
            () = call.cancelled() => return Err(cancelled(call, reader).await),
            news = reader.next() => news,
        };
        match &stream {
            Some(stream) if !piece.is_empty() || (wants_logprobs && !tokens.is_empty()) => {
                let logprobs = wants_logprobs.then(|| logprobs(tokens).collect());
                let piece = Piece { seq, text: piece, logprobs };
                tokio::select! {
                    biased;
                    () = call.cancelled() => return Err(cancelled(call, reader).await),
                    () = stream.send(&piece) => {}
                }
            }
            Some(_) => {}
            None => {
                text.push_str(&piece);
                if wants_logprobs {
                    gathered.extend(logprobs(tokens));
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
            Err(Fault::cancelled(usage))
        }
        End::Done { reason, usage, applied } => {
            call.computed(usage.completion_tokens);
            let logprobs = (wants_logprobs && stream.is_none()).then_some(gathered);
            Ok(CompletionResult::new(text, reason, usage, applied, logprobs))
        }
        End::Failed(error) => Err(error.into()),
    }
}

/// Stops reading, waits until nothing computes any more, and says what was computed.
async fn cancelled(call: &Call, reader: Reader) -> Fault {
    let end = tokio::select! {
        end = reader.abandon().wait() => Some(end),
        () = call.hurried() => None,
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
    Fault::cancelled(usage)
}

/// Loads a model; under a token, says how far it is. Percentages only rise, and a slow peer misses some.
pub(super) async fn load(runtime: &Runtime, call: &Call, params: &LoadParams) -> Result<ModelInfo, Fault> {
    let Some(token) = params.work_done_token.clone() else { return Ok(runtime.load(&params.model, |_, _| ()).await?) };
    let progress = call.progress(token);
    progress.send(&WorkDone::Begin { title: format!("Loading {}", params.model), percentage: 0 }).await;
    let (percentage, mut heard) = watch::channel(0u8);
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
        while heard.changed().await.is_ok() {
            let percentage = *heard.borrow_and_update();
            progress.send(&WorkDone::Report { percentage }).await;
        }
        // The load has let go of its callback and is about to answer.
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
    progress.send(&WorkDone::End { message }).await;
    Ok(loaded?)
}
