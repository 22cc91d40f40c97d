//! The params of the methods that generate nothing.

use super::{ChatParams, CompleteParams, InfillParams, ParamRules};
use crate::actors::Prompt;
use crate::protocol::{call::ProgressToken, envelope::CallId, error::ResponseError};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoParams {}

/// Params of `cancel` and of `$/cancelRequest`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CancelParams {
    pub(crate) id: CallId,
}

/// Params of `models/show` and `models/unload`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelNameParams {
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
    /// `None` for the default model, here and below.
    pub(crate) model: Option<String>,
    pub(crate) text: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DetokenizeParams {
    pub(crate) model: Option<String>,
    pub(crate) tokens: Vec<u32>,
}

/// Params of `prompt/render`: exactly one of the three prompts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RenderParams {
    pub(crate) model: Option<String>,
    infill: Option<InfillParams>,
    complete: Option<CompleteParams>,
    chat: Option<ChatParams>,
}

impl RenderParams {
    pub(crate) fn into_prompt(self, rules: ParamRules<'_>) -> Result<Prompt, ResponseError> {
        match (self.infill, self.complete, self.chat) {
            (Some(infill), None, None) => infill.into_prompt(rules),
            (None, Some(complete), None) => complete.into_prompt(rules),
            (None, None, Some(chat)) => chat.into_prompt(rules),
            _ => Err(ResponseError::parameter("params", "exactly one of infill, complete and chat is needed")),
        }
    }
}

/// The other members of LSP's InitializeParams are ignored.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InitializeParams {
    /// The editor's process id. Over stdio, the connection closes when that process exits.
    pub(crate) process_id: Option<i32>,
}
