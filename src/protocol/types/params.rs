//! The params of the methods that complete nothing.

use super::{Bounds, ChatParams, CompleteParams, InfillParams};
use crate::actors::Prompt;
use crate::protocol::{call::ProgressToken, envelope::CallId, error::ResponseError};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoParams {}

/// Params of `cancel` and of `$/cancelRequest`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CancelParams {
    pub(crate) id: CallId,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelParams {
    pub(crate) model: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct LoadParams {
    pub(crate) model: String,
    pub(crate) work_done_token: Option<ProgressToken>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenizeParams {
    pub(crate) model: Option<String>,
    pub(crate) text: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DetokenizeParams {
    pub(crate) model: Option<String>,
    pub(crate) tokens: Vec<u32>,
}

/// Exactly one of the three prompts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RenderParams {
    pub(crate) model: Option<String>,
    infill: Option<InfillParams>,
    complete: Option<CompleteParams>,
    chat: Option<ChatParams>,
}

impl RenderParams {
    pub(crate) fn into_prompt(self, bounds: Bounds<'_>) -> Result<Prompt, ResponseError> {
        match (self.infill, self.complete, self.chat) {
            (Some(infill), None, None) => infill.into_prompt(bounds),
            (None, Some(complete), None) => complete.into_prompt(bounds),
            (None, None, Some(chat)) => chat.into_prompt(bounds),
            _ => Err(ResponseError::parameter("params", "give one of infill, complete and chat")),
        }
    }
}

/// An editor sends much more here, and newer ones more again: what is not ours is not read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InitializeParams {
    /// The process whose end is ours.
    pub(crate) process_id: Option<i32>,
}

impl<'de> Deserialize<'de> for CallId {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(reader)?;
        Self::read(&raw).ok_or_else(|| serde::de::Error::custom("an id is a string or an integer"))
    }
}
