//! The wire types: params and results as JSON. camelCase is used here and nowhere else.

mod completion;
mod params;
mod parse;
mod results;
mod sampling;
mod status;

pub(crate) use completion::{ChatParams, CompleteParams, Completion, InfillParams};
pub(crate) use params::{
    CancelParams, DetokenizeParams, InitializeParams, LoadParams, ModelNameParams, NoParams, RenderParams, TokenizeParams,
};
pub(crate) use parse::parse_params;
pub(crate) use results::{
    CancelResult, CompletionResult, DetokenizeResult, InitializeResult, PartialResult, RenderResult, TokenizeResult, WorkDoneProgress,
    logprobs,
};
pub(crate) use status::{HealthResult, ModelInfoResult, ModelsResult, StatusResult};

use super::error::ResponseError;
use crate::config::Limits;

/// The limits and defaults that params are validated with.
#[derive(Clone, Copy)]
pub(crate) struct ParamRules<'a> {
    pub(crate) limits: &'a Limits,
    pub(crate) default_model: &'a str,
}

impl ParamRules<'_> {
    /// The given model, or the default.
    pub(crate) fn model(&self, given: Option<String>) -> String {
        given.unwrap_or_else(|| self.default_model.to_owned())
    }

    /// Checks the total size of a request's texts. `sizes` are the parameters' names and their bytes.
    ///
    /// # Errors
    ///
    /// `InvalidParams`, naming the parameter whose text exceeds the limit.
    pub(crate) fn check_text_bytes<const N: usize>(&self, sizes: [(&str, usize); N]) -> Result<(), ResponseError> {
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
