//! Reads a model's metadata with a short-lived worker that loads no weights.

use super::{context::RuntimeContext, link::Shutdown, session::version_mismatch};
use crate::actors::{Error, FromWorker, ModelInfo, Result, ToWorker, WIRE_VERSION, frame};
use crate::config::Model;
use std::time::Duration;
use tokio::time::timeout;

/// Time limit of an inspection, unless `Limits::decoder_silence` is shorter. The worker reads only the headers of a few files.
const INSPECTION_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn inspect(context: &RuntimeContext, model: &Model) -> Result<ModelInfo> {
    let lost = |cause: String| Error::WorkerLost { model: model.name.clone(), cause };
    let mut link = (context.launch)(&model.name).map_err(|error| lost(format!("could not be started: {error}")))?;
    let model_info = async {
        loop {
            match link.receive().await {
                Ok(Some(FromWorker::Hello { version: WIRE_VERSION })) => {
                    let inspect = ToWorker::Inspect { source: model.source.clone(), settings: context.config.settings.clone() };
                    link.post(inspect).map_err(|error| Error::Internal(error.to_string()))?;
                }
                Ok(Some(FromWorker::Hello { version })) => return Err(version_mismatch(version)),
                Ok(Some(FromWorker::Loaded(model_info))) => return model_info,
                Ok(Some(FromWorker::Broken { cause })) => return Err(lost(cause)),
                Ok(Some(
                    FromWorker::Loading { .. }
                    | FromWorker::Step { .. }
                    | FromWorker::End { .. }
                    | FromWorker::Answer { .. }
                    | FromWorker::Pong { .. },
                )) => {}
                Ok(None) | Err(frame::Error::Io(_)) => return Err(lost("it ended without an answer".into())),
                Err(error) => return Err(lost(format!("it sent an invalid frame: {error}"))),
            }
        }
    };
    let limit = INSPECTION_TIMEOUT.min(context.config.limits.decoder_silence);
    match timeout(limit, model_info).await {
        Ok(model_info) => {
            link.end(Shutdown::Graceful).await;
            model_info
        }
        Err(_) => {
            link.end(Shutdown::Kill).await;
            Err(lost(format!("it did not answer within {} s", limit.as_secs())))
        }
    }
}
