//! Loads a model and reports its progress to the peer, for `models/load`.

use super::{
    call::Call,
    error::ResponseError,
    types::{LoadParams, WorkDoneProgress},
};
use crate::actors::{ModelInfo, Runtime};
use tokio::sync::watch;

/// Loads a model. With a `workDoneToken`, reports progress in rising percentages; a slow peer may miss some.
pub(super) async fn load(runtime: &Runtime, call: &Call, params: &LoadParams) -> Result<ModelInfo, ResponseError> {
    let Some(token) = params.work_done_token.clone() else { return Ok(runtime.load(&params.model, |_, _| ()).await?) };
    let progress = call.progress(token);
    progress.send(&WorkDoneProgress::Begin { title: format!("Loading {}", params.model), percentage: 0 }).await;
    let (percentages, mut changes) = watch::channel(0u8);
    let loading = runtime.load(&params.model, move |bytes, total_bytes| {
        let now = (bytes.saturating_mul(100) / total_bytes.max(1)).min(100) as u8;
        percentages.send_if_modified(|percentage| {
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
