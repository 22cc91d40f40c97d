//! Sampling: processors, temperature, min-p, top-k, top-p and a seeded random choice.

use super::logits::{Processor, processors};
use super::{Error, Result, Sampled, Sampling};
use crate::failpoints::{self, Point};

/// Candidates that top-p sorts at first; nearly always enough, so that a large vocabulary is never sorted whole.
const PARTIAL_SORT_MIN: usize = 256;

/// The sampler of one sequence. A random choice depends only on the seed and the token's position, so it does not depend on
/// the batch and is repeated after a restart.
pub struct Sampler {
    sampling: Sampling,
    processors: Vec<Processor>,
    /// Report log-probabilities, with this many alternatives; `None` skips their cost.
    logprobs: Option<u8>,
}

impl Sampler {
    pub fn new(sampling: Sampling, logprobs: Option<u8>) -> Self {
        Self { processors: processors(&sampling), sampling, logprobs }
    }

    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    pub fn logprobs(&self) -> Option<u8> {
        self.logprobs
    }

    /// Samples the next token. `logits` has `vocab_size` elements and is overwritten; `tokens` is the prompt and the completion
    /// so far.
    ///
    /// # Errors
    /// `NonFiniteLogits` if a logit is infinite or not a number.
    pub fn sample(&mut self, logits: &mut [f32], tokens: &[u32]) -> Result<Sampled> {
        check_finite(logits)?;
        let logsum = self.logprobs.map(|_| logsumexp(logits));
        let top = self.logprobs.map_or(Vec::new(), |n| top_logprobs(logits, n as usize, logsum.unwrap_or(0.0)));
        let raw = logsum.map_or(Vec::new(), |_| logits.to_vec());
        for processor in &self.processors {
            failpoints::at(Point::Processor, Some(self.sampling.seed));
            processor.apply(logits, tokens);
        }
        failpoints::at(Point::Sampler, Some(self.sampling.seed));
        let token = if self.sampling.temperature == 0.0 { argmax(logits) } else { sample_softmax(logits, &self.sampling, tokens.len()) };
        Ok(Sampled { token: token as u32, logprob: logsum.map_or(0.0, |logsum| raw[token] - logsum), top })
    }
}

/// Checks that no logit is infinite or NaN, by multiplying with zero: a finite number gives zero, the others give NaN.
fn check_finite(logits: &[f32]) -> Result<()> {
    let (vectors, rest) = logits.as_chunks::<LANES>();
    let mut zeros = [0f32; LANES];
    for vector in vectors {
        for (zero, x) in zeros.iter_mut().zip(vector) {
            *zero += x * 0.0;
        }
    }
    let finite = zeros.iter().all(|&zero| zero == 0.0) && rest.iter().all(|x| x.is_finite());
    if finite { Ok(()) } else { Err(Error::NonFiniteLogits) }
}

/// Independent partial results of a reduction: sixteen let the compiler use SIMD of any width.
const LANES: usize = 16;

/// The index of the largest logit; the first one among equals.
fn argmax(logits: &[f32]) -> usize {
    let (vectors, rest) = logits.as_chunks::<LANES>();
    let mut tops = [f32::NEG_INFINITY; LANES];
    for vector in vectors {
        for (top, x) in tops.iter_mut().zip(vector) {
            *top = if *x > *top { *x } else { *top };
        }
    }
    let top = tops.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    logits.iter().position(|&x| x == top).unwrap_or(0)
}

fn logsumexp(logits: &[f32]) -> f32 {
    let top = logits[argmax(logits)];
    top + logits.iter().map(|x| f64::from((x - top).exp())).sum::<f64>().ln() as f32
}

/// The `n` most probable tokens and their log-probabilities.
fn top_logprobs(logits: &[f32], n: usize, logsum: f32) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = logits.iter().enumerate().map(|(i, x)| (i as u32, x - logsum)).collect();
    partial_sort(&mut all, n);
    all.truncate(n);
    all
}

/// Moves the `n` largest to the front in descending order; among equals, the smaller id comes first.
fn partial_sort(all: &mut [(u32, f32)], n: usize) {
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if n == 0 || all.is_empty() {
        return;
    }
    let n = n.min(all.len());
    if n < all.len() {
        all.select_nth_unstable_by(n - 1, order);
    }
    all[..n].sort_unstable_by(order);
}

/// Samples from the unnormalized probabilities `exp((logit - max) / temperature)` after min-p (arXiv:2407.01082), top-k
/// (Fan et al. 2018) and top-p (Holtzman et al. 2020).
fn sample_softmax(logits: &mut [f32], sampling: &Sampling, position: usize) -> usize {
    let argmax = argmax(logits);
    let (top, inverse_temperature) = (logits[argmax], 1.0 / sampling.temperature);
    // The most probable token has weight 1, so `min_p` compares with weights directly.
    for x in logits.iter_mut() {
        let weight = exp((*x - top) * inverse_temperature);
        *x = if weight >= sampling.min_p { weight } else { 0.0 };
    }
    let weights = logits;
    let quantile = uniform(sampling.seed, position as u64);
    if sampling.top_k == 0 && sampling.top_p >= 1.0 {
        return inverse_cdf(weights, quantile).unwrap_or(argmax);
    }
    let mut candidates: Vec<(u32, f32)> = (0..).zip(weights.iter().copied()).filter(|(_, w)| *w > 0.0).collect();
    let top_k = sampling.top_k as usize;
    if top_k > 0 && top_k < candidates.len() {
        partial_sort(&mut candidates, top_k);
        candidates.truncate(top_k);
    }
    if sampling.top_p < 1.0 {
        top_p(&mut candidates, sampling.top_p);
    }
    // In the order of ids, so that the choice does not depend on how top-k and top-p sorted.
    candidates.sort_unstable_by_key(|(id, _)| *id);
    let weights: Vec<f32> = candidates.iter().map(|(_, w)| *w).collect();
    inverse_cdf(&weights, quantile).map_or(argmax, |index| candidates[index].0 as usize)
}

/// Inverse transform sampling: the first index at which the cumulative weight exceeds `quantile` (in `0..1`) times the total, or
/// `None` if no weight is positive. Weights are summed in blocks, so that only one block is searched element by element.
fn inverse_cdf(weights: &[f32], quantile: f64) -> Option<usize> {
    const BLOCK: usize = 16 * LANES;
    let sum = |block: &[f32]| {
        let (vectors, rest) = block.as_chunks::<LANES>();
        let mut sums = [0f32; LANES];
        for vector in vectors {
            sums.iter_mut().zip(vector).for_each(|(sum, w)| *sum += w);
        }
        sums.iter().chain(rest).map(|&w| f64::from(w)).sum::<f64>()
    };
    let sums: Vec<f64> = weights.chunks(BLOCK).map(sum).collect();
    let mut left = quantile * sums.iter().sum::<f64>();
    for (block, sum) in sums.iter().enumerate() {
        if left >= *sum {
            left -= sum;
            continue;
        }
        for (index, &w) in weights.iter().enumerate().skip(block * BLOCK).take(BLOCK) {
            left -= f64::from(w);
            if left < 0.0 {
                return Some(index);
            }
        }
    }
    // Rounding may leave a remainder; it belongs to the last positive weight.
    weights.iter().rposition(|&w| w > 0.0)
}

/// `e^x` for `x <= 0` with a relative error of at most 1e-6; 0 below -87. It has no branch and no call, so that the compiler
/// vectorizes its loop. Range reduction after Cody and Waite (1980), then the Taylor polynomial of degree 6.
fn exp(x: f32) -> f32 {
    const ROUNDED: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
    let shifted = x.max(-87.0) * std::f32::consts::LOG2_E + ROUNDED;
    let n = shifted - ROUNDED;
    let r = x.max(-87.0) - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = ((p * r + 0.5) * r + 1.0) * r + 1.0;
    let scaled = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x < -87.0 { 0.0 } else { scaled }
}

/// Keeps the most probable candidates whose weights sum to at least `p` of the total; at least one.
fn top_p(candidates: &mut Vec<(u32, f32)>, p: f32) {
    let enough = candidates.iter().map(|(_, w)| f64::from(*w)).sum::<f64>() * f64::from(p);
    let mut sorted = PARTIAL_SORT_MIN.min(candidates.len());
    loop {
        partial_sort(candidates, sorted);
        let mut reached = 0.0;
        let count = candidates[..sorted].iter().position(|(_, w)| {
            reached += f64::from(*w);
            reached >= enough
        });
        match count {
            Some(last) => return candidates.truncate(last + 1),
            None if sorted == candidates.len() => return,
            None => sorted = (sorted * 4).min(candidates.len()),
        }
    }
}

/// A number in `0..1`: a counter-based generator with SplitMix64's finalizer (Steele, Lea and Flood 2014) over seed and
/// position.
fn uniform(seed: u64, position: u64) -> f64 {
    let mixed = mix(seed ^ mix(position.wrapping_add(0x9e37_79b9_7f4a_7c15)));
    (mixed >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each of four tokens (probabilities 1/10, 2/10, 3/10, 4/10) is sampled at 10,000 positions.
    fn frequencies(sampling: Sampling) -> [f64; 4] {
        let mut sampler = Sampler::new(Sampling { seed: 7, ..sampling }, None);
        let mut counts = [0.0; 4];
        for position in 0..10_000 {
            let mut logits = [1f32, 2.0, 3.0, 4.0].map(f32::ln);
            counts[sampler.sample(&mut logits, &vec![0; position]).unwrap().token as usize] += 1e-4;
        }
        counts
    }

    #[track_caller]
    fn check(sampling: Sampling, expected: [f64; 4]) {
        let got = frequencies(sampling);
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.02 && (b > 0.0) == (*a > 0.0)), "{got:?} is not {expected:?}");
    }

    #[test]
    fn temperature_scales_the_logits_and_zero_is_greedy() {
        check(Sampling::default(), [0.0, 0.0, 0.0, 1.0]);
        check(Sampling { temperature: 1.0, ..Sampling::default() }, [0.1, 0.2, 0.3, 0.4]);
        check(Sampling { temperature: 0.5, ..Sampling::default() }, [1.0 / 30.0, 4.0 / 30.0, 9.0 / 30.0, 16.0 / 30.0]);
    }

    #[test]
    fn top_k_top_p_and_min_p_keep_the_most_probable_tokens() {
        let one = Sampling { temperature: 1.0, ..Sampling::default() };
        check(Sampling { top_k: 2, ..one.clone() }, [0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]);
        check(Sampling { top_p: 0.65, ..one.clone() }, [0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]);
        check(Sampling { top_p: 0.01, ..one.clone() }, [0.0, 0.0, 0.0, 1.0]);
        check(Sampling { min_p: 0.45, ..one }, [0.0, 2.0 / 9.0, 3.0 / 9.0, 4.0 / 9.0]);
    }

    #[test]
    fn exp_is_accurate() {
        for x in [0.0, -0.0, -1e-6, -0.3, -0.35, -1.0, -20.0, -86.9, -87.0] {
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) - want).abs() <= 1e-6 * want, "{x}: {} is not {want}", exp(x));
        }
        assert_eq!([exp(-87.1), exp(f32::NEG_INFINITY)], [0.0, 0.0]);
    }

    #[test]
    fn inverse_cdf_gives_every_token_its_share() {
        let weights: Vec<f32> = (0..1000).map(|i| if i % 3 == 0 { 0.0 } else { 1.0 }).collect();
        let sampled: Vec<usize> = (0..666).map(|n| inverse_cdf(&weights, (f64::from(n) + 0.5) / 666.0).unwrap()).collect();
        assert!(sampled.iter().copied().eq((0..1000).filter(|i| i % 3 != 0)), "{sampled:?}");
        assert_eq!(inverse_cdf(&[0.0; 300], 0.5), None);
        assert_eq!(argmax(&[[0.0; 40], [7.0; 40]].concat()), 40);
    }

    #[test]
    fn a_random_choice_depends_on_seed_and_position_only() {
        let sampling = Sampling { temperature: 1.0, seed: 3, ..Sampling::default() };
        let at = |seed, position: usize| {
            let mut logits: Vec<f32> = (0..1000).map(|i| (i as f32).sin()).collect();
            Sampler::new(Sampling { seed, ..sampling.clone() }, None).sample(&mut logits, &vec![1; position]).unwrap().token
        };
        assert_eq!(at(3, 10), at(3, 10));
        let tokens: std::collections::BTreeSet<_> =
            (0..50).map(|position| at(3, position)).chain((0..50).map(|seed| at(seed, 3))).collect();
        assert!(tokens.len() > 80, "choices repeat: {}", tokens.len());
    }

    #[test]
    fn log_probabilities_are_of_the_raw_logits() {
        let mut sampler = Sampler::new(Sampling { logit_bias: vec![(0, 100.0)], ..Sampling::default() }, Some(2));
        let sampled = sampler.sample(&mut [1f32, 2.0, 3.0, 4.0].map(f32::ln), &[]).unwrap();
        assert_eq!(sampled.token, 0);
        assert!((sampled.logprob - 0.1f32.ln()).abs() < 1e-6);
        assert_eq!(sampled.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [3, 2]);
    }

    #[test]
    fn top_p_sorts_further_candidates_if_needed() {
        let mut candidates: Vec<(u32, f32)> = (0..2000).map(|i| (i, 1.0)).collect();
        top_p(&mut candidates, 0.9);
        assert_eq!(candidates.len(), 1800);
    }

    #[test]
    fn a_non_finite_logit_is_an_error_at_any_index() {
        for count in [1, 16, 40] {
            for (index, wrong) in (0..count).flat_map(|index| [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(|wrong| (index, wrong))) {
                let mut logits = vec![f32::MAX; count];
                assert!(Sampler::new(Sampling::default(), None).sample(&mut logits, &[]).is_ok());
                logits[index] = wrong;
                let sampled = Sampler::new(Sampling::default(), None).sample(&mut logits, &[]);
                assert_eq!(sampled, Err(Error::NonFiniteLogits), "{wrong} at {index} of {count}");
            }
        }
    }
}
