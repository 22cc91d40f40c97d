//! Sampling parameters: the range of each number, and the values that were applied.

use super::ParamRules;
use crate::actors::{Error, Sampling};
use crate::protocol::error::ResponseError;
use serde::Serialize;
use serde_json::Value;
use std::{collections::BTreeMap, fmt::Display, ops::RangeInclusive};

/// The largest integer that every JSON implementation represents exactly: 2^53 - 1.
const SEED_MAX: u64 = (1 << 53) - 1;
/// Larger than the vocabulary of any known model.
const TOP_K_MAX: u32 = 1 << 20;
/// Limits the cost of the penalties: each generated token takes a pass over the window.
const REPETITION_WINDOW_MAX: u32 = 4096;
/// Positive logits are divided by the penalty, so a penalty near zero could overflow.
const REPETITION_PENALTY_MIN: f64 = 0.01;

pub(super) struct SamplingParams {
    pub(super) temperature: Option<f64>,
    pub(super) top_k: Option<u64>,
    pub(super) top_p: Option<f64>,
    pub(super) min_p: Option<f64>,
    pub(super) repetition_penalty: Option<f64>,
    /// The number of last tokens, prompt included, that the three penalties apply to.
    pub(super) repetition_window: Option<u64>,
    pub(super) presence_penalty: Option<f64>,
    pub(super) frequency_penalty: Option<f64>,
    pub(super) logit_bias: BTreeMap<u32, f64>,
    pub(super) seed: Option<u64>,
}

impl SamplingParams {
    pub(super) fn sampling(self, rules: ParamRules<'_>) -> Result<Sampling, ResponseError> {
        let default = Sampling::default();
        if self.logit_bias.len() > rules.limits.logit_bias {
            let reason = format!("{} tokens, at most {} are allowed", self.logit_bias.len(), rules.limits.logit_bias);
            return Err(ResponseError::parameter("logitBias", reason));
        }
        let logit_bias = self.logit_bias.into_iter().map(|(token, bias)| {
            // -100 forbids a token, 100 forces it.
            Ok((token, number("logitBias", Some(bias), 0.0, -100.0..=100.0)?))
        });
        Ok(Sampling {
            temperature: number("temperature", self.temperature, default.temperature, 0.0..=5.0)?,
            top_k: integer("topK", self.top_k, default.top_k, 0..=TOP_K_MAX)?,
            top_p: number("topP", self.top_p, default.top_p, 0.0..=1.0)?,
            min_p: number("minP", self.min_p, default.min_p, 0.0..=1.0)?,
            repetition_penalty: number(
                "repetitionPenalty",
                self.repetition_penalty,
                default.repetition_penalty,
                REPETITION_PENALTY_MIN..=10.0,
            )?,
            repetition_window: integer("repetitionWindow", self.repetition_window, default.repetition_window, 0..=REPETITION_WINDOW_MAX)?,
            presence_penalty: number("presencePenalty", self.presence_penalty, default.presence_penalty, -2.0..=2.0)?,
            frequency_penalty: number("frequencyPenalty", self.frequency_penalty, default.frequency_penalty, -2.0..=2.0)?,
            logit_bias: logit_bias.collect::<Result<_, ResponseError>>()?,
            seed: match self.seed {
                None => random_seed()?,
                given => integer("seed", given, 0, 0..=SEED_MAX)?,
            },
        })
    }
}

fn random_seed() -> Result<u64, ResponseError> {
    let seed = getrandom::u64().map_err(|error| Error::Internal(format!("can't get random bytes for a seed: {error}")))?;
    Ok(seed & SEED_MAX)
}

/// The number if it is in `range`. It fits f32, because every range does, and it is not NaN, which JSON lacks.
fn number(name: &str, given: Option<f64>, default: f32, range: RangeInclusive<f64>) -> Result<f32, ResponseError> {
    match given {
        None => Ok(default),
        Some(given) if range.contains(&given) => Ok(given as f32),
        Some(given) => Err(out_of_range(name, given, &range)),
    }
}

pub(super) fn integer<T>(name: &str, given: Option<u64>, default: T, range: RangeInclusive<T>) -> Result<T, ResponseError>
where
    T: TryFrom<u64> + PartialOrd + Display + Into<Value> + Copy,
{
    let Some(given) = given else { return Ok(default) };
    match T::try_from(given) {
        Ok(value) if range.contains(&value) => Ok(value),
        _ => Err(out_of_range(name, given, &range)),
    }
}

fn out_of_range<T: Display + Into<Value> + Copy>(name: &str, given: impl Display, range: &RangeInclusive<T>) -> ResponseError {
    let (min, max) = (*range.start(), *range.end());
    ResponseError::parameter(name, format!("{given} is outside of {min} to {max}")).with("minimum", min).with("maximum", max)
}

/// The sampling parameters that were applied.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SamplingResult {
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    repetition_window: u32,
    presence_penalty: f32,
    frequency_penalty: f32,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    logit_bias: BTreeMap<u32, f32>,
    seed: u64,
}

impl From<Sampling> for SamplingResult {
    fn from(applied: Sampling) -> Self {
        Self {
            temperature: applied.temperature,
            top_k: applied.top_k,
            top_p: applied.top_p,
            min_p: applied.min_p,
            repetition_penalty: applied.repetition_penalty,
            repetition_window: applied.repetition_window,
            presence_penalty: applied.presence_penalty,
            frequency_penalty: applied.frequency_penalty,
            logit_bias: applied.logit_bias.into_iter().collect(),
            seed: applied.seed,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Limits;
    use crate::protocol::types::{CompleteParams, Completion, ParamRules, parse_params};
    use jsonrpsee_types::Params;

    fn complete(member: &str) -> Result<Completion, super::ResponseError> {
        let text = format!(r#"{{"prompt":"fn",{member}}}"#);
        let limits = Limits::default();
        parse_params::<CompleteParams>(&Params::new(Some(&text)))?.completion(ParamRules { limits: &limits, default_model: "embedded" })
    }

    /// For each parameter: values inside its range, and outside.
    const RANGES: &[(&str, &[&str], &[&str])] = &[
        ("temperature", &["0", "5", "0.8", "null"], &["-0.1", "5.1", "1e308", "\"1\"", "[]", "{}", "true"]),
        ("topK", &["0", "40", "1048576"], &["-1", "1048577", "1.5", "4294967296", "18446744073709551616"]),
        ("topP", &["0", "1"], &["-1", "1.01"]),
        ("minP", &["0", "1"], &["-1", "1.01"]),
        ("repetitionPenalty", &["0.01", "1", "10"], &["0", "-1", "10.1"]),
        ("repetitionWindow", &["0", "4096"], &["-1", "4097"]),
        ("presencePenalty", &["-2", "2"], &["-2.1", "2.1"]),
        ("frequencyPenalty", &["-2", "2"], &["-2.1", "2.1"]),
        ("logitBias", &["{}", r#"{"7":-100,"8":100}"#], &[r#"{"7":101}"#, r#"{"x":1}"#, r#"{"-1":1}"#, "[]", "[[1,1]]"]),
        ("seed", &["0", "9007199254740991"], &["-1", "9007199254740992", "1.5"]),
        ("maxTokens", &["1", "16384"], &["0", "-1", "16385", "2147483648", "9223372036854775808"]),
        ("logprobs", &["0", "20"], &["-1", "21", "256"]),
        ("stop", &["[]", r#"["a"]"#], &[r#"[""]"#, r#""a""#, r#"[1]"#]),
    ];

    #[test]
    fn values_outside_their_range_are_refused_by_name() {
        for (name, inside, outside) in RANGES {
            for value in *inside {
                complete(&format!(r#""{name}":{value}"#)).unwrap_or_else(|error| panic!("{name}: {value}: {error}"));
            }
            for value in *outside {
                let error = complete(&format!(r#""{name}":{value}"#)).expect_err(&format!("{name}: {value} passes"));
                assert_eq!(error.data["parameter"], *name, "{value}: {error}");
            }
        }
    }

    #[test]
    fn stop_sequences_are_limited() {
        let many = format!(r#""stop":[{}]"#, vec![r#""a""#; 17].join(","));
        assert_eq!(complete(&many).unwrap_err().data["parameter"], "stop");
        let long = format!(r#""stop":["{}"]"#, "a".repeat(257));
        assert_eq!(complete(&long).unwrap_err().data["parameter"], "stop");
    }

    #[test]
    fn the_defaults_are_greedy_sampling_and_a_random_seed() {
        let [first, second] = [(); 2].map(|()| complete(r#""stop":[]"#).unwrap().request);
        assert_eq!((first.sampling.temperature, first.tokens_max, &*first.model), (0.0, 256, "embedded"));
        assert_ne!(first.sampling.seed, second.sampling.seed);
        assert!(first.sampling.seed < 1 << 53);
    }
}
