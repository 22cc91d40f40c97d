//! A backend without arithmetic, for tests of what schedules it: a row of a tensor is the tokens that led to it.

use super::{Backend, BackendInfo, Choice, HostTokens, Input, LinearPart, SampleRequest, Span};
use crate::models::network::{Activation, Attention, DecoderSpec, NormSpec};
use crate::models::weights::Matrix;
use crate::models::{Error, Result};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// The logits of a row, after the tokens of its sequence.
pub(crate) enum Logits {
    /// The largest is this token's.
    Token(u32),
    NotANumber,
    /// None at all, at which a processor that looks one up panics.
    Missing,
}

/// The spans of one step, as position and number of tokens.
type StepSpans = Vec<(usize, usize)>;

#[derive(Clone)]
pub(crate) struct Script {
    pub(crate) next: fn(&[u32]) -> Logits,
    pub(crate) runs_ahead: bool,
    pub(crate) steps: Rc<RefCell<Vec<StepSpans>>>,
    pub(crate) reads: Rc<Cell<usize>>,
    pub(crate) forks: Rc<Cell<usize>>,
    /// From now on every `read` fails.
    pub(crate) fails: Rc<Cell<bool>>,
    vocab_size: usize,
}

impl Script {
    pub(crate) fn new(spec: &DecoderSpec, next: fn(&[u32]) -> Logits, runs_ahead: bool) -> Self {
        Self {
            next,
            runs_ahead,
            steps: Rc::default(),
            reads: Rc::default(),
            forks: Rc::default(),
            fails: Rc::default(),
            vocab_size: spec.vocab_size,
        }
    }

    fn logits(&self, tokens: &[u32]) -> Vec<f32> {
        let mut logits = vec![0.0; self.vocab_size];
        match (self.next)(tokens) {
            Logits::Token(token) => logits[token as usize] = 1.0,
            Logits::NotANumber => logits[7] = f32::NAN,
            Logits::Missing => logits.clear(),
        }
        logits
    }
}

fn ids(input: &Input<'_, Script>) -> Vec<u32> {
    match input {
        Input::Ids(ids) => ids.to_vec(),
        Input::Sampled(tokens, row) => vec![tokens.id(*row)],
    }
}

impl Backend for Script {
    type Settings = Self;
    type Linear = ();
    type Norm = ();
    type Tensor = Vec<Vec<u32>>;
    /// The tokens of a sequence stand for their keys and values.
    type Cache = Vec<u32>;
    type Tokens = HostTokens;
    type Step = ();

    fn open(_: &DecoderSpec, settings: &Self) -> Result<Self> {
        Ok(settings.clone())
    }
    fn describe(_: &Self) -> Result<BackendInfo> {
        Ok(BackendInfo { name: "script".into(), threads: 1, is_reference: true })
    }
    fn free_memory() -> Option<u64> {
        None
    }
    fn kv_bytes_per_token(_: &DecoderSpec, _: &Self) -> u64 {
        1
    }
    fn weight_bytes(_: &Matrix<'_>) -> usize {
        0
    }
    fn runs_ahead(&self) -> bool {
        self.runs_ahead
    }
    fn linear(&mut self, _: Vec<LinearPart<'_>>) -> Result<()> {
        Ok(())
    }
    fn norm_weight(&mut self, _: Vec<f32>, _: NormSpec) -> Result<()> {
        Ok(())
    }

    fn cache(&mut self) -> Vec<u32> {
        Vec::new()
    }
    fn fork(&mut self, cache: &Vec<u32>, length: usize) -> Vec<u32> {
        self.forks.set(self.forks.get() + 1);
        cache[..length].to_vec()
    }
    fn truncate(&mut self, cache: &mut Vec<u32>, length: usize) {
        assert!(length <= cache.len(), "truncating cannot lengthen");
        cache.truncate(length);
    }
    fn cache_bytes(&self, cache: &Vec<u32>) -> usize {
        cache.len()
    }

    fn begin(&mut self, spans: &mut [Span<'_, Self>]) {
        for span in spans.iter() {
            assert_eq!(span.cache.len(), span.position, "a span continues where its cache ends");
            assert!(span.rows() > 0, "a span has new tokens");
        }
        self.steps.borrow_mut().push(spans.iter().map(|span| (span.position, span.rows())).collect());
    }
    fn embed(&mut self, (): &(), spans: &[Span<'_, Self>]) -> Vec<Vec<u32>> {
        spans.iter().flat_map(|span| ids(&span.input)).map(|id| vec![id]).collect()
    }
    fn norm(&mut self, x: &Vec<Vec<u32>>, (): &()) -> Vec<Vec<u32>> {
        x.clone()
    }
    fn project<const N: usize>(&mut self, x: &Vec<Vec<u32>>, (): &()) -> [Vec<Vec<u32>>; N] {
        std::array::from_fn(|_| x.clone())
    }
    fn attend(
        &mut self,
        [q, ..]: [Vec<Vec<u32>>; 3],
        _: &Attention<()>,
        layer: usize,
        (): &(),
        spans: &mut [Span<'_, Self>],
    ) -> Vec<Vec<u32>> {
        let (mut rows, mut attended) = (q.into_iter(), Vec::new());
        for span in spans {
            for (row, end) in rows.by_ref().take(span.rows()).zip(span.position + 1..) {
                if layer == 0 {
                    span.cache.extend(row);
                }
                attended.push(span.cache[..end].to_vec());
            }
        }
        attended
    }
    fn gate(&mut self, gate: Vec<Vec<u32>>, _: Vec<Vec<u32>>, _: Activation) -> Vec<Vec<u32>> {
        gate
    }
    fn add(&mut self, _: Vec<Vec<u32>>, y: Vec<Vec<u32>>) -> Vec<Vec<u32>> {
        y
    }
    fn select(&mut self, x: Vec<Vec<u32>>, rows: &[usize]) -> Vec<Vec<u32>> {
        rows.iter().map(|&row| x[row].clone()).collect()
    }
    fn sample(&mut self, logits: Vec<Vec<u32>>, requests: &mut [SampleRequest<'_, Self>]) -> HostTokens {
        assert_eq!(logits.len(), requests.len(), "one request for each row");
        let choose = |(row, request): (&Vec<u32>, &mut SampleRequest<'_, Self>)| {
            let tokens = request.history();
            assert_eq!(**row, *tokens, "a row is computed from the tokens that its sampler looks back at");
            request.sampler.sample(&mut self.logits(row), &tokens)
        };
        HostTokens(logits.iter().zip(requests).map(choose).collect())
    }

    fn read(&mut self, tokens: HostTokens) -> Result<Vec<Choice>> {
        self.reads.set(self.reads.get() + 1);
        if self.fails.get() { Err(Error::Unsupported("out of script".into())) } else { Ok(tokens.0) }
    }
    fn to_host(&mut self, x: &Vec<Vec<u32>>) -> Result<Vec<Vec<f32>>> {
        Ok(x.iter().map(|row| self.logits(row)).collect())
    }
}
