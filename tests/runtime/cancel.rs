//! Who stops reading stops computing, and what was computed is kept.

use crate::support::{House, Told, ask, done, endless, text, within};
use souffleur::actors::{DecoderStatus, FinishReason, ModelInfo, Request, Sampling, Usage};

/// A cancel has to cross two processes, which a busy machine can delay by a step. One that is not obeyed fails every time.
const ATTEMPTS: usize = 6;

fn long_answer(card: &ModelInfo, prompt: String) -> Request {
    let sampling = Sampling { logit_bias: endless(card), ..Sampling::default() };
    Request { sampling, ..ask(text(prompt), 600) }
}

struct Cancelled {
    seen: usize,
    usage: Usage,
    before: DecoderStatus,
    after: DecoderStatus,
}

async fn cancel_while_decoding(house: &House, request: Request) -> Cancelled {
    let before = house.decoder().await;
    let (mut told, mut reader) = (Told::default(), house.runtime.complete(request).unwrap());
    assert!(told.reach(&mut reader, 8).await);
    let (reason, usage) = done(&reader.abandon().wait().await);
    assert_eq!(reason, FinishReason::Cancelled);
    Cancelled { seen: told.tokens.len(), usage, before, after: house.decoder().await }
}

#[test]
fn a_cancelled_answer_computes_at_most_one_more_token() {
    within(async {
        let house = House::warm();
        let card = house.model_info().await;
        let mut fewest = usize::MAX;
        for attempt in 0..ATTEMPTS {
            let request = long_answer(&card, house.text_of(40, attempt + 10).await);
            let Cancelled { seen, usage, before, after } = cancel_while_decoding(&house, request).await;
            let completion = usage.completion_tokens as usize;
            assert!((seen..600).contains(&completion), "{completion} tokens, of which {seen} were seen");
            // What the loop counted is what the end says: nothing was computed in secret.
            let rows = usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens - 1;
            assert_eq!(after.rows - before.rows, u64::from(rows));
            assert_eq!((after.running, after.waiting, after.running_bytes), (0, 0, 0));
            assert_eq!(after.cache_entries, before.cache_entries + 1, "its keys and values are kept");
            assert!(after.cache_bytes > before.cache_bytes);
            fewest = fewest.min(completion - seen);
            if fewest <= 1 {
                break;
            }
        }
        assert!(fewest <= 1, "at the best of {ATTEMPTS} attempts {fewest} further tokens were computed");
    });
}

#[test]
fn a_prompt_cancelled_while_it_is_read_computes_at_most_one_more_chunk() {
    within(async {
        let house = House::warm();
        let mut fewest = u64::MAX;
        for attempt in 0..ATTEMPTS {
            let request = ask(text(house.text_of(1500, attempt + 20).await), 64);
            let before = house.decoder().await;
            let reader = house.runtime.complete(request.clone()).unwrap();
            let seen = loop {
                let decoder = house.decoder().await;
                if decoder.rows > before.rows {
                    break decoder;
                }
            };
            let (reason, usage) = done(&reader.abandon().wait().await);
            assert_eq!(reason, FinishReason::Cancelled);
            let after = house.decoder().await;
            let read = after.rows - before.rows;
            if usage.completion_tokens > 0 {
                // So fast that it was read already.
                continue;
            }
            assert_eq!(usage.prompt_tokens, 1500);
            assert!(read < 1500, "all of it was read");
            assert_eq!((after.running, after.running_bytes), (0, 0));
            assert_eq!(after.cache_entries, before.cache_entries + 1, "what was read of it is kept");
            assert!(after.cache_bytes > before.cache_bytes);
            // And it goes on from there, to the token.
            let again = house.run(Request { tokens_max: 1, ..request }).await;
            assert_eq!(u64::from(again.usage().cached_tokens), u64::from(usage.cached_tokens) + read);
            fewest = fewest.min(after.steps - seen.steps);
            if fewest <= 1 {
                break;
            }
        }
        assert!(fewest <= 1, "at the best of {ATTEMPTS} attempts {fewest} further chunks were computed");
    });
}

#[test]
fn without_a_cache_a_cancel_frees_the_memory() {
    within(async {
        let house = House::cold();
        let card = house.model_info().await;
        let request = long_answer(&card, house.text_of(40, 30).await);
        let Cancelled { after, .. } = cancel_while_decoding(&house, request.clone()).await;
        assert_eq!((after.cache_entries, after.cache_bytes, after.running_bytes), (0, 0, 0));
        let next = house.run(Request { tokens_max: 5, ..request }).await;
        assert_eq!((next.reason(), next.usage().completion_tokens), (FinishReason::Length, 5));
    });
}

#[test]
fn a_dropped_reader_cancels_and_a_second_one_does_not_let_it() {
    within(async {
        let house = House::warm();
        let card = house.model_info().await;
        let request = Request { tokens_max: 40, ..long_answer(&card, house.text_of(40, 31).await) };
        let expected = house.run(request.clone()).await;
        let first = house.runtime.complete(request.clone()).unwrap();
        let mut second = first.clone();
        drop(first);
        let mut told = Told::default();
        told.follow(&mut second).await;
        assert_eq!(told.tokens, expected.tokens);
        // One that waits for its turn is ended as well, before it has cost anything.
        let crowd: Vec<_> = (0..20).map(|_| house.runtime.complete(Request { tokens_max: 500, ..request.clone() }).unwrap()).collect();
        for reader in crowd {
            assert_eq!(done(&reader.abandon().wait().await).0, FinishReason::Cancelled);
        }
        let decoder = house.decoder().await;
        assert_eq!((decoder.running, decoder.waiting, decoder.running_bytes), (0, 0, 0));
        assert_eq!(house.run(request).await.tokens, expected.tokens);
    });
}
