//! Batching does not change results: concurrent streams generate what each generates alone.

use crate::support::{Output, TestRuntime, ban_eos, greedy, infill, run_test, text};
use futures_util::future::join_all;
use souffleur::actors::{ModelInfo, Request, Sampling};

const TOKENS: u32 = 64;

/// Sixteen requests with different prompts, seeds and sampling parameters.
fn requests(info: &ModelInfo) -> Vec<Request> {
    let openings = [
        "fn add(a: i32, b: i32) -> i32 {\n",
        "import os\nimport sys\n\ndef main():\n",
        "package main\n\nfunc main() {\n",
        "const fs = require('fs');\n",
        "#include <stdio.h>\n\nint main(void) {\n",
        "class Queue:\n    def __init__(self):\n",
        "/// Ünïcödé – 数 🦀\nlet s = \"é",
        "export function debounce<T>(",
    ];
    let request = |index: usize| {
        let opening = openings[index % openings.len()];
        let prompt = match index {
            0..8 => text(opening.repeat(1 + index)),
            _ => infill(opening, format!("\n// the end of number {index}\n")),
        };
        let plain = Sampling { temperature: 0.8, seed: 1000 + index as u64, ..Sampling::default() };
        let sampling = match index % 5 {
            0 => plain,
            1 => Sampling { top_p: 0.9, ..plain },
            2 => Sampling { min_p: 0.05, top_k: 40, ..plain },
            3 => Sampling { repetition_penalty: 1.2, repetition_window: 32, ..plain },
            _ => Sampling { presence_penalty: 0.4, frequency_penalty: 0.3, top_p: 0.95, ..plain },
        };
        // All but two generate all their tokens, so that at least twelve run at the same time.
        let logit_bias = if index % 6 == 5 { Vec::new() } else { ban_eos(info) };
        Request { logprobs: index.is_multiple_of(4).then_some(2), sampling: Sampling { logit_bias, ..sampling }, ..greedy(prompt, TOKENS) }
    };
    (0..16).map(request).collect()
}

#[test]
fn sixteen_concurrent_streams_equal_each_one_alone() {
    run_test(async {
        let (runtime, uncached) = (TestRuntime::new(), TestRuntime::without_cache());
        let requests = requests(&runtime.model_info().await);
        let together = join_all(requests.iter().map(|request| runtime.run(request.clone()))).await;
        let decoder = runtime.decoder().await;
        assert!(decoder.step_sequences_max >= 12, "no step had more than {} sequences", decoder.step_sequences_max);
        for (index, (output, request)) in together.iter().zip(requests).enumerate() {
            assert_same(index, output, &uncached.run(request).await);
        }
        assert_eq!(uncached.decoder().await.step_sequences_max, 1);
    });
}

#[test]
fn streams_that_start_and_stop_do_not_change_the_others() {
    run_test(async {
        let (runtime, uncached) = (TestRuntime::new(), TestRuntime::without_cache());
        let mut requests = requests(&runtime.model_info().await);
        let late = requests.split_off(12);
        let mut readers: Vec<_> = requests.iter().map(|request| runtime.complete(request.clone()).unwrap()).collect();
        let mut outputs: Vec<_> = readers.iter().map(|_| Output::default()).collect();
        for (output, reader) in outputs.iter_mut().zip(&mut readers) {
            output.read_tokens(reader, 4).await;
        }
        // Every third one is cancelled, and new ones start with a prefill.
        for index in [9, 6, 3, 0] {
            drop(readers.remove(index));
            outputs.remove(index);
            requests.remove(index);
        }
        let late_outputs = join_all(late.iter().map(|request| runtime.run(request.clone()))).await;
        for (output, reader) in outputs.iter_mut().zip(&mut readers) {
            output.read_to_end(reader).await;
        }
        for (index, (output, request)) in outputs.iter().chain(&late_outputs).zip(requests.into_iter().chain(late)).enumerate() {
            assert_same(index, output, &uncached.run(request).await);
        }
    });
}

fn assert_same(index: usize, output: &Output, alone: &Output) {
    assert_eq!(output.text, alone.text, "text of stream {index}");
    assert_eq!(output.tokens, alone.tokens, "tokens of stream {index}");
    assert_eq!(output.reason(), alone.reason(), "end of stream {index}");
    assert!(output.usage().completion_tokens > 0);
}
