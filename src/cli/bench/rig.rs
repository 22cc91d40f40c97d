//! One model in this process, and the work that is timed: real weights, the whole forward pass, the greedy choice.

use souffleur::actors::{Activations, Embedded, ModelSource};
use souffleur::models::backend::cpu::{Cache, Cpu};
use souffleur::models::backend::{Backend, Draw, Span};
use souffleur::models::network::{Decoder, DecoderSpec};
use souffleur::models::sampler::Sampler;
use souffleur::models::weights::{Files, Tensors};
use souffleur::models::{Result, Sampling};
use std::time::{Duration, Instant};

pub(super) struct Rig {
    decoder: Decoder<Cpu>,
    pub(super) load: Duration,
}

/// A sequence in the making; its tokens are what the model would say, so that they are as likely as real ones.
struct Text {
    tokens: Vec<u32>,
    computed: usize,
    cache: Cache,
    sampler: Sampler,
}

impl Rig {
    pub(super) fn load(source: &ModelSource, embedded: Embedded, threads: usize, activations: Activations) -> Result<Self> {
        let start = Instant::now();
        let files = Files::open(source, Some(embedded))?;
        let spec = DecoderSpec::parse(&files)?;
        let backend = Cpu::new(&spec, threads, activations)?;
        let decoder = Decoder::load(spec, &Tensors::open(&files)?, backend, &mut |_, _| {})?;
        Ok(Self { decoder, load: start.elapsed() })
    }

    pub(super) fn context(&self) -> usize {
        self.decoder.spec.context
    }

    fn text(&mut self, tokens: usize) -> Text {
        let vocabulary = self.decoder.spec.vocabulary;
        Text {
            tokens: (0..tokens).map(|i| ((i * 7919 + 13) % vocabulary.min(10_000)) as u32).collect(),
            computed: 0,
            cache: self.decoder.backend.cache(&self.decoder.spec),
            sampler: Sampler::new(Sampling { temperature: 0.0, ..Sampling::default() }, None),
        }
    }

    /// One step over all that each text has not computed, at most `chunk` of it.
    fn step(&mut self, texts: &mut [Text], chunk: usize) {
        let (mut spans, mut rows, mut draws, mut row) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let mut grown = Vec::new();
        for Text { tokens, computed, cache, sampler } in texts.iter_mut() {
            let end = tokens.len().min(*computed + chunk);
            spans.push(Span { tokens: &tokens[*computed..end], position: *computed, cache });
            row += end - *computed;
            grown.push((end, end == tokens.len()));
            if end == tokens.len() {
                rows.push(row - 1);
                draws.push(Draw { sampler, tokens });
            }
        }
        let logits = self.decoder.step(&mut spans, &rows);
        drop(spans);
        let mut sampled = self.decoder.backend.sample(logits, &mut draws).into_iter();
        for (text, (end, complete)) in texts.iter_mut().zip(grown) {
            text.computed = end;
            if complete {
                text.tokens.push(sampled.next().expect("one for each complete text").expect("a greedy choice").token);
            }
        }
    }

    /// Tokens per second of reading a prompt of `tokens`, 512 in a step.
    pub(super) fn prefill(&mut self, tokens: usize) -> f64 {
        let mut texts = [self.text(tokens)];
        let start = Instant::now();
        while texts[0].computed < tokens {
            self.step(&mut texts, 512);
        }
        tokens as f64 / start.elapsed().as_secs_f64()
    }

    /// Tokens per second of `sequences` that each write `tokens` after `context`.
    pub(super) fn decode(&mut self, sequences: usize, context: usize, tokens: usize) -> f64 {
        let mut texts: Vec<Text> = (0..sequences).map(|_| self.text(context)).collect();
        for text in &mut texts {
            while text.computed < context {
                self.step(std::slice::from_mut(text), 512);
            }
        }
        let start = Instant::now();
        for _ in 0..tokens {
            self.step(&mut texts, 1);
        }
        (sequences * tokens) as f64 / start.elapsed().as_secs_f64()
    }

    /// Seconds of a step with `rows` tokens of one sequence after `context`: a draft that is checked.
    pub(super) fn rows(&mut self, rows: usize, context: usize, times: usize) -> f64 {
        let mut text = self.text(context + rows);
        while text.computed < context {
            let chunk = (context - text.computed).min(512);
            self.step(std::slice::from_mut(&mut text), chunk);
        }
        let mut seconds = Vec::new();
        for _ in 0..times {
            text.tokens.truncate(context + rows);
            text.computed = context;
            self.decoder.backend.truncate(&mut text.cache, context);
            let start = Instant::now();
            self.step(std::slice::from_mut(&mut text), rows);
            seconds.push(start.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        seconds[times / 2]
    }
}
