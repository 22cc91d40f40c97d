//! The measurements of each part, and the ratios between them.

use super::harness::ModelSize;
use super::llama_cpp::Task;
use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Part {
    /// Prefill of 512 tokens
    Prefill,
    /// Decoding one sequence
    Decode,
    /// Decoding eight sequences in one batch
    Eight,
    /// Decoding after a context of 4,096 tokens
    Deep,
    /// A step with eight tokens of one sequence, as in speculative decoding, against one token
    Rows,
    /// Decoding while another process keeps one processor busy, with one and two threads
    Beside,
    /// Load time, time to the first token of a new process, and memory of a worker process
    Start,
}

/// What a measurement runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Workload {
    Prefill(usize),
    Decode { sequences: usize, context: usize, tokens: usize },
    Deep { context: usize, tokens: usize },
    Rows(usize),
    Matmul,
    ReadMemory,
    Peer(Task),
    FirstToken,
    Load,
    Memory,
    Peak,
}

pub(super) struct Measurement {
    pub(super) name: String,
    pub(super) unit: &'static str,
    pub(super) work: Workload,
    pub(super) threads: usize,
    /// While a `CpuHog` runs.
    pub(super) beside: bool,
}

/// The ratio `scale * of / to` of two entries' medians.
pub(super) struct Compare {
    pub(super) name: &'static str,
    pub(super) of: usize,
    pub(super) to: usize,
    pub(super) scale: f64,
}

pub(super) struct Plan {
    pub(super) part: Part,
    pub(super) threads: usize,
    pub(super) entries: Vec<Measurement>,
    pub(super) compares: Vec<Compare>,
}

impl Part {
    /// The thread counts to measure with, given those of `--threads`.
    pub(super) fn threads(self, asked: &[usize]) -> &[usize] {
        match self {
            // Its measurements have thread counts of their own.
            Self::Beside => &[2],
            Self::Prefill | Self::Decode | Self::Eight | Self::Deep | Self::Rows | Self::Start => asked,
        }
    }

    /// Why this part can't be measured with this number of processors.
    pub(super) fn left_out(self, processors: usize) -> Option<&'static str> {
        (self == Self::Beside && processors < 2).then_some("it needs two processors")
    }
}

/// Tokens of context before a short decode.
const CONTEXT: usize = 16;
const TOKENS: usize = 48;
const GIGA: f64 = 1e9;

impl Plan {
    /// `None` where the part has nothing to measure.
    pub(super) fn new(part: Part, threads: usize, size: &ModelSize, can: impl Fn(Task) -> bool) -> Option<Self> {
        let mut plan = Self { part, threads, entries: Vec::new(), compares: Vec::new() };
        match part {
            Part::Prefill => {
                let tokens = Some(512.min(size.context - 1)).filter(|&tokens| tokens > 0)?;
                plan.add(format!("prefill of {tokens}"), "tokens/s", Workload::Prefill(tokens));
                // The head runs only for the last token.
                let products = size.layer_macs as f64 + size.head_macs as f64 / tokens as f64;
                plan.roofline(
                    "kernels on weights in the cache",
                    "GMAC/s",
                    Workload::Matmul,
                    "prefill's share of its kernels' speed",
                    products,
                );
                plan.peer("prefill to llama.cpp's", Task::Prompt(tokens), can);
            }
            Part::Decode => {
                plan.add(format!("decode of {TOKENS}"), "tokens/s", Workload::Decode { sequences: 1, context: CONTEXT, tokens: TOKENS });
                plan.roofline("memory, read only", "GB/s", Workload::ReadMemory, "decode's share of the bandwidth", size.step_bytes as f64);
                plan.peer("decode to llama.cpp's", Task::Generate { depth: 0, tokens: TOKENS }, can);
            }
            Part::Eight => {
                let (sequences, tokens) = (8, TOKENS / 2);
                plan.add("decode of 8 together".into(), "tokens/s", Workload::Decode { sequences, context: CONTEXT, tokens });
                plan.peer("8 together to llama.cpp's", Task::Batch { sequences, prompt: CONTEXT, tokens }, can);
            }
            Part::Deep => {
                let (context, tokens) = (4096.min(size.context.checked_sub(TOKENS).filter(|&left| left > 0)?), TOKENS / 3);
                plan.add(format!("decode behind {context}"), "tokens/s", Workload::Deep { context, tokens });
                let bytes = size.step_bytes + size.kv_bytes_per_token * context as u64;
                plan.roofline("memory, read only", "GB/s", Workload::ReadMemory, "deep decode's share of the bandwidth", bytes as f64);
                plan.peer("deep decode to llama.cpp's", Task::Generate { depth: context, tokens }, can);
            }
            Part::Rows => {
                plan.add("a step of 8 rows of one text".into(), "ms", Workload::Rows(8));
                plan.add("a step of 1 row".into(), "ms", Workload::Rows(1));
                plan.compare("8 rows' time to 1 row's", 0, 1);
            }
            Part::Beside => {
                let work = Workload::Decode { sequences: 1, context: CONTEXT, tokens: TOKENS };
                for (name, threads, beside) in [("2 threads beside", 2, true), ("1 thread beside", 1, true), ("2 threads alone", 2, false)]
                {
                    plan.entries.push(Measurement { name: format!("decode, {name}"), unit: "tokens/s", work, threads, beside });
                }
                plan.compare("beside a busy processor, 2 threads to 1", 0, 1);
                plan.compare("2 threads, beside a busy processor to alone", 0, 2);
            }
            Part::Start => {
                plan.add("first token of a new `stdio` process".into(), "ms", Workload::FirstToken);
                plan.add("load in a new worker".into(), "ms", Workload::Load);
                plan.add("memory beyond weights, keys and values".into(), "MB", Workload::Memory);
                plan.add("  at the worst moment, the mapped file with it".into(), "MB", Workload::Peak);
            }
        }
        Some(plan)
    }

    fn add(&mut self, name: String, unit: &'static str, work: Workload) {
        self.entries.push(Measurement { name, unit, work, threads: self.threads, beside: false });
    }

    /// Adds a roofline in giga-units per second, and the share of it that is used. A token needs `each` units.
    fn roofline(&mut self, name: &str, unit: &'static str, work: Workload, share: &'static str, each: f64) {
        self.add(name.into(), unit, work);
        self.compares.push(Compare { name: share, of: 0, to: self.entries.len() - 1, scale: each / GIGA });
    }

    fn peer(&mut self, name: &'static str, task: Task, can: impl Fn(Task) -> bool) {
        if can(task) {
            self.add("llama.cpp".into(), "tokens/s", Workload::Peer(task));
            self.compare(name, 0, self.entries.len() - 1);
        }
    }

    fn compare(&mut self, name: &'static str, of: usize, to: usize) {
        self.compares.push(Compare { name, of, to, scale: 1.0 });
    }
}
