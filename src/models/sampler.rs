//! From logits to one token: processors, temperature, the cuts, the draw.

use super::logits::{Processor, processors};
use super::{Sampled, Sampling};
use crate::faults::{self, Point};

/// Candidates that are sorted first when a cut needs an order; nearly always enough.
const SORTED_FIRST: usize = 256;

/// One sequence's choice of tokens. The draw depends on seed and position alone, so it is the same in any
/// batch and after any restart.
pub struct Sampler {
    sampling: Sampling,
    processors: Vec<Processor>,
    /// Report log-probabilities, with this many alternatives.
    logprobs: Option<u8>,
}

impl Sampler {
    pub fn new(sampling: Sampling, logprobs: Option<u8>) -> Self {
        Self { processors: processors(&sampling), sampling, logprobs }
    }

    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// `tokens`: the prompt's and the answer's so far; their number is the position that is drawn for.
    pub fn sample(&mut self, logits: &mut [f32], tokens: &[u32]) -> Sampled {
        let logsum = self.logprobs.map(|_| logsumexp(logits));
        let top = self.logprobs.map_or(Vec::new(), |n| likeliest(logits, n as usize, logsum.unwrap_or(0.0)));
        let raw = if logsum.is_some() && !self.processors.is_empty() { logits.to_vec() } else { Vec::new() };
        for processor in &self.processors {
            faults::at(Point::Processor, Some(self.sampling.seed));
            processor.apply(logits, tokens);
        }
        faults::at(Point::Sampler, Some(self.sampling.seed));
        let token = if self.sampling.temperature == 0.0 { argmax(logits) } else { draw(logits, &self.sampling, tokens.len()) };
        let logit = raw.get(token).copied().unwrap_or(logits[token]);
        Sampled { token: token as u32, logprob: logsum.map_or(0.0, |logsum| logit - logsum), top }
    }
}

/// The first of the largest.
fn argmax(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, &x) in logits.iter().enumerate() {
        if x > logits[best] {
            best = i;
        }
    }
    best
}

fn logsumexp(logits: &[f32]) -> f32 {
    let top = logits[argmax(logits)];
    top + logits.iter().map(|x| f64::from((x - top).exp())).sum::<f64>().ln() as f32
}

/// The `n` likeliest tokens and their log-probabilities.
fn likeliest(logits: &[f32], n: usize, logsum: f32) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = logits.iter().enumerate().map(|(i, x)| (i as u32, x - logsum)).collect();
    sort_first(&mut all, n);
    all.truncate(n);
    all
}

/// Brings the `n` largest to the front, in order; among equals the smaller id comes first.
fn sort_first(all: &mut [(u32, f32)], n: usize) {
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

/// Temperature, top-k, top-p, min-p, then the draw: over weights `e^((logit - largest) / temperature)`.
fn draw(logits: &[f32], sampling: &Sampling, position: usize) -> usize {
    let top = logits[argmax(logits)];
    let weight = |x: f32| ((x - top) / sampling.temperature).exp();
    // The likeliest weighs 1, so min-p is a bound on weights.
    let mut kept: Vec<(u32, f32)> =
        logits.iter().enumerate().map(|(i, &x)| (i as u32, weight(x))).filter(|(_, w)| *w >= sampling.min_p).collect();
    let top_k = sampling.top_k as usize;
    if top_k > 0 && top_k < kept.len() {
        sort_first(&mut kept, top_k);
        kept.truncate(top_k);
    }
    if sampling.top_p < 1.0 {
        keep_mass(&mut kept, sampling.top_p);
    }
    // In the order of ids, so that sorting for a cut doesn't change the draw.
    kept.sort_unstable_by_key(|(id, _)| *id);
    let total: f64 = kept.iter().map(|(_, w)| f64::from(*w)).sum();
    let mut left = uniform(sampling.seed, position as u64) * total;
    for &(id, w) in &kept {
        left -= f64::from(w);
        if left < 0.0 {
            return id as usize;
        }
    }
    kept.last().map_or_else(|| argmax(logits), |(id, _)| *id as usize)
}

/// Keeps the likeliest that together reach `mass` of the whole; at least one.
fn keep_mass(kept: &mut Vec<(u32, f32)>, mass: f32) {
    let enough = kept.iter().map(|(_, w)| f64::from(*w)).sum::<f64>() * f64::from(mass);
    let mut sorted = SORTED_FIRST.min(kept.len());
    loop {
        sort_first(kept, sorted);
        let mut reached = 0.0;
        let count = kept[..sorted].iter().position(|(_, w)| {
            reached += f64::from(*w);
            reached >= enough
        });
        match count {
            Some(last) => return kept.truncate(last + 1),
            None if sorted == kept.len() => return,
            None => sorted = (sorted * 4).min(kept.len()),
        }
    }
}

/// A number in 0..1 from a counter: SplitMix64's finalizer (Steele, Lea, Flood 2014) over seed and position.
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

    /// How often each of four tokens (probabilities 1/10, 2/10, 3/10, 4/10) is drawn at 10,000 positions.
    fn shares(sampling: Sampling) -> [f64; 4] {
        let mut sampler = Sampler::new(Sampling { seed: 7, ..sampling }, None);
        let mut counts = [0.0; 4];
        for position in 0..10_000 {
            let mut logits = [1f32, 2.0, 3.0, 4.0].map(f32::ln);
            counts[sampler.sample(&mut logits, &vec![0; position]).token as usize] += 1e-4;
        }
        counts
    }

    #[track_caller]
    fn check(sampling: Sampling, expected: [f64; 4]) {
        let got = shares(sampling);
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.02 && (b > 0.0) == (*a > 0.0)), "{got:?} is not {expected:?}");
    }

    #[test]
    fn temperature_is_a_sampler_and_zero_is_greedy() {
        check(Sampling::default(), [0.0, 0.0, 0.0, 1.0]);
        check(Sampling { temperature: 1.0, ..Sampling::default() }, [0.1, 0.2, 0.3, 0.4]);
        check(Sampling { temperature: 0.5, ..Sampling::default() }, [1.0 / 30.0, 4.0 / 30.0, 9.0 / 30.0, 16.0 / 30.0]);
    }

    #[test]
    fn cuts_keep_the_likeliest() {
        let one = Sampling { temperature: 1.0, ..Sampling::default() };
        check(Sampling { top_k: 2, ..one.clone() }, [0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]);
        check(Sampling { top_p: 0.65, ..one.clone() }, [0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]);
        check(Sampling { top_p: 0.01, ..one.clone() }, [0.0, 0.0, 0.0, 1.0]);
        check(Sampling { min_p: 0.45, ..one }, [0.0, 2.0 / 9.0, 3.0 / 9.0, 4.0 / 9.0]);
    }

    #[test]
    fn a_draw_depends_on_seed_and_position_only() {
        let sampling = Sampling { temperature: 1.0, seed: 3, ..Sampling::default() };
        let at = |seed, position: usize| {
            let mut logits: Vec<f32> = (0..1000).map(|i| (i as f32).sin()).collect();
            Sampler::new(Sampling { seed, ..sampling.clone() }, None).sample(&mut logits, &vec![1; position]).token
        };
        assert_eq!(at(3, 10), at(3, 10));
        let tokens: std::collections::BTreeSet<_> =
            (0..50).map(|position| at(3, position)).chain((0..50).map(|seed| at(seed, 3))).collect();
        assert!(tokens.len() > 80, "draws repeat: {}", tokens.len());
    }

    #[test]
    fn log_probabilities_are_the_models_own() {
        let mut sampler = Sampler::new(Sampling { logit_bias: vec![(0, 100.0)], ..Sampling::default() }, Some(2));
        let sampled = sampler.sample(&mut [1f32, 2.0, 3.0, 4.0].map(f32::ln), &[]);
        assert_eq!(sampled.token, 0);
        assert!((sampled.logprob - 0.1f32.ln()).abs() < 1e-6);
        assert_eq!(sampled.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [3, 2]);
    }

    #[test]
    fn a_wide_top_p_looks_beyond_the_first_candidates() {
        let mut kept: Vec<(u32, f32)> = (0..2000).map(|i| (i, 1.0)).collect();
        keep_mass(&mut kept, 0.9);
        assert_eq!(kept.len(), 1800);
    }
}
