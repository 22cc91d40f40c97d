//! Killed workers are replaced and their streams continue; `unload` ends the worker; the limit of requests in flight.

use crate::support::{MODEL, Output, TestRuntime, ban_eos, greedy, run_test, text};
use futures_util::future::join_all;
use souffleur::actors::{Error, FinishReason, ModelState, Request, Sampling};
use std::path::PathBuf;

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("the process exists");
}

/// Also true for a zombie.
fn exists(pid: u32) -> bool {
    PathBuf::from(format!("/proc/{pid}")).exists()
}

fn request(salt: u64, bias: Vec<(u32, f32)>) -> Request {
    let sampling = Sampling { temperature: 0.8, top_p: 0.95, seed: salt, logit_bias: bias, ..Sampling::default() };
    let prompt = format!("# number {salt}\ndef f(x):\n    return \"é");
    // Prefixes of these stop sequences occur often, so text is held back when the worker dies.
    let stop = vec!["\n\n\n\n\u{1}".into(), " \u{1}".into(), ")\u{1}".into()];
    Request { sampling, stop, logprobs: Some(2), ..greedy(text(prompt), 120) }
}

#[test]
fn a_killed_worker_is_replaced_and_its_streams_continue_unchanged() {
    run_test(async {
        let (runtime, uncached) = (TestRuntime::new(), TestRuntime::without_cache());
        let info = runtime.model_info().await;
        let requests: Vec<_> = (0..4).map(|seed| request(seed, ban_eos(&info))).collect();
        let mut readers: Vec<_> = requests.iter().map(|request| runtime.complete(request.clone()).unwrap()).collect();
        let mut outputs: Vec<_> = readers.iter().map(|_| Output::default()).collect();
        for (output, reader) in outputs.iter_mut().zip(&mut readers) {
            assert!(output.read_tokens(reader, 6).await);
        }
        let pid = runtime.model().await.worker_pid.expect("it is loaded");
        kill(pid);
        for ((output, reader), request) in outputs.iter_mut().zip(&mut readers).zip(&requests) {
            output.read_to_end(reader).await;
            let reference = uncached.run(request.clone()).await;
            assert_eq!(output.text, reference.text);
            assert_eq!(output.tokens, reference.tokens);
            assert_eq!(output.reason(), reference.reason());
            assert_eq!(output.usage().completion_tokens, reference.usage().completion_tokens);
        }
        let model = runtime.model().await;
        assert_eq!((model.state, model.restarts, model.in_flight), (ModelState::Ready, 1, 0));
        assert!(model.last_cause().is_some_and(|cause| cause.contains("signal 9")));
        assert_ne!(model.worker_pid, Some(pid));
        assert!(!exists(pid));
        assert_eq!(runtime.run(requests[0].clone()).await.tokens, outputs[0].tokens);
    });
}

#[test]
fn a_worker_killed_at_the_first_or_last_token_is_restarted_once() {
    run_test(async {
        let runtime = TestRuntime::new();
        let info = runtime.model_info().await;
        // Short, so that the kill also hits the last token and the end of the stream.
        let short = Request { tokens_max: 8, ..request(9, ban_eos(&info)) };
        let reference = runtime.run(short.clone()).await;
        for (kills, count) in [1, 8].into_iter().enumerate() {
            let (mut output, mut reader) = (Output::default(), runtime.complete(short.clone()).unwrap());
            output.read_tokens(&mut reader, count).await;
            kill(runtime.model().await.worker_pid.expect("it is loaded"));
            output.read_to_end(&mut reader).await;
            assert_eq!((output.text.as_str(), output.reason()), (reference.text.as_str(), FinishReason::Length));
            assert_eq!(output.tokens, reference.tokens);
            // A kill after the end is counted when the next request notices it.
            runtime.run(short.clone()).await;
            assert_eq!(runtime.model().await.restarts as usize, kills + 1);
        }
    });
}

#[test]
fn unload_ends_the_worker_process_and_its_requests() {
    run_test(async {
        let runtime = TestRuntime::new();
        let info = runtime.model_info().await;
        let long = Request { tokens_max: 1000, ..request(1, ban_eos(&info)) };
        let (mut output, mut reader) = (Output::default(), runtime.complete(long.clone()).unwrap());
        assert!(output.read_tokens(&mut reader, 3).await);
        let pid = runtime.model().await.worker_pid.expect("it is loaded");
        assert!(exists(pid));
        runtime.unload(MODEL).await.unwrap();
        assert!(!exists(pid), "the worker process still exists");
        output.read_to_end(&mut reader).await;
        assert_eq!(output.error(), &Error::Unloading { model: MODEL.into() });
        let model = runtime.model().await;
        assert_eq!((model.state, model.worker_pid, model.in_flight, model.restarts), (ModelState::Unloaded, None, 0, 0));
        // Unloading again succeeds, and the next request loads the model.
        runtime.unload(MODEL).await.unwrap();
        let next = runtime.run(Request { tokens_max: 5, ..long }).await;
        let shared = output.tokens.len().min(5);
        assert_eq!(next.ids()[..shared], output.ids()[..shared]);
        assert_eq!(next.reason(), FinishReason::Length);
    });
}

#[test]
fn requests_over_the_limit_are_refused_immediately() {
    run_test(async {
        let runtime = TestRuntime::new();
        let info = runtime.model_info().await;
        let long = Request { tokens_max: 500, ..request(1, ban_eos(&info)) };
        let limit = runtime.limits().requests_in_flight;
        let readers: Vec<_> = (0..limit).map(|_| runtime.complete(long.clone()).unwrap()).collect();
        assert_eq!(runtime.complete(long.clone()).err(), Some(Error::Overloaded { limit }));
        assert_eq!(runtime.status().await.requests_in_flight, limit);
        join_all(readers.into_iter().map(|reader| reader.abandon().wait())).await;
        assert_eq!(runtime.status().await.requests_in_flight, 0);
        assert_eq!(runtime.run(Request { tokens_max: 5, ..long }).await.reason(), FinishReason::Length);
    });
}
