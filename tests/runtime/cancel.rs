//! Cancellation stops the computation, and what was computed stays in the prefix cache.

use crate::support::{Output, TestRuntime, ban_eos, done, greedy, run_test, text};
use souffleur::actors::{DecoderStatus, FinishReason, ModelInfo, Request, Sampling, Usage};

/// A cancel crosses two processes, so a busy machine can delay it by a step. A cancel that is ignored fails every attempt.
const ATTEMPTS: usize = 6;

fn long_request(info: &ModelInfo, prompt: String) -> Request {
    let sampling = Sampling { logit_bias: ban_eos(info), ..Sampling::default() };
    Request { sampling, ..greedy(text(prompt), 600) }
}

struct Cancelled {
    seen: usize,
    usage: Usage,
    before: DecoderStatus,
    after: DecoderStatus,
}

async fn cancel_while_decoding(runtime: &TestRuntime, request: Request) -> Cancelled {
    let before = runtime.decoder().await;
    let (mut output, mut reader) = (Output::default(), runtime.complete(request).unwrap());
    assert!(output.read_tokens(&mut reader, 8).await);
    let (reason, usage) = done(&reader.abandon().wait().await);
    assert_eq!(reason, FinishReason::Cancelled);
    Cancelled { seen: output.tokens.len(), usage, before, after: runtime.decoder().await }
}

#[test]
fn a_cancelled_request_computes_at_most_one_more_token() {
    run_test(async {
        let runtime = TestRuntime::new();
        let info = runtime.model_info().await;
        let mut fewest = usize::MAX;
        for attempt in 0..ATTEMPTS {
            let request = long_request(&info, runtime.text_with_tokens(40, attempt + 10).await);
            let Cancelled { seen, usage, before, after } = cancel_while_decoding(&runtime, request).await;
            let completion = usage.completion_tokens as usize;
            assert!((seen..600).contains(&completion), "{completion} tokens generated, {seen} of them received");
            // The reported usage matches the rows that the decode loop computed.
            let rows = usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens - 1;
            assert_eq!(after.rows - before.rows, u64::from(rows));
            assert_eq!((after.running, after.waiting, after.running_bytes), (0, 0, 0));
            assert_eq!(after.cache_entries, before.cache_entries + 1, "its KV cache is kept");
            assert!(after.cache_bytes > before.cache_bytes);
            fewest = fewest.min(completion - seen);
            if fewest <= 1 {
                break;
            }
        }
        assert!(fewest <= 1, "{fewest} further tokens were computed in the best of {ATTEMPTS} attempts");
    });
}

#[test]
fn a_request_cancelled_during_prefill_computes_at_most_one_more_chunk() {
    run_test(async {
        let runtime = TestRuntime::new();
        let mut fewest = u64::MAX;
        for attempt in 0..ATTEMPTS {
            let request = greedy(text(runtime.text_with_tokens(1500, attempt + 20).await), 64);
            let before = runtime.decoder().await;
            let reader = runtime.complete(request.clone()).unwrap();
            let seen = loop {
                let decoder = runtime.decoder().await;
                if decoder.rows > before.rows {
                    break decoder;
                }
            };
            let (reason, usage) = done(&reader.abandon().wait().await);
            assert_eq!(reason, FinishReason::Cancelled);
            let after = runtime.decoder().await;
            let read = after.rows - before.rows;
            if usage.completion_tokens > 0 {
                // The prefill had finished already.
                continue;
            }
            assert_eq!(usage.prompt_tokens, 1500);
            assert!(read < 1500, "the whole prompt was computed");
            assert_eq!((after.running, after.running_bytes), (0, 0));
            assert_eq!(after.cache_entries, before.cache_entries + 1, "the computed part is kept");
            assert!(after.cache_bytes > before.cache_bytes);
            // A second request continues exactly there.
            let again = runtime.run(Request { tokens_max: 1, ..request }).await;
            assert_eq!(u64::from(again.usage().cached_tokens), u64::from(usage.cached_tokens) + read);
            fewest = fewest.min(after.steps - seen.steps);
            if fewest <= 1 {
                break;
            }
        }
        assert!(fewest <= 1, "{fewest} further chunks were computed in the best of {ATTEMPTS} attempts");
    });
}

#[test]
fn without_a_prefix_cache_a_cancel_frees_the_kv_cache() {
    run_test(async {
        let runtime = TestRuntime::without_cache();
        let info = runtime.model_info().await;
        let request = long_request(&info, runtime.text_with_tokens(40, 30).await);
        let Cancelled { after, .. } = cancel_while_decoding(&runtime, request.clone()).await;
        assert_eq!((after.cache_entries, after.cache_bytes, after.running_bytes), (0, 0, 0));
        let next = runtime.run(Request { tokens_max: 5, ..request }).await;
        assert_eq!((next.reason(), next.usage().completion_tokens), (FinishReason::Length, 5));
    });
}

#[test]
fn dropping_the_last_reader_cancels_and_dropping_one_of_two_does_not() {
    run_test(async {
        let runtime = TestRuntime::new();
        let info = runtime.model_info().await;
        let request = Request { tokens_max: 40, ..long_request(&info, runtime.text_with_tokens(40, 31).await) };
        let expected = runtime.run(request.clone()).await;
        let first = runtime.complete(request.clone()).unwrap();
        let mut second = first.clone();
        drop(first);
        let mut output = Output::default();
        output.read_to_end(&mut second).await;
        assert_eq!(output.tokens, expected.tokens);
        // Requests that wait for a slot are cancelled too, before they compute anything.
        let waiting: Vec<_> = (0..20).map(|_| runtime.complete(Request { tokens_max: 500, ..request.clone() }).unwrap()).collect();
        for reader in waiting {
            assert_eq!(done(&reader.abandon().wait().await).0, FinishReason::Cancelled);
        }
        let decoder = runtime.decoder().await;
        assert_eq!((decoder.running, decoder.waiting, decoder.running_bytes), (0, 0, 0));
        assert_eq!(runtime.run(request).await.tokens, expected.tokens);
    });
}
