//! `bench`: how fast a model is on this machine.

mod rig;

use super::Models;
use clap::Args;
use rig::Rig;
use souffleur::actors::Embedded;
use souffleur::models::backend::cpu::Cpu;
use std::io::Write as _;
use std::process::ExitCode;

#[derive(Args)]
pub(crate) struct Bench {
    #[command(flatten)]
    models: Models,
    /// Measure only these: prefill, decode, eight, rows, deep
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<String>,
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
}

pub(crate) fn run(arguments: Bench, embedded: Embedded) -> anyhow::Result<ExitCode> {
    let config = arguments.models.config(embedded)?;
    let threads = Cpu::threads_for(config.settings.threads as usize);
    let wants = |part: &str| arguments.only.is_empty() || arguments.only.iter().any(|only| only == part);
    for model in &config.models {
        let mut rig = Rig::load(&model.source, embedded, threads, config.settings.activations)?;
        println(&format!("{}: {} on {threads} threads; loaded in {:.0} ms", model.name, Cpu::describe()?, rig.load.as_secs_f64() * 1e3))?;
        let mut part = |name: &str, unit: &str, measure: &mut dyn FnMut(&mut Rig) -> f64| {
            let mut all: Vec<f64> = (0..arguments.rounds).map(|_| measure(&mut rig)).collect();
            all.sort_by(f64::total_cmp);
            println(&format!("  {name:40} {:9.2} {unit} ({:.2} to {:.2})", all[all.len() / 2], all[0], all[all.len() - 1]))
        };
        if wants("prefill") {
            part("prefill of 512", "tokens/s", &mut |rig| rig.prefill(512))?;
        }
        if wants("decode") {
            part("decode", "tokens/s", &mut |rig| rig.decode(1, 16, 48))?;
        }
        if wants("eight") {
            part("decode, 8 sequences", "tokens/s", &mut |rig| rig.decode(8, 16, 24))?;
            part("decode, 16 sequences", "tokens/s", &mut |rig| rig.decode(16, 16, 24))?;
        }
        if wants("rows") {
            part("one step of 1 row", "ms", &mut |rig| rig.rows(1, 64, 9) * 1e3)?;
            part("one step of 8 rows", "ms", &mut |rig| rig.rows(8, 64, 9) * 1e3)?;
        }
        if wants("deep") {
            part("decode after 4096", "tokens/s", &mut |rig| rig.decode(1, 4096.min(rig.context() - 32), 16))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn println(line: &str) -> std::io::Result<()> {
    writeln!(std::io::stdout(), "{line}")
}
