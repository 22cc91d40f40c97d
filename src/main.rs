//! The program: parses the arguments and runs the command. Only `main` sets the exit code.

mod cli;

use clap::Parser;
use souffleur::actors::{Embedded, worker};
use std::process::ExitCode;

#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

static WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("../assets/model.safetensors"));

/// The model in this program. It is not in the library, so that applications that embed the library don't carry it.
const EMBEDDED: Embedded = Embedded {
    name: "souffleur-46m",
    config: include_bytes!("../assets/config.json"),
    tokenizer: include_bytes!("../assets/tokenizer.json"),
    tokenizer_config: include_bytes!("../assets/tokenizer_config.json"),
    weights: &WEIGHTS.0,
};

fn main() -> ExitCode {
    let start = std::time::Instant::now();
    let arguments = cli::Arguments::parse();
    let log = arguments.log.with_default_filter(&arguments.command);
    cli::log(&log);
    let result = match arguments.command {
        cli::Command::Complete(complete) => cli::complete::run(complete, &log, start),
        cli::Command::Stdio(stdio) => cli::stdio::run(stdio, &log),
        cli::Command::Serve(serve) => cli::serve::run(serve, &log),
        cli::Command::Doctor(doctor) => cli::doctor::run(doctor, &log),
        cli::Command::Bench(bench) => cli::bench::run(bench, &log, EMBEDDED),
        cli::Command::Worker => worker::over_pipe(Some(EMBEDDED)),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            // The error with all its causes, in one line.
            cli::print_stderr(format_args!("souffleur: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
