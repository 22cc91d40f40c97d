//! `souffleur doctor`: reports on the machine and on each model, then lists the problems, one sentence each.

use super::{Log, Models, load, selftest};
use clap::Args;
use souffleur::actors::{FimOrder, ModelSource, Runtime};
use souffleur::models::CpuSettings;
use souffleur::models::backend::{Backend, Native};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Exits with status 1 if there is a problem.
#[derive(Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    models: Models,
    /// Kill the worker process of each model in the middle of a completion, and check that the completion stays the same
    #[arg(long)]
    self_test: bool,
}

pub(crate) fn run(arguments: Doctor, log: &Log) -> anyhow::Result<ExitCode> {
    let config = arguments.models.config(log)?;
    let models = config.models().to_vec();
    let mut report = machine();
    let mut problems = machine_problems();
    let runtime = Runtime::start(config)?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        for model in models {
            let location = match &model.source {
                ModelSource::Embedded => "in this program".into(),
                ModelSource::Folder(path) | ModelSource::File(path) => path.display().to_string(),
            };
            let _ = writeln!(report, "model {} ({location})", model.name);
            let start = Instant::now();
            match load(&runtime, &model.name).await {
                Err(error) => problems.push(format!("model {}: {error}.", model.name)),
                Ok(info) => {
                    let fim = match info.fim {
                        Some(FimOrder::SuffixPrefixMiddle) => "yes, suffix first",
                        Some(FimOrder::PrefixSuffixMiddle) => "yes",
                        None => "no",
                    };
                    let eos = info.eos.iter().map(|(_, token)| token.as_str()).collect::<Vec<_>>().join(" ");
                    let _ = writeln!(
                        report,
                        "  architecture {}, family {}, {} layers of size {}",
                        info.architecture, info.family, info.layers, info.hidden_size
                    );
                    let _ = writeln!(
                        report,
                        "  weights      {:.1} M parameters, {}, {:.1} MB",
                        info.parameters as f64 / 1e6,
                        info.quantization,
                        info.weight_bytes as f64 / 1e6
                    );
                    let _ =
                        writeln!(report, "  context      {} tokens; vocabulary {}; end tokens {eos}", info.context_length, info.vocab_size);
                    let _ = writeln!(report, "  infill       {fim}");
                    let _ = writeln!(report, "  backend      {} on {} threads", info.backend, info.threads);
                    let _ = writeln!(report, "  loaded in    {:.0} ms", start.elapsed().as_secs_f64() * 1000.0);
                    if arguments.self_test {
                        let _ = std::io::stdout().write_all(std::mem::take(&mut report).as_bytes());
                        match selftest::run(&runtime, &model.name, &info).await {
                            Ok(true) => {}
                            Ok(false) => problems.push(format!("model {}: its completion changed when its worker was killed.", model.name)),
                            Err(error) => problems.push(format!("model {}: the self-test failed: {error:#}.", model.name)),
                        }
                    }
                }
            }
        }
        runtime.shutdown(Duration::ZERO).await;
    });
    for sentence in &problems {
        let _ = writeln!(report, "problem: {sentence}");
    }
    if problems.is_empty() {
        report += "no problems found\n";
    }
    std::io::stdout().write_all(report.as_bytes())?;
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn machine() -> String {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut report = format!("souffleur {}\nprocessor {}\n", super::VERSION, processor().unwrap_or_else(|| std::env::consts::ARCH.into()));
    let _ = writeln!(report, "  features     {}", features());
    let _ = writeln!(report, "  processors   {threads} available to this process");
    if let Some(free) = Native::free_memory() {
        let _ = writeln!(report, "memory         {:.1} GB available to this process", free as f64 / 1e9);
    }
    report
}

fn processor() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let name = info.lines().find(|line| line.starts_with("model name"))?;
    Some(name.split_once(':')?.1.trim().to_owned())
}

/// The processor's features among those that `Kernels::all` tests.
fn features() -> String {
    #[cfg(target_arch = "x86_64")]
    let all = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avxvnni", is_x86_feature_detected!("avxvnni")),
    ];
    #[cfg(target_arch = "aarch64")]
    let all = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
        ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
    ];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let all: [(&str, bool); 0] = [];
    let has: Vec<&str> = all.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
    if has.is_empty() { "none that the kernels use".into() } else { has.join(" ") }
}

fn machine_problems() -> Vec<String> {
    // Fails if `SOUFFLEUR_ISA` is invalid. Loading a model then fails too, and its error is the problem that is reported.
    if !Native::describe(&CpuSettings::default()).is_ok_and(|backend| backend.is_reference) {
        return Vec::new();
    }
    let why = if std::env::var_os("SOUFFLEUR_ISA").is_some() {
        "the environment variable SOUFFLEUR_ISA selects them"
    } else if cfg!(target_arch = "x86_64") {
        "this processor lacks AVX2, FMA or F16C"
    } else {
        "there are no fast kernels for this processor yet"
    };
    vec![format!("the slow reference kernels run: {why}.")]
}
