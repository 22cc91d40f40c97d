//! `kill -9` of the worker at random moments of real streams.

use crate::{
    runtime::{MODEL, Output, TestRuntime, ban_eos, greedy, text},
    support::{HANG, Rng, exclusive, is_running, number_from_env, signal, summary},
};
use futures_util::{FutureExt, future::join_all};
use rustix::process::Signal;
use souffleur::actors::{ModelInfo, ModelState, ModelStatus, Reader, Request, Sampling, Settings};
use souffleur::config::RestartLimit;
use std::{
    thread,
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};

/// Streams in flight at the same time, at most.
const STREAMS: usize = 16;
/// Requests to choose from.
const REQUESTS: usize = 48;

/// Half of them greedy, of 1 to 64 tokens. Some have stop sequences of which only prefixes occur, so that text is held back.
fn request(number: usize, info: &ModelInfo) -> Request {
    let seeded = Sampling { temperature: 0.9, top_p: 0.95, repetition_penalty: 1.1, seed: number as u64, ..Sampling::default() };
    let sampling = if number.is_multiple_of(2) { Sampling::default() } else { seeded };
    let bias = if number.is_multiple_of(3) { Vec::new() } else { ban_eos(info) };
    let stop = if number.is_multiple_of(4) { vec!["\n\n\n\n\u{1}".into(), " \u{1}".into(), ")\u{1}".into()] } else { Vec::new() };
    let prompt = format!(
        "{}# number {number}\ndef f(x):\n    return \"é",
        "# a longer beginning\n".repeat(if number.is_multiple_of(8) { 40 } else { number % 3 })
    );
    let tokens_max = 1 + (number * 37 % 64) as u32;
    Request {
        sampling: Sampling { logit_bias: bias, ..sampling },
        stop,
        logprobs: (number.is_multiple_of(5)).then_some(2),
        ..greedy(text(prompt), tokens_max)
    }
}

async fn model(runtime: &TestRuntime) -> ModelStatus {
    runtime.models().await.remove(0)
}

async fn ready(runtime: &TestRuntime) -> u32 {
    loop {
        let model = model(runtime).await;
        if let (ModelState::Ready, Some(pid)) = (model.state, model.worker_pid) {
            return pid;
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// Reads to the end. Returns when the next token arrived.
async fn time_of_next_token(output: &mut Output, reader: &mut Reader) -> Option<Instant> {
    let more = output.tokens.len() + 1;
    output.read_tokens(reader, more).await;
    let next = (output.tokens.len() >= more).then(Instant::now);
    output.read_to_end(reader).await;
    next
}

async fn load_time(runtime: &TestRuntime) -> Duration {
    let mut longest = Duration::ZERO;
    for _ in 0..5 {
        runtime.unload(MODEL).await.unwrap();
        let start = Instant::now();
        runtime.model_info().await;
        longest = longest.max(start.elapsed());
    }
    longest
}

#[test]
fn a_worker_killed_at_any_moment_loses_no_output() {
    let _exclusive = exclusive();
    let (kills, mut rng) = (number_from_env("SOUFFLEUR_KILLS", 15), Rng::new());
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio.block_on(async {
        let reference = TestRuntime::without_cache();
        let info = reference.model_info().await;
        let requests: Vec<_> = (0..REQUESTS).map(|number| request(number, &info)).collect();
        let expected = timeout(HANG, join_all(requests.iter().map(|request| reference.run(request.clone())))).await.unwrap();
        drop(reference);

        // The kills come faster than the default restart limit allows.
        let restarts = RestartLimit { deaths: u32::MAX, period: Duration::from_millis(1) };
        let runtime = TestRuntime::from_config(TestRuntime::config(Settings::default(), Vec::new()).with_restarts(restarts).unwrap());
        runtime.model_info().await;
        let load = load_time(&runtime).await;
        let mut recovery_times = Vec::new();
        for kill in 1..=kills {
            let pid = ready(&runtime).await;
            let chosen: Vec<_> = (0..1 + rng.below(STREAMS)).map(|_| rng.below(REQUESTS)).collect();
            let mut readers: Vec<_> = chosen.iter().map(|&at| runtime.complete(requests[at].clone()).unwrap()).collect();
            let mut outputs: Vec<_> = chosen.iter().map(|_| Output::default()).collect();
            // At a random token of one of the streams, also before its first and after its last one.
            let at = rng.below(chosen.len());
            let token = rng.below(expected[chosen[at]].tokens.len() + 1);
            timeout(HANG, outputs[at].read_tokens(&mut readers[at], token)).await.expect("the stream hangs before the kill");
            thread::sleep(Duration::from_micros(rng.below(3000) as u64));
            let killed = Instant::now();
            signal(pid, Signal::KILL);
            let restart_counted = async {
                while (model(&runtime).await.restarts as usize) < kill {
                    sleep(Duration::from_micros(100)).await;
                }
            };
            timeout(HANG, restart_counted).await.expect("the kill was not noticed");
            // Reads what the killed worker had sent, so that the next token is from its replacement.
            for (output, reader) in outputs.iter_mut().zip(&mut readers) {
                let _ = output.read_tokens(reader, usize::MAX).now_or_never();
            }
            let next_tokens = join_all(outputs.iter_mut().zip(&mut readers).map(|(output, reader)| time_of_next_token(output, reader)));
            let next_tokens = timeout(HANG, next_tokens).await.unwrap_or_else(|_| panic!("kill {kill} hangs a stream"));
            recovery_times.extend(next_tokens.into_iter().flatten().min().map(|next| (next - killed).as_secs_f64()));
            for (output, &at) in outputs.iter().zip(&chosen) {
                let expected = &expected[at];
                assert_eq!(output.text, expected.text, "kill {kill}, request {at}");
                assert_eq!(output.tokens, expected.tokens, "kill {kill}, request {at}");
                assert_eq!(output.reason(), expected.reason(), "kill {kill}, request {at}");
                assert_eq!(output.usage().completion_tokens, expected.usage().completion_tokens);
            }
            assert!(!is_running(pid));
            if kill % 100 == 0 {
                eprintln!("{kill} kills; recovery in {:.3?} s (minimum, median, p99, maximum)", summary(recovery_times.clone()));
            }
        }
        ready(&runtime).await;
        let decoder = runtime.decoder().await;
        let model = runtime.model().await;
        assert_eq!((model.restarts as usize, model.in_flight), (kills, 0));
        assert_eq!((decoder.running, decoder.waiting, decoder.running_bytes), (0, 0, 0));
        assert_eq!(runtime.status().await.requests_in_flight, 0);
        let [_, median, _, maximum] = summary(recovery_times.clone());
        eprintln!(
            "{kills} kills, {} with a stream that continued; load {load:.3?}; recovery in {:.3?} s",
            recovery_times.len(),
            summary(recovery_times)
        );
        let limit = 1.0 + load.as_secs_f64();
        assert!(median < limit, "median recovery {median:.3} s, not within {limit:.3} s");
        // A single slow recovery can be due to a busy machine.
        assert!(kills < 1000 || maximum < limit, "slowest recovery {maximum:.3} s, not within {limit:.3} s");
    });
}
