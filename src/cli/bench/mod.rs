//! `bench`: the speed of a model on this machine, against the machine's roofline and against llama.cpp.

mod cpu_hog;
mod harness;
mod llama_cpp;
mod machine_load;
mod plan;
mod process;
mod roofline;
mod table;

use super::{Log, Models, Precision};
use anyhow::bail;
use clap::{Args, Parser, ValueEnum as _};
use cpu_hog::CpuHog;
use harness::Harness;
use llama_cpp::{LlamaCpp, Program};
use machine_load::LoadMeter;
use plan::{Measurement, Part, Plan, Workload};
use process::Worker;
use roofline::Memory;
use serde_json::json;
use souffleur::actors::{Embedded, ModelSource};
use souffleur::config::Config;
use souffleur::models::CpuSettings;
use souffleur::models::backend::{Backend, Native};
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use table::{Ratio, Sample, Series};

const EXAMPLES: &str = "\
Examples:
  souffleur bench                                      measure the embedded model
  souffleur bench -m coder.gguf --only decode,prefill  measure two parts only
  souffleur bench -m coder.gguf --peer llama-bench=llama.cpp/build/bin/llama-bench

Each part alternates between its measurements and prints the median of each with minimum and maximum. A sample is left out \
and repeated (at most doubling the rounds) when other processes used more than 0.3 processors meanwhile. If no sample was \
quiet, the median is that of all samples and is marked with *.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Bench {
    /// The model: `embedded`, a .gguf file, or a folder with config.json, tokenizer.json and *.safetensors. Repeat it to measure several
    #[arg(short, long = "model", value_name = "MODEL", default_value = "embedded")]
    models: Vec<String>,
    /// Numbers of compute threads to measure, such as 1,4; the part `beside` has its own [default: 1 and the number of cores]
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    threads: Vec<u32>,
    /// Number of samples of each measurement
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Measure only these parts, such as decode,prefill
    #[arg(long, value_name = "PART", value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Precision of the activations that are multiplied with quantized weights: int8 is faster, f32 is exact
    #[arg(long, value_enum, default_value_t = Precision::Int8)]
    activations: Precision,
    /// Also measure llama.cpp: llama-bench=PATH, and llama-batched-bench=PATH for the part `eight`. Can be repeated
    #[arg(long = "peer", value_name = "NAME=PATH", value_parser = llama_cpp::parse)]
    peers: Vec<Program>,
    /// Print one line of JSON for each part, with all samples
    #[arg(long)]
    json: bool,
    /// Keep one processor busy while this process is the parent; `bench` starts it
    #[arg(long, value_name = "PID", hide = true)]
    cpu_hog: Option<u32>,
}

pub(crate) fn run(arguments: Bench, log: &Log, embedded: Embedded) -> anyhow::Result<ExitCode> {
    if let Some(parent) = arguments.cpu_hog {
        return cpu_hog::spin(parent);
    }
    let mut threads: Vec<usize> = arguments.threads.iter().map(|&threads| threads as usize).collect();
    if threads.is_empty() {
        threads = vec![1, Native::describe(&CpuSettings::default())?.threads];
        threads.dedup();
    }
    let parts = if arguments.only.is_empty() { Part::value_variants() } else { &arguments.only };
    let mut ratios = Vec::new();
    for model in &arguments.models {
        let mut bench = Session::start(model, &arguments, log, embedded)?;
        if !arguments.json {
            println(&format!("{}\n", bench.head))?;
        }
        for &part in parts {
            if let Some(reason) = part.left_out(machine_load::processors()) {
                println(&bench.left_out(part, reason, arguments.json))?;
                continue;
            }
            for &threads in part.threads(&threads) {
                let Some(plan) = bench.plan(part, threads) else { continue };
                let all = bench.measure(&plan, arguments.rounds as usize)?;
                let new = compare(&bench.name, &plan, &all);
                println(&if arguments.json { bench.json(&plan, &all, &new) } else { text(&plan, &all, &new) })?;
                ratios.extend(new);
            }
        }
    }
    if !arguments.json && !ratios.is_empty() {
        println(&table::table(&ratios))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The configuration that `serve` has by default, with this model.
fn config(model: &str, activations: Precision, log: &Log) -> anyhow::Result<Config> {
    #[derive(Parser)]
    struct Defaults {
        #[command(flatten)]
        models: Models,
    }
    let mut models = Defaults::try_parse_from(["bench", "--model", model])?.models;
    models.activations = activations;
    models.config(log)
}

/// One model, with everything needed to measure it.
struct Session<'a> {
    name: String,
    /// Model, machine and instruction set.
    head: String,
    option: &'a str,
    config: Config,
    harness: Harness,
    memory: Memory,
    peers: Option<LlamaCpp<'a>>,
}

impl<'a> Session<'a> {
    fn start(model: &'a str, arguments: &'a Bench, log: &Log, embedded: Embedded) -> anyhow::Result<Self> {
        let config = config(model, arguments.activations, log)?;
        let name = config.models()[0].name.clone();
        let peers = match &config.models()[0].source {
            _ if arguments.peers.is_empty() => None,
            ModelSource::File(_) => Some(LlamaCpp::new(&arguments.peers, Path::new(model))),
            ModelSource::Embedded | ModelSource::Folder(_) => bail!("--peer needs a .gguf file, and {model:?} is not one"),
        };
        let harness = Harness::load(&config.models()[0].source, embedded, config.settings().cpu.activations)?;
        let head = format!(
            "{name}: {}, {}, {:?} activations; weights {:.1} MB, read per decode step {:.1} MB",
            machine_load::machine(),
            Native::describe(&CpuSettings::default())?.name,
            config.settings().cpu.activations,
            harness.size.weight_bytes as f64 / 1e6,
            harness.size.step_bytes as f64 / 1e6,
        );
        Ok(Self { name, head, option: model, config, harness, memory: Memory::new()?, peers })
    }

    fn plan(&self, part: Part, threads: usize) -> Option<Plan> {
        Plan::new(part, threads, &self.harness.size, |task| self.peers.as_ref().is_some_and(|peers| peers.can(task)))
    }

    /// Measures the entries round by round. Entries with samples under load get up to `rounds` more rounds.
    fn measure(&mut self, plan: &Plan, rounds: usize) -> anyhow::Result<Vec<Series>> {
        let new = |entry: &Measurement| Series { name: entry.name.clone(), unit: entry.unit, samples: Vec::new() };
        let mut all: Vec<Series> = plan.entries.iter().map(new).collect();
        for round in 0..2 * rounds {
            for (entry, series) in plan.entries.iter().zip(&mut all) {
                if series.is_due(round, rounds) {
                    series.samples.push(self.sample(entry)?);
                }
            }
        }
        Ok(all)
    }

    fn sample(&mut self, entry: &Measurement) -> anyhow::Result<Sample> {
        self.harness.set_threads(entry.threads)?;
        let meter = LoadMeter::start();
        let cpu_hog = if entry.beside { Some(CpuHog::start()?) } else { None };
        let value = match entry.work {
            Workload::Prefill(tokens) => self.harness.prefill(tokens),
            Workload::Decode { sequences, context, tokens } => self.harness.decode(sequences, context, tokens),
            Workload::Deep { context, tokens } => self.harness.decode_deep(context, tokens),
            Workload::Rows(rows) => self.harness.rows(rows, 64) * 1e3,
            Workload::Matmul => self.harness.matmul_rate() / 1e9,
            Workload::ReadMemory => self.memory.read(entry.threads) / 1e9,
            Workload::Peer(task) => self.peers.as_mut().expect("the plan has peer entries only with peers").run(task, entry.threads)?,
            Workload::FirstToken => process::first_token(&self.options(entry.threads))?,
            Workload::Load => self.worker(entry.threads)?.load_ms,
            Workload::Memory => self.worker(entry.threads)?.overhead_mb,
            Workload::Peak => self.worker(entry.threads)?.peak_mb,
        };
        drop(cpu_hog);
        Ok(Sample { value, others: meter.others() })
    }

    fn worker(&mut self, threads: usize) -> anyhow::Result<Worker> {
        let mut settings = self.config.settings().clone();
        settings.cpu.threads = u32::try_from(threads)?;
        self.config = self.config.clone().with_settings(settings);
        Worker::run(&self.config, &self.harness.size)
    }

    /// The options that give another process the same configuration.
    fn options(&self, threads: usize) -> Vec<String> {
        let activations = format!("{:?}", self.config.settings().cpu.activations).to_lowercase();
        ["-m", self.option, "--threads", &threads.to_string(), "--activations", &activations].map(String::from).into()
    }

    fn left_out(&self, part: Part, reason: &str, json: bool) -> String {
        if json {
            return json!({ "model": self.name, "head": self.head, "part": name(part), "left_out": reason }).to_string();
        }
        format!("{} is left out: {reason}\n", name(part))
    }

    fn json(&self, plan: &Plan, all: &[Series], ratios: &[Ratio]) -> String {
        let ratios: Vec<_> = ratios.iter().map(|r| json!({ "name": r.name, "value": r.value, "beside_load": r.marked })).collect();
        let series: Vec<_> = all.iter().map(Series::json).collect();
        json!({ "model": self.name, "head": self.head, "part": name(plan.part), "threads": plan.threads, "series": series, "ratios": ratios })
            .to_string()
    }
}

fn name(part: Part) -> String {
    format!("{part:?}").to_lowercase()
}

fn compare(model: &str, plan: &Plan, all: &[Series]) -> Vec<Ratio> {
    let ratio = |compare: &plan::Compare| {
        let (of, to) = (all[compare.of].figure(), all[compare.to].figure());
        let value = of.median * compare.scale / to.median;
        Ratio { name: compare.name, model: model.into(), threads: plan.threads, value, marked: of.marked || to.marked }
    };
    plan.compares.iter().map(ratio).collect()
}

fn text(plan: &Plan, all: &[Series], ratios: &[Ratio]) -> String {
    let mut lines = vec![format!("{} thread{}", plan.threads, if plan.threads == 1 { "" } else { "s" })];
    lines.extend(all.iter().map(|series| format!("  {series}")));
    lines.extend(ratios.iter().map(|ratio| format!("    = {ratio}: {}", ratio.name)));
    lines.join("\n") + "\n"
}

fn println(line: &str) -> std::io::Result<()> {
    writeln!(std::io::stdout(), "{line}")
}
