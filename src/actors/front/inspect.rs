//! What a model is, asked of a short-lived worker that loads no weights.

use super::{house::House, life::other_version, link::Parting};
use crate::actors::{Error, FromWorker, ModelInfo, Result, ToWorker, WIRE, frame};
use crate::config::Model;
use std::time::Duration;
use tokio::time::timeout;

/// A worker reads a few files' heads for this; a disk that takes longer will not be waited for, nor one that takes longer than
/// a decoder may say nothing.
const INSPECTION_TIME: Duration = Duration::from_secs(10);

pub(super) async fn inspect(house: &House, model: &Model) -> Result<ModelInfo> {
    let lost = |cause: String| Error::WorkerLost { model: model.name.clone(), cause };
    let mut link = (house.launch)(&model.name).map_err(|error| lost(format!("could not be started: {error}")))?;
    let model_info = async {
        loop {
            match link.receive().await {
                Ok(Some(FromWorker::Hello { wire: WIRE })) => {
                    let inspect = ToWorker::Inspect { source: model.source.clone(), settings: house.config.settings.clone() };
                    link.post(inspect).map_err(|error| Error::Internal(error.to_string()))?;
                }
                Ok(Some(FromWorker::Hello { wire })) => return Err(other_version(wire)),
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
                Err(error) => return Err(lost(format!("it sent {error}"))),
            }
        }
    };
    let limit = INSPECTION_TIME.min(house.config.limits.decoder_silence);
    match timeout(limit, model_info).await {
        Ok(model_info) => {
            link.end(Parting::Close).await;
            model_info
        }
        Err(_) => {
            link.end(Parting::Kill).await;
            Err(lost(format!("it did not answer within {} s", limit.as_secs())))
        }
    }
}
