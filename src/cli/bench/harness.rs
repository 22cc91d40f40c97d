//! Runs one model in this process: real weights, the whole forward pass, greedy sampling.

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
    /// A long sequence, kept because its prefill takes long.
    long_sequence: Option<Sequence>,
    pub(super) size: ModelSize,
}

/// The sizes of a model that the ratios need.
#[derive(Clone, Copy)]
pub(super) struct ModelSize {
    /// Bytes of all packed weights, and of those that one decode step reads.
    pub(super) weight_bytes: u64,
    pub(super) step_bytes: u64,
    /// Multiply-accumulates per token in the layers, and in the head, which runs only for sampled positions.
    pub(super) layer_macs: u64,
    pub(super) head_macs: u64,
    pub(super) context: usize,
    /// Bytes of keys and values per token.
    pub(super) kv_bytes_per_token: u64,
}

/// A sequence under decoding. Its tokens are the model's own, so that their data is realistic.
struct Sequence {
    tokens: Vec<u32>,
    computed: usize,
    cache: <Native as Backend>::Cache,
    sampler: Sampler,
}

/// Shortest time of a measurement: long enough to detect other load on the machine.
const SAMPLE_TIME: Duration = Duration::from_millis(400);
/// Prompt tokens per step.
const PREFILL_CHUNK: usize = 512;

impl Harness {
    pub(super) fn load(source: &ModelSource, embedded: Embedded, activations: Activations) -> Result<Self> {
        let files = Files::open(source, Some(embedded))?;
        let (spec, tensors) = (DecoderSpec::parse(&files)?, Tensors::open(&files)?);
        let settings = CpuSettings { threads: 0, activations };
        let threads = Native::describe(&settings)?.threads;
        let mut backend = Native::open(&spec, &settings)?;
        let weight_bytes = Decoder::<Native>::weight_bytes(&spec, &tensors)?;
        let kv_bytes_per_token = Native::kv_bytes_per_token(&spec, &settings);
        let context = spec.context_length;
        let mut size = ModelSize { weight_bytes, step_bytes: weight_bytes, layer_macs: 0, head_macs: 0, context, kv_bytes_per_token };
        let (embedding, head) = (spec.names.embedding, if spec.tied { spec.names.embedding } else { spec.names.lm_head });
        let mut weight_samples = WeightSamples::default();
        for parameter in spec.parameters() {
            let Parameter::Matrix { name, rows, columns } = parameter else { continue };
            let matrix = tensors.matrix(&name, rows, columns, spec.quantization(&name))?;
            if name == head {
                size.head_macs = (rows * columns) as u64;
            } else if name == embedding {
                // A step looks up a few rows of it.
                size.step_bytes -= Native::weight_bytes(&matrix) as u64;
            } else {
                size.layer_macs += (rows * columns) as u64;
                weight_samples.add(&matrix, &mut backend)?;
            }
        }
        let decoder = Decoder::load(spec, &tensors, backend, &mut |_, _| {})?;
        Ok(Self { decoder, activations, threads, weight_samples, long_sequence: None, size })
    }

    /// Sets the number of compute threads.
    pub(super) fn set_threads(&mut self, threads: usize) -> Result<()> {
        if threads != self.threads {
            self.decoder.backend =
                Native::open(&self.decoder.spec, &CpuSettings { threads: threads as u32, activations: self.activations })?;
            self.threads = threads;
        }
        Ok(())
    }

    /// Multiply-accumulates per second of the matmul kernels alone.
    pub(super) fn matmul_rate(&mut self) -> f64 {
        self.weight_samples.matmul_rate(&mut self.decoder.backend)
    }

    fn sequence(&mut self, tokens: usize) -> Sequence {
        let vocab_size = self.decoder.spec.vocab_size;
        Sequence {
            tokens: (0..tokens).map(|i| ((i * 7919 + 13) % vocab_size.min(10_000)) as u32).collect(),
            computed: 0,
            cache: self.decoder.backend.cache(),
            sampler: Sampler::new(Sampling { temperature: 0.0, ..Sampling::default() }, None),
        }
    }

    /// One step over the tokens that each sequence has not computed yet, at most `chunk` of each.
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
        for (sequence, (end, complete)) in sequences.iter_mut().zip(ends) {
            sequence.computed = end;
            if complete {
                sequence
                    .tokens
                    .push(choices.next().expect("one for each complete sequence").expect("no panic").expect("finite logits").token);
            }
        }
    }

    /// Prefills a sequence except its last token.
    fn prefill_sequence(&mut self, sequence: &mut Sequence) {
        let context = sequence.tokens.len() - 1;
        let last = sequence.tokens.pop().expect("a sequence has tokens");
        while sequence.computed < context {
            self.step(std::slice::from_mut(sequence), PREFILL_CHUNK);
        }
        sequence.tokens.truncate(context);
        sequence.tokens.push(last);
    }

    /// Truncates a sequence to `tokens`, of which `computed` stay in the KV cache.
    fn rewind(&mut self, sequence: &mut Sequence, tokens: usize, computed: usize) {
        sequence.tokens.truncate(tokens);
        sequence.computed = computed;
        self.decoder.backend.truncate(&mut sequence.cache, computed);
    }

    /// Tokens per second of the prefill of a prompt with `tokens` tokens.
    pub(super) fn prefill(&mut self, tokens: usize) -> f64 {
        let (mut read, mut time) = (0, Duration::ZERO);
        // A warm-up step allocates the buffers.
        let mut first = [self.sequence(tokens.min(PREFILL_CHUNK))];
        self.step(&mut first, PREFILL_CHUNK);
        while time < SAMPLE_TIME {
            let mut sequences = [self.sequence(tokens)];
            let start = Instant::now();
            while sequences[0].computed < tokens {
                self.step(&mut sequences, PREFILL_CHUNK);
            }
            time += start.elapsed();
            read += tokens;
        }
        read as f64 / time.as_secs_f64()
    }

    /// Tokens per second of `sequences` sequences that each decode `tokens` tokens after `context` tokens.
    pub(super) fn decode(&mut self, sequences: usize, context: usize, tokens: usize) -> f64 {
        let mut sequences: Vec<Sequence> = (0..sequences).map(|_| self.sequence(context)).collect();
        sequences.iter_mut().for_each(|sequence| self.prefill_sequence(sequence));
        self.decode_sequences(&mut sequences, tokens)
    }

    /// As `decode` of one sequence, which is kept for the next measurement.
    pub(super) fn decode_deep(&mut self, context: usize, tokens: usize) -> f64 {
        let sequence = match self.long_sequence.take() {
            Some(sequence) => sequence,
            None => {
                let mut sequence = self.sequence(context);
                self.prefill_sequence(&mut sequence);
                sequence
            }
        };
        let mut sequences = [sequence];
        let rate = self.decode_sequences(&mut sequences, tokens);
        self.long_sequence = sequences.into_iter().next();
        rate
    }

    fn decode_sequences(&mut self, sequences: &mut [Sequence], tokens: usize) -> f64 {
        let context = sequences[0].tokens.len();
        let (mut written, mut time) = (0, Duration::ZERO);
        self.step(sequences, 1);
        while time < SAMPLE_TIME {
            sequences.iter_mut().for_each(|sequence| self.rewind(sequence, context, context - 1));
            let start = Instant::now();
            (0..tokens).for_each(|_| self.step(sequences, 1));
            time += start.elapsed();
            written += sequences.len() * tokens;
        }
        sequences.iter_mut().for_each(|sequence| self.rewind(sequence, context, context - 1));
        written as f64 / time.as_secs_f64()
    }

    /// Seconds of a step with `rows` tokens of one sequence after `context` tokens, as in speculative decoding.
    pub(super) fn rows(&mut self, rows: usize, context: usize) -> f64 {
        let mut sequence = self.sequence(context + 1);
        self.prefill_sequence(&mut sequence);
        sequence.tokens = self.sequence(context + rows).tokens;
        let (mut seconds, begin) = (Vec::new(), Instant::now());
        while begin.elapsed() < SAMPLE_TIME {
            self.rewind(&mut sequence, context + rows, context);
            let start = Instant::now();
            self.step(std::slice::from_mut(&mut sequence), rows);
            seconds.push(start.elapsed().as_secs_f64());
        }
        median(&mut seconds)
    }
}
