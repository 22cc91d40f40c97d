//! Company changes nothing: what a stream says is what it says alone.

use crate::support::{House, Told, ask, endless, hole, text, within};
use futures_util::future::join_all;
use souffleur::actors::{ModelInfo, Request, Sampling};

const TOKENS: u32 = 64;

/// Sixteen that differ in prompt, seed and the way they choose.
fn requests(card: &ModelInfo) -> Vec<Request> {
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
            _ => hole(opening, format!("\n// the end of number {index}\n")),
        };
        let plain = Sampling { temperature: 0.8, seed: 1000 + index as u64, ..Sampling::default() };
        let sampling = match index % 5 {
            0 => plain,
            1 => Sampling { top_p: 0.9, ..plain },
            2 => Sampling { min_p: 0.05, top_k: 40, ..plain },
            3 => Sampling { repetition_penalty: 1.2, repetition_window: 32, ..plain },
            _ => Sampling { presence_penalty: 0.4, frequency_penalty: 0.3, top_p: 0.95, ..plain },
        };
        // All but three go on to the last token, so that a dozen surely run at once.
        let logit_bias = if index % 6 == 5 { Vec::new() } else { endless(card) };
        Request { logprobs: index.is_multiple_of(4).then_some(2), sampling: Sampling { logit_bias, ..sampling }, ..ask(prompt, TOKENS) }
    };
    (0..16).map(request).collect()
}

#[test]
fn sixteen_streams_at_once_are_what_each_is_alone() {
    within(async {
        let (house, cold) = (House::warm(), House::cold());
        let requests = requests(&house.model_info().await);
        let together = join_all(requests.iter().map(|request| house.run(request.clone()))).await;
        let decoder = house.decoder().await;
        assert!(decoder.step_sequences_max >= 12, "no step had more than {} sequences", decoder.step_sequences_max);
        for (index, (told, request)) in together.iter().zip(requests).enumerate() {
            same(index, told, &cold.run(request).await);
        }
        assert_eq!(cold.decoder().await.step_sequences_max, 1);
    });
}

#[test]
fn streams_that_come_and_go_do_not_disturb_the_others() {
    within(async {
        let (house, cold) = (House::warm(), House::cold());
        let mut requests = requests(&house.model_info().await);
        let late = requests.split_off(12);
        let mut readers: Vec<_> = requests.iter().map(|request| house.runtime.complete(request.clone()).unwrap()).collect();
        let mut told: Vec<_> = readers.iter().map(|_| Told::default()).collect();
        for (told, reader) in told.iter_mut().zip(&mut readers) {
            told.reach(reader, 4).await;
        }
        // Every third leaves, and others come with prompts to be read first.
        for index in [9, 6, 3, 0] {
            drop(readers.remove(index));
            told.remove(index);
            requests.remove(index);
        }
        let late_told = join_all(late.iter().map(|request| house.run(request.clone()))).await;
        for (told, reader) in told.iter_mut().zip(&mut readers) {
            told.follow(reader).await;
        }
        for (index, (told, request)) in told.iter().chain(&late_told).zip(requests.into_iter().chain(late)).enumerate() {
            same(index, told, &cold.run(request).await);
        }
    });
}

fn same(index: usize, told: &Told, alone: &Told) {
    assert_eq!(told.text, alone.text, "text of stream {index}");
    assert_eq!(told.tokens, alone.tokens, "tokens of stream {index}");
    assert_eq!(told.reason(), alone.reason(), "end of stream {index}");
    assert!(told.usage().completion_tokens > 0);
}
