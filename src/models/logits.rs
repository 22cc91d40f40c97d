//! Logits processors: bias and penalties that change the logits before sampling.

use super::Sampling;

/// Variants are in the order in which they run.
#[derive(Clone, Debug, PartialEq)]
pub enum Processor {
    /// Added to the logits of single tokens.
    Bias(Vec<(u32, f32)>),
    /// Divides positive and multiplies negative logits of tokens in the window by `penalty` (CTRL, Keskar et al. 2019,
    /// arXiv:1909.05858).
    Repetition { penalty: f32, window: usize },
    /// Subtracts `presence` once and `frequency` per occurrence in the window, as in OpenAI's API.
    Occurrence { presence: f32, frequency: f32, window: usize },
}

/// The processors that `sampling` enables; neutral values enable none.
pub fn processors(sampling: &Sampling) -> Vec<Processor> {
    let window = sampling.repetition_window as usize;
    let mut all = Vec::new();
    if !sampling.logit_bias.is_empty() {
        all.push(Processor::Bias(sampling.logit_bias.clone()));
    }
    if sampling.repetition_penalty != 1.0 && window > 0 {
        all.push(Processor::Repetition { penalty: sampling.repetition_penalty, window });
    }
    let (presence, frequency) = (sampling.presence_penalty, sampling.frequency_penalty);
    if (presence != 0.0 || frequency != 0.0) && window > 0 {
        all.push(Processor::Occurrence { presence, frequency, window });
    }
    all
}

impl Processor {
    /// `logits` has `vocab_size` elements; `tokens` is the prompt and the completion so far, all of them below
    /// `vocab_size`.
    pub fn apply(&self, logits: &mut [f32], tokens: &[u32]) {
        match self {
            Self::Bias(bias) => bias.iter().for_each(|&(token, bias)| logits[token as usize] += bias),
            Self::Repetition { penalty, window } => {
                for (token, _) in counts(tokens, *window) {
                    let logit = &mut logits[token as usize];
                    *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
                }
            }
            Self::Occurrence { presence, frequency, window } => {
                for (token, count) in counts(tokens, *window) {
                    logits[token as usize] -= presence + frequency * count as f32;
                }
            }
        }
    }
}

/// The distinct tokens among the last `window` tokens, with their counts.
fn counts(tokens: &[u32], window: usize) -> Vec<(u32, usize)> {
    let mut last = tokens[tokens.len().saturating_sub(window)..].to_vec();
    last.sort_unstable();
    last.chunk_by(|a, b| a == b).map(|same| (same[0], same.len())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(sampling: Sampling, tokens: &[u32]) -> Vec<f32> {
        let mut logits = vec![2.0, -2.0, 4.0, 1.0];
        processors(&sampling).iter().for_each(|processor| processor.apply(&mut logits, tokens));
        logits
    }

    #[test]
    fn neutral_sampling_has_no_processor() {
        assert!(processors(&Sampling::default()).is_empty());
    }

    #[test]
    fn repetition_is_limited_to_its_window() {
        let sampling = Sampling { repetition_penalty: 2.0, repetition_window: 2, ..Sampling::default() };
        assert_eq!(run(sampling.clone(), &[2, 0, 1]), [1.0, -4.0, 4.0, 1.0]);
        assert_eq!(run(sampling, &[2, 2, 2]), [2.0, -2.0, 2.0, 1.0]);
    }

    #[test]
    fn presence_is_subtracted_once_and_frequency_per_occurrence() {
        let sampling = Sampling { presence_penalty: 0.5, frequency_penalty: 1.0, repetition_window: 8, ..Sampling::default() };
        assert_eq!(run(sampling, &[3, 3, 0]), [0.5, -2.0, 4.0, -1.5]);
    }

    #[test]
    fn bias_is_applied_before_the_penalties() {
        let sampling = Sampling { logit_bias: vec![(0, 2.0)], repetition_penalty: 2.0, ..Sampling::default() };
        assert_eq!(run(sampling, &[0]), [2.0, -2.0, 4.0, 1.0]);
    }
}
