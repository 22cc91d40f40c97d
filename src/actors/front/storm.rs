//! Whatever happens in whatever order: one end for every request, and the text is what it would have been.

use super::{
    Ending, Reader, Runtime,
    script::{Plan, text},
    tests::{config, house, request},
};
use crate::actors::{End, Error, FinishReason, Question};
use crate::config::{Config, RestartLimit};
use proptest::{collection::vec, prelude::*};
use std::time::Duration;
use tokio::time::sleep;

#[derive(Clone, Debug)]
enum Act {
    Complete { prompt: String, tokens: u32 },
    Read(usize),
    Share(usize),
    Drop(usize),
    Abandon(usize),
    Load,
    Unload,
    Ask { kills: bool },
    Status,
    Pass(u64),
}

fn prompt() -> impl Strategy<Value = String> {
    let word = ("die|die-once|stall", 0..12u32).prop_map(|(word, token)| format!("{word}@{token}"));
    prop_oneof![3 => Just(String::new()), 1 => word]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (prompt(), 1..15u32).prop_map(|(prompt, tokens)| Act::Complete { prompt, tokens }),
        2 => (0..8usize).prop_map(Act::Read),
        1 => (0..8usize).prop_map(Act::Share),
        1 => (0..8usize).prop_map(Act::Drop),
        2 => (0..8usize).prop_map(Act::Abandon),
        1 => Just(Act::Load),
        1 => Just(Act::Unload),
        2 => any::<bool>().prop_map(|kills| Act::Ask { kills }),
        1 => Just(Act::Status),
        6 => (0..60u64).prop_map(Act::Pass),
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    let refused = Plan::Refuse(Error::ShuttingDown);
    prop_oneof![6 => Just(Plan::Load), 1 => Just(Plan::NotStarted), 1 => Just(Plan::DieLoading), 1 => Just(Plan::StallLoading), 1 => Just(refused)]
}

struct Stream {
    prompt: String,
    tokens: u32,
    read: String,
    /// From when the rest was read.
    from: Reader,
}

/// The text read so far is the text's beginning, and the end fits the request.
fn judge(stream: &Stream, end: &End) {
    let whole = text(stream.tokens);
    assert!(whole.starts_with(&stream.read), "{:?} is not how {whole:?} begins", stream.read);
    match end {
        End::Done { reason: FinishReason::Length, .. } => assert_eq!(stream.read, whole),
        End::Failed(Error::WorkerLost { .. }) => assert!(stream.prompt.starts_with("die@"), "{:?} was innocent", stream.prompt),
        // Of an unload, and of a load that was refused.
        End::Failed(Error::Unloading { .. } | Error::ShuttingDown) => {}
        End::Done { .. } | End::Failed(_) => panic!("{end:?}"),
    }
}

async fn play(runtime: &Runtime, acts: Vec<Act>) {
    let mut streams = Vec::<Stream>::new();
    let mut shared = Vec::<Reader>::new();
    let mut endings = Vec::<Ending>::new();
    let mut aside = Vec::new();
    let pick = |of: usize, at: usize| (of > 0).then(|| at % of.max(1));
    for act in acts {
        match act {
            Act::Complete { prompt, tokens } => match runtime.complete(request(&prompt, tokens)) {
                Ok(from) => streams.push(Stream { prompt, tokens, read: String::new(), from }),
                Err(error) => assert_eq!(error, Error::Overloaded { limit: 16 }),
            },
            Act::Read(at) => {
                if let Some(at) = pick(streams.len(), at) {
                    let news = streams[at].from.next().await;
                    streams[at].read += &news.text;
                    if let Some(end) = news.end {
                        judge(&streams.swap_remove(at), &end);
                    }
                }
            }
            Act::Share(at) => shared.extend(pick(streams.len(), at).map(|at| streams[at].from.clone())),
            Act::Drop(at) => drop(pick(streams.len(), at).map(|at| streams.swap_remove(at))),
            Act::Abandon(at) => endings.extend(pick(streams.len(), at).map(|at| streams.swap_remove(at).from.abandon())),
            Act::Load => {
                let runtime = runtime.clone();
                aside.push(actix::spawn(async move { drop(runtime.load("a", |_, _| {}).await) }));
            }
            Act::Unload => {
                let runtime = runtime.clone();
                aside.push(actix::spawn(async move { runtime.unload("a").await.unwrap() }));
            }
            Act::Ask { kills } => {
                let runtime = runtime.clone();
                let question = Question::Tokenize(if kills { "die" } else { "x" }.into());
                aside.push(actix::spawn(async move { drop(runtime.ask("a", question).await) }));
            }
            Act::Status => assert_eq!(runtime.status().await.models.len(), 2),
            Act::Pass(ms) => sleep(Duration::from_millis(ms)).await,
        }
    }
    for mut stream in streams {
        let end = loop {
            let news = stream.from.next().await;
            stream.read += &news.text;
            if let Some(end) = news.end {
                break end;
            }
        };
        assert_eq!(stream.from.next().await.end.as_ref(), Some(&end), "an end does not change");
        judge(&stream, &end);
    }
    drop(shared);
    for ending in endings {
        ending.wait().await;
    }
    for task in aside {
        task.await.unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn every_request_has_one_end_whatever_happens(acts in vec(act(), 0..60), plans in vec(plan(), 0..6), keep in any::<bool>()) {
        // Giving up is tested by itself.
        let restarts = RestartLimit { deaths: u32::MAX, period: Duration::from_secs(30) };
        let keep_alive = keep.then_some(Duration::from_millis(20));
        house(Config { restarts, keep_alive, ..config() }, &plans, async |runtime, _| play(runtime, acts).await);
    }
}
