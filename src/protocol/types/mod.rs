//! Everything a peer writes and reads, as it stands on the wire. camelCase lives here and nowhere else.

mod completion;
mod params;
mod read;
mod results;
mod sampling;
mod status;

pub(crate) use completion::{ChatParams, CompleteParams, Completion, InfillParams};
pub(crate) use params::{
    CancelParams, DetokenizeParams, InitializeParams, LoadParams, ModelParams, NoParams, RenderParams, TokenizeParams,
};
pub(crate) use read::read;
pub(crate) use results::{
    CancelResult, CompletionResult, DetokenizeResult, InitializeResult, PartialResult, RenderResult, TokenizeResult, WorkDoneProgress,
    logprobs,
};
pub(crate) use status::{HealthResult, ModelInfoResult, ModelsResult, StatusResult};

use super::error::ResponseError;
use crate::config::Limits;

/// What params are judged by.
#[derive(Clone, Copy)]
pub(crate) struct Bounds<'a> {
    pub(crate) limits: &'a Limits,
    pub(crate) default_model: &'a str,
}

impl Bounds<'_> {
    pub(crate) fn model(&self, asked: Option<String>) -> String {
        asked.unwrap_or_else(|| self.default_model.to_owned())
    }

    /// All texts of a request share one budget; the one that exceeds it is named.
    pub(crate) fn text<const N: usize>(&self, sizes: [(&str, usize); N]) -> Result<(), ResponseError> {
        let mut total = 0usize;
        for (name, size) in sizes {
            total = total.saturating_add(size);
            if total > self.limits.text_bytes {
                let reason = format!("the request's text has more than {} bytes", self.limits.text_bytes);
                return Err(ResponseError::parameter(name, reason).with("limit", self.limits.text_bytes));
            }
        }
        Ok(())
    }
}
