//! One model in this process, and the work that is timed: real weights, the whole forward pass, the greedy choice.

use super::roofline::WeightSamples;
use super::table::median;
use souffleur::actors::{Activations, CpuSettings, Embedded, ModelSource};
use souffleur::models::backend::{Backend, Native, SampleRequest, Span};
use souffleur::models::network::{Decoder, DecoderSpec};
use souffleur::models::sampler::Sampler;
use souffleur::models::weights::{Files, Parameter, Tensors};
use souffleur::models::{Result, Sampling};
use std::time::{Duration, Instant};

pub(super) struct Harness {
    decoder: Decoder<Native>,
    activations: Activations,
    threads: usize,
    weight_samples: WeightSamples,
    /// A sequence that is long already.
    long_sequence: Option<Sequence>,
    pub(super) size: ModelSize,
}

/// How much a model is.
#[derive(Clone, Copy)]
pub(super) struct ModelSize {
    /// All weights as they lie in memory, and those that one step reads.
    pub(super) weight_bytes: u64,
    pub(super) step_bytes: u64,
    /// Multiplications by weights: of every token, and of one whose next is wanted besides.
    pub(super) token_products: u64,
    pub(super) head_products: u64,
    pub(super) context: usize,
    /// Keys and values of one position.
    pub(super) position_bytes: u64,
}

/// A sequence in the making; its tokens are what the model would say, so that they are as likely as real ones.
struct Sequence {
    tokens: Vec<u32>,
    computed: usize,
    cache: <Native as Backend>::Cache,
    sampler: Sampler,
}

/// A figure is measured for at least this long, so that the load of others can be told from chance.
const TIME: Duration = Duration::from_millis(400);
/// Tokens of a prompt in one step.
const PREFILL_CHUNK: usize = 512;

impl Harness {
    pub(super) fn load(source: &ModelSource, embedded: Embedded, activations: Activations) -> Result<Self> {
        let files = Files::open(source, Some(embedded))?;
        let (spec, tensors) = (DecoderSpec::parse(&files)?, Tensors::open(&files)?);
        let settings = CpuSettings { threads: 0, activations };
        let threads = Native::describe(&settings)?.threads;
        let mut backend = Native::open(&spec, &settings)?;
        let weight_bytes = Decoder::<Native>::weight_bytes(&spec, &tensors)?;
        let position_bytes = Native::kv_bytes_per_token(&spec, &settings);
        let context = spec.context_length;
        let mut size = ModelSize { weight_bytes, step_bytes: weight_bytes, token_products: 0, head_products: 0, context, position_bytes };
        let (embedding, head) = (spec.names.embedding, if spec.tied { spec.names.embedding } else { spec.names.lm_head });
        let mut weight_samples = WeightSamples::default();
        for parameter in spec.parameters() {
            let Parameter::Matrix { base, rows, columns } = parameter else { continue };
            let matrix = tensors.matrix(&base, rows, columns, spec.quantization(&base))?;
            match () {
                () if base == head => size.head_products = (rows * columns) as u64,
                // Looked up, not multiplied by.
                () if base == embedding => size.step_bytes -= Native::weight_bytes(&matrix) as u64,
                () => {
                    size.token_products += (rows * columns) as u64;
                    weight_samples.add(&matrix, &mut backend)?;
                }
            }
        }
        let decoder = Decoder::load(spec, &tensors, backend, &mut |_, _| {})?;
        Ok(Self { decoder, activations, threads, weight_samples, long_sequence: None, size })
    }

    /// Computes on so many threads from now on.
    pub(super) fn compute_on(&mut self, threads: usize) -> Result<()> {
        if threads != self.threads {
            self.decoder.backend =
                Native::open(&self.decoder.spec, &CpuSettings { threads: threads as u32, activations: self.activations })?;
            self.threads = threads;
        }
        Ok(())
    }

    /// Multiplications a second of the kernel alone.
    pub(super) fn multiply(&mut self) -> f64 {
        self.weight_samples.multiply(&mut self.decoder.backend)
    }

    fn text(&mut self, tokens: usize) -> Sequence {
        let vocabulary = self.decoder.spec.vocab_size;
        Sequence {
            tokens: (0..tokens).map(|i| ((i * 7919 + 13) % vocabulary.min(10_000)) as u32).collect(),
            computed: 0,
            cache: self.decoder.backend.cache(),
            sampler: Sampler::new(Sampling { temperature: 0.0, ..Sampling::default() }, None),
        }
    }

    /// One step over all that each text has not computed, at most `chunk` of it.
    fn step(&mut self, sequences: &mut [Sequence], chunk: usize) {
        let (mut spans, mut rows, mut requests, mut row) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let mut ends = Vec::new();
        for Sequence { tokens, computed, cache, sampler } in sequences.iter_mut() {
            let end = tokens.len().min(*computed + chunk);
            spans.push(Span::ids(&tokens[*computed..end], *computed, cache));
            row += end - *computed;
            ends.push((end, end == tokens.len()));
            if end == tokens.len() {
                rows.push(row - 1);
                requests.push(SampleRequest { sampler, tokens, unread: None });
            }
        }
        let logits = self.decoder.step(&mut spans, &rows);
        drop(spans);
        let choices = self.decoder.backend.sample(logits, &mut requests);
        let mut choices = self.decoder.backend.read(choices).expect("this backend does not fail").into_iter();
        for (text, (end, complete)) in sequences.iter_mut().zip(ends) {
            text.computed = end;
            if complete {
                text.tokens.push(choices.next().expect("one for each complete text").expect("no panic").expect("finite logits").token);
            }
        }
    }

    /// Computes all of the text but its last token.
    fn read(&mut self, text: &mut Sequence) {
        let context = text.tokens.len() - 1;
        let last = text.tokens.pop().expect("a text has tokens");
        while text.computed < context {
            self.step(std::slice::from_mut(text), PREFILL_CHUNK);
        }
        text.tokens.truncate(context);
        text.tokens.push(last);
    }

    /// Takes back what was written after `tokens`.
    fn rewind(&mut self, text: &mut Sequence, tokens: usize, computed: usize) {
        text.tokens.truncate(tokens);
        text.computed = computed;
        self.decoder.backend.truncate(&mut text.cache, computed);
    }

    /// Tokens per second of reading a prompt of so many.
    pub(super) fn prefill(&mut self, tokens: usize) -> f64 {
        let (mut read, mut time) = (0, Duration::ZERO);
        // Memory of a step's size, from the step before.
        let mut first = [self.text(tokens.min(PREFILL_CHUNK))];
        self.step(&mut first, PREFILL_CHUNK);
        while time < TIME {
            let mut sequences = [self.text(tokens)];
            let start = Instant::now();
            while sequences[0].computed < tokens {
                self.step(&mut sequences, PREFILL_CHUNK);
            }
            time += start.elapsed();
            read += tokens;
        }
        read as f64 / time.as_secs_f64()
    }

    /// Tokens per second of `sequences` that each write `tokens` behind `context`.
    pub(super) fn decode(&mut self, sequences: usize, context: usize, tokens: usize) -> f64 {
        let mut sequences: Vec<Sequence> = (0..sequences).map(|_| self.text(context)).collect();
        sequences.iter_mut().for_each(|text| self.read(text));
        self.write(&mut sequences, tokens)
    }

    /// As `decode` of one sequence, which is kept for the next time: to read a long one takes long.
    pub(super) fn decode_deep(&mut self, context: usize, tokens: usize) -> f64 {
        let text = match self.long_sequence.take() {
            Some(text) => text,
            None => {
                let mut text = self.text(context);
                self.read(&mut text);
                text
            }
        };
        let mut sequences = [text];
        let rate = self.write(&mut sequences, tokens);
        self.long_sequence = sequences.into_iter().next();
        rate
    }

    fn write(&mut self, sequences: &mut [Sequence], tokens: usize) -> f64 {
        let context = sequences[0].tokens.len();
        let (mut written, mut time) = (0, Duration::ZERO);
        self.step(sequences, 1);
        while time < TIME {
            sequences.iter_mut().for_each(|text| self.rewind(text, context, context - 1));
            let start = Instant::now();
            (0..tokens).for_each(|_| self.step(sequences, 1));
            time += start.elapsed();
            written += sequences.len() * tokens;
        }
        sequences.iter_mut().for_each(|text| self.rewind(text, context, context - 1));
        written as f64 / time.as_secs_f64()
    }

    /// Seconds of a step with `rows` tokens of one sequence behind `context`: a draft that is checked.
    pub(super) fn rows(&mut self, rows: usize, context: usize) -> f64 {
        let mut text = self.text(context + 1);
        self.read(&mut text);
        text.tokens = self.text(context + rows).tokens;
        let (mut seconds, begin) = (Vec::new(), Instant::now());
        while begin.elapsed() < TIME {
            self.rewind(&mut text, context + rows, context);
            let start = Instant::now();
            self.step(std::slice::from_mut(&mut text), rows);
            seconds.push(start.elapsed().as_secs_f64());
        }
        median(&mut seconds)
    }
}
