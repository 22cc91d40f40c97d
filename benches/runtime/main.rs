//! Latency and throughput of the whole program with its worker process, on the embedded model.
//!
//! `cargo bench --bench runtime -- [first decode gap cancel readers rss ghost] [--seconds N]`

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

mod readers;
#[path = "../../tests/runtime/support.rs"]
#[allow(dead_code, reason = "the tests use the rest of it")]
mod support;
mod table;

use futures_util::future::join_all;
use souffleur::actors::{ModelInfo, Reader, Request, Sampling};
use souffleur::models::CpuSettings;
use souffleur::models::backend::{Backend, Native};
use souffleur::models::tokenizer::Tokenizer;
use std::cell::Cell;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::{Output, TestRuntime, ban_eos, done, greedy, infill, text};
use table::{ms, p99, row, warn_of_other_load};

const PROGRAM: &str = env!("CARGO_BIN_EXE_souffleur");
const NAMES: [&str; 7] = ["first", "decode", "gap", "cancel", "readers", "rss", "ghost"];
const ROUNDS: usize = 5;
/// Reads as an example file does: well below 64 tokens.
const EXAMPLE: &str = "fn main() {\n    let name = \"world\";\n    println!(\"Hello, {}!\", ";

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // Cargo itself passes `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let seconds = arguments
        .iter()
        .position(|argument| argument == "--seconds")
        .map_or(10, |at| arguments.get(at + 1).and_then(|seconds| seconds.parse().ok()).expect("--seconds takes a whole number"));
    let wanted: Vec<_> = NAMES.into_iter().filter(|name| arguments.iter().any(|argument| argument == name)).collect();
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown").trim_matches([':', ' ', '\t']);
    let threads = Native::describe(&CpuSettings::default()).expect("a known instruction set").threads;
    println!("{processor}, {threads} threads; souffleur {}; median (minimum to maximum of n)", env!("CARGO_PKG_VERSION"));
    for name in if wanted.is_empty() { NAMES.to_vec() } else { wanted } {
        println!("\n{name}");
        warn_of_other_load();
        match name {
            "first" => first_token(),
            "decode" => decode().await,
            "gap" => gap().await,
            "cancel" => cancel().await,
            "readers" => readers::readers(Duration::from_secs(seconds)).await,
            "rss" => rss(),
            "ghost" => ghost().await,
            other => unreachable!("{other} is in the list above"),
        }
        warn_of_other_load();
    }
}

fn unending(info: &ModelInfo, prompt: impl Into<String>, tokens_max: u32, seed: u64) -> Request {
    let sampling = Sampling { temperature: 0.8, seed, logit_bias: ban_eos(info), ..Sampling::default() };
    Request { sampling, ..greedy(text(prompt), tokens_max) }
}

/// A stream that has generated 20 tokens.
async fn running(runtime: &TestRuntime, info: &ModelInfo) -> Reader {
    let mut reader = runtime.complete(unending(info, "def f(x):\n", 1900, 1)).expect("below the limit of requests");
    Output::default().read_tokens(&mut reader, 20).await;
    reader
}

/// From process start to the first byte of text, and the parts of that time.
fn first_token() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("hello.rs");
    std::fs::write(&file, EXAMPLE).expect("a file");
    let mut runs = Vec::new();
    // The first two runs fill the page cache and are not counted.
    for _ in 0..12 {
        let start = Instant::now();
        let mut child = Command::new(PROGRAM)
            .arg("complete")
            .arg(&file)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        child.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("a first byte");
        let first = start.elapsed();
        let output = child.wait_with_output().expect("the program exits");
        runs.push((ms(first), String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let mut runs = runs.split_off(2);
    row("process start to first byte of text", runs.iter().map(|(first, _)| *first).collect(), "ms");
    row("  of these: worker process start to its hello", (0..10).map(|_| hello()).collect(), "ms");
    row("  of these: tokenizer, parallel to the weights", (0..10).map(|_| tokenizer()).collect(), "ms");
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    println!("  stderr of the median run: {}", runs[runs.len() / 2].1);
}

fn hello() -> f64 {
    let start = Instant::now();
    let mut worker = Command::new(PROGRAM).arg("worker").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program starts");
    worker.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("a hello");
    let time = ms(start.elapsed());
    drop(worker.stdin.take());
    worker.wait().expect("exits at end of input");
    time
}

fn tokenizer() -> f64 {
    let file = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tokenizer.json")).expect("the embedded model's");
    let start = Instant::now();
    Tokenizer::parse(&file, None).expect("it parses");
    ms(start.elapsed())
}

async fn decode() {
    let runtime = TestRuntime::new();
    let info = runtime.model_info().await;
    // Sampling costs are per stream and do not shrink with batching.
    for (how, temperature) in [("at temperature 0.8", 0.8), ("greedy", 0.0)] {
        let request = |prompt: String, tokens_max, seed| {
            let mut request = unending(&info, prompt, tokens_max, seed);
            request.sampling.temperature = temperature;
            request
        };
        let sixteen: Vec<_> = (0..16).map(|seed| request(format!("# number {seed}\ndef f(x):\n"), 128, seed)).collect();
        let (mut ones, mut sixteens, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let usage = runtime.run(request("def f(x):\n".into(), 256, 1)).await.usage();
            let one = f64::from(usage.completion_tokens - 1) / (usage.decode_us as f64 / 1e6);
            let start = Instant::now();
            let outputs = join_all(sixteen.iter().map(|request| runtime.run(request.clone()))).await;
            let tokens: u32 = outputs.iter().map(|output| output.usage().completion_tokens).sum();
            let all = f64::from(tokens) / start.elapsed().as_secs_f64();
            ones.push(one);
            sixteens.push(all);
            ratios.push(all / one);
        }
        row(&format!("one stream {how}, 256 tokens"), ones, "tokens/s");
        row(&format!("16 streams {how}, 128 tokens each, with prompts"), sixteens, "tokens/s");
        row(&format!("16 streams {how}, relative to one"), ratios, "times");
    }
    println!("  largest step: {} sequences", runtime.decoder().await.step_sequences_max);
}

async fn gap() {
    let runtime = TestRuntime::new();
    let info = runtime.model_info().await;
    let (mut largest, mut p99_gaps, mut prefill) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let long = greedy(text(runtime.text_with_tokens(1500, 100 + round).await), 1);
        let mut reader = running(&runtime, &info).await;
        let finished = Cell::new(false);
        let prefilling = async {
            let start = Instant::now();
            runtime.run(long).await;
            finished.set(true);
            ms(start.elapsed())
        };
        let streaming = async {
            let mut gaps = Vec::new();
            while !finished.get() {
                let start = Instant::now();
                reader.next().await;
                gaps.push(ms(start.elapsed()));
            }
            gaps
        };
        let (took, gaps) = tokio::join!(prefilling, streaming);
        prefill.push(took);
        largest.push(gaps.iter().copied().fold(0.0, f64::max));
        p99_gaps.push(p99(gaps));
    }
    row("largest gap during a concurrent prefill of 1,500 tokens", largest, "ms");
    row("p99 gap during a concurrent prefill of 1,500 tokens", p99_gaps, "ms");
    row("duration of that prefill", prefill, "ms");
}

async fn cancel() {
    let runtime = TestRuntime::new();
    let info = runtime.model_info().await;
    let (mut decoding, mut prefilling) = (Vec::new(), Vec::new());
    for round in 0..2 * ROUNDS {
        let reader = running(&runtime, &info).await;
        let start = Instant::now();
        done(&reader.abandon().wait().await);
        decoding.push(ms(start.elapsed()));

        let long = greedy(text(runtime.text_with_tokens(1500, 200 + round).await), 1);
        let before = runtime.decoder().await.rows;
        let reader = runtime.complete(long).expect("below the limit of requests");
        while runtime.decoder().await.rows == before {}
        let start = Instant::now();
        done(&reader.abandon().wait().await);
        prefilling.push(ms(start.elapsed()));
    }
    row("cancel to end, while decoding", decoding, "ms");
    row("cancel to end, during prefill", prefilling, "ms");
}

/// Memory of the front process after one completion.
fn rss() {
    let mut front = Command::new(PROGRAM).arg("stdio").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program starts");
    let (mut to, mut from) = (front.stdin.take().expect("piped"), BufReader::new(front.stdout.take().expect("piped")));
    let calls = [
        r#"{"jsonrpc":"2.0","id":1,"method":"models/load","params":{"model":"embedded"}}"#,
        r#"{"jsonrpc":"2.0","id":2,"method":"complete","params":{"prompt":"import os\n","maxTokens":16}}"#,
    ];
    for call in calls {
        writeln!(to, "{call}").expect("the request is written");
        let mut response = String::new();
        from.read_line(&mut response).expect("a response");
        if !response.contains("\"result\"") {
            println!("  {call}: {response}");
        }
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", front.id())).unwrap_or_default();
    for key in ["VmRSS", "RssAnon", "RssFile"] {
        let kb = status.lines().find_map(|line| line.strip_prefix(key)?.trim_matches([':', '\t', ' ', 'k', 'B']).parse::<f64>().ok());
        row(&format!("{key} of the front"), vec![kb.unwrap_or(f64::NAN) / 1000.0], "MB");
    }
    drop(to);
    front.wait().expect("exits at end of input");
}

/// A key is typed in a file whose tokens are cached: time to the first and to the last token of the suggestion.
async fn ghost() {
    let runtime = TestRuntime::new();
    let info = runtime.model_info().await;
    let mut prefix = format!("{}\ndef total(entries):\n    ", runtime.text_with_tokens(600, 300).await);
    let suffix = "\n\n\nprint(total([1, 2, 3]))\n";
    runtime.run(greedy(infill(&prefix, suffix), 1)).await;
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for typed in "result = sum(entry.amount for".chars() {
        prefix.push(typed);
        let sampling = Sampling { logit_bias: ban_eos(&info), ..Sampling::default() };
        let start = Instant::now();
        let (mut output, mut reader) = (
            Output::default(),
            runtime.complete(Request { sampling, ..greedy(infill(&prefix, suffix), 24) }).expect("below the limit of requests"),
        );
        output.read_tokens(&mut reader, 1).await;
        first.push(ms(start.elapsed()));
        output.read_to_end(&mut reader).await;
        last.push(ms(start.elapsed()));
    }
    row("one typed key: request to first token", first, "ms");
    row("one typed key: request to the last of 24 tokens", last, "ms");
}
