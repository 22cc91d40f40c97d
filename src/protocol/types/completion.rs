//! The params of `infill`, `complete` and `chat`, and their validation into one request type.

use super::{
    ParamRules,
    sampling::{SamplingParams, integer},
};
use crate::actors::{File, FimOrder, Message, Prompt, Request, Role};
use crate::protocol::{call::ProgressToken, error::ResponseError};
use serde::Deserialize;
use std::{collections::BTreeMap, mem::take};

/// Defaults of `maxTokens`.
const INFILL_TOKENS: u32 = 128;
const ANSWER_TOKENS: u32 = 256;

/// Defines a params struct with the members that all three share. A macro, because serde's `flatten` and
/// `deny_unknown_fields` exclude each other.
macro_rules! completion_params {
    ($name:ident, $tokens:expr, { $($(#[$attribute:meta])* $field:ident: $kind:ty,)* }) => {
        #[derive(Debug, Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        pub(crate) struct $name {
            $($(#[$attribute])* $field: $kind,)*
            model: Option<String>,
            max_tokens: Option<u64>,
            temperature: Option<f64>,
            top_k: Option<u64>,
            top_p: Option<f64>,
            min_p: Option<f64>,
            repetition_penalty: Option<f64>,
            repetition_window: Option<u64>,
            presence_penalty: Option<f64>,
            frequency_penalty: Option<f64>,
            logit_bias: Option<BTreeMap<u32, f64>>,
            seed: Option<u64>,
            stop: Option<Vec<String>>,
            logprobs: Option<u64>,
            partial_result_token: Option<ProgressToken>,
        }

        impl $name {
            pub(crate) fn completion(mut self, rules: ParamRules<'_>) -> Result<Completion, ResponseError> {
                let prompt = self.prompt(rules)?;
                let common = Common {
                    model: self.model,
                    tokens_max: integer("maxTokens", self.max_tokens, $tokens, 1..=rules.limits.answer_tokens)?,
                    stop: self.stop.unwrap_or_default(),
                    logprobs: self.logprobs,
                    partial_result_token: self.partial_result_token,
                };
                let sampling = SamplingParams {
                    temperature: self.temperature,
                    top_k: self.top_k,
                    top_p: self.top_p,
                    min_p: self.min_p,
                    repetition_penalty: self.repetition_penalty,
                    repetition_window: self.repetition_window,
                    presence_penalty: self.presence_penalty,
                    frequency_penalty: self.frequency_penalty,
                    logit_bias: self.logit_bias.unwrap_or_default(),
                    seed: self.seed,
                };
                common.completion(prompt, sampling, rules)
            }

            /// The prompt alone, for `prompt/render`.
            pub(crate) fn into_prompt(self, rules: ParamRules<'_>) -> Result<Prompt, ResponseError> {
                Ok(self.completion(rules)?.request.prompt)
            }
        }
    };
}

completion_params!(InfillParams, INFILL_TOKENS, {
    prefix: String,
    #[serde(default)]
    suffix: String,
    path: Option<String>,
    repository: Option<String>,
    #[serde(default)]
    files: Vec<FileParam>,
    order: Option<Order>,
});

completion_params!(CompleteParams, ANSWER_TOKENS, {
    prompt: String,
});

completion_params!(ChatParams, ANSWER_TOKENS, {
    messages: Vec<MessageParam>,
    language: Option<String>,
});

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileParam {
    path: String,
    text: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Order {
    PrefixSuffixMiddle,
    SuffixPrefixMiddle,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MessageParam {
    role: RoleParam,
    content: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum RoleParam {
    System,
    User,
    Assistant,
}

/// A validated completion of any of the three methods.
#[derive(Debug)]
pub(crate) struct Completion {
    pub(crate) request: Request,
    /// The token of the `$/progress` notifications that carry the text; `None` returns the text in the response.
    pub(crate) partial_result_token: Option<ProgressToken>,
}

impl InfillParams {
    fn prompt(&mut self, rules: ParamRules<'_>) -> Result<Prompt, ResponseError> {
        let files = take(&mut self.files);
        if files.len() > rules.limits.files {
            return Err(ResponseError::parameter("files", format!("{} files, at most {} are allowed", files.len(), rules.limits.files)));
        }
        let context: usize = files.iter().map(|file| file.path.len() + file.text.len()).sum();
        let names = [("path", &self.path), ("repository", &self.repository)];
        let names = names.map(|(name, text)| (name, text.as_ref().map_or(0, String::len)));
        rules.check_text_bytes([("prefix", self.prefix.len()), ("suffix", self.suffix.len()), names[0], names[1], ("files", context)])?;
        Ok(Prompt::Infill {
            prefix: take(&mut self.prefix),
            suffix: take(&mut self.suffix),
            path: self.path.take(),
            repository: self.repository.take(),
            files: files.into_iter().map(|file| File { path: file.path, text: file.text }).collect(),
            order: self.order.take().map(|order| match order {
                Order::PrefixSuffixMiddle => FimOrder::PrefixSuffixMiddle,
                Order::SuffixPrefixMiddle => FimOrder::SuffixPrefixMiddle,
            }),
        })
    }
}

impl CompleteParams {
    fn prompt(&mut self, rules: ParamRules<'_>) -> Result<Prompt, ResponseError> {
        rules.check_text_bytes([("prompt", self.prompt.len())])?;
        Ok(Prompt::Text(take(&mut self.prompt)))
    }
}

impl ChatParams {
    fn prompt(&mut self, rules: ParamRules<'_>) -> Result<Prompt, ResponseError> {
        let messages = take(&mut self.messages);
        if messages.is_empty() {
            return Err(ResponseError::parameter("messages", "at least one message is needed"));
        }
        let content = messages.iter().map(|message| message.content.len()).sum();
        rules.check_text_bytes([("messages", content), ("language", self.language.as_ref().map_or(0, String::len))])?;
        let messages = messages.into_iter().map(|message| Message {
            role: match message.role {
                RoleParam::System => Role::System,
                RoleParam::User => Role::User,
                RoleParam::Assistant => Role::Assistant,
            },
            content: message.content,
        });
        Ok(Prompt::Chat { messages: messages.collect(), language: self.language.take() })
    }
}

struct Common {
    model: Option<String>,
    tokens_max: u32,
    stop: Vec<String>,
    logprobs: Option<u64>,
    partial_result_token: Option<ProgressToken>,
}

impl Common {
    fn completion(self, prompt: Prompt, sampling: SamplingParams, rules: ParamRules<'_>) -> Result<Completion, ResponseError> {
        let limits = rules.limits;
        if self.stop.len() > limits.stops {
            return Err(ResponseError::parameter("stop", format!("{} sequences, at most {} are allowed", self.stop.len(), limits.stops)));
        }
        if self.stop.iter().any(|stop| stop.is_empty() || stop.len() > limits.stop_bytes) {
            return Err(ResponseError::parameter("stop", format!("a sequence must have 1 to {} bytes", limits.stop_bytes)));
        }
        let logprobs = match self.logprobs {
            None => None,
            given => Some(integer("logprobs", given, 0, 0..=limits.logprobs)?),
        };
        let request = Request {
            model: rules.model(self.model),
            prompt,
            sampling: sampling.sampling(rules)?,
            stop: self.stop,
            tokens_max: self.tokens_max,
            logprobs,
        };
        Ok(Completion { request, partial_result_token: self.partial_result_token })
    }
}
