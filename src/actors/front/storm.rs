//! Whatever happens in whatever order: one end for every request, and the text is what it would have been.

use super::{
    Ending, Reader, Runtime,
    script::{Plan, STEP, World, text},
    tests::{config, house, request},
};
use crate::actors::{End, Error, FinishReason, Question};
use crate::config::{Config, RestartLimit};
use proptest::{collection::vec, option, prelude::*};
use std::{
    io::Write,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
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
    Kill,
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
        1 => Just(Act::Kill),
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
fn judge(stream: &Stream, end: &End, kills: usize) {
    let whole = text(stream.tokens);
    assert!(whole.starts_with(&stream.read), "{:?} is not how {whole:?} begins", stream.read);
    match end {
        End::Done { reason: FinishReason::Length, .. } => assert_eq!(stream.read, whole),
        // Who was alone at a second death is to blame, also when that came from outside.
        End::Failed(Error::WorkerLost { .. }) => {
            assert!(stream.prompt.starts_with("die@") || kills > 0, "{:?} was innocent", stream.prompt)
        }
        // Of an unload, of a load that was refused, and of a shutdown.
        End::Failed(Error::Unloading { .. } | Error::ShuttingDown) => {}
        End::Done { .. } | End::Failed(_) => panic!("{end:?}"),
    }
}

async fn play(runtime: &Runtime, world: &World, acts: Vec<Act>, cut: Option<Duration>) {
    let mut streams = Vec::<Stream>::new();
    let mut shared = Vec::<Reader>::new();
    let mut endings = Vec::<Ending>::new();
    let mut aside = Vec::new();
    let mut kills = 0;
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
                        judge(&streams.swap_remove(at), &end, kills);
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
                aside.push(actix::spawn(async move { drop(runtime.unload("a").await) }));
            }
            Act::Ask { kills } => {
                let runtime = runtime.clone();
                let question = Question::Tokenize(if kills { "die" } else { "x" }.into());
                aside.push(actix::spawn(async move { drop(runtime.ask("a", question).await) }));
            }
            Act::Status => assert_eq!(runtime.status().await.models.len(), 2),
            Act::Kill => {
                kills += 1;
                world.kill.send_replace(());
            }
            Act::Pass(ms) => sleep(Duration::from_millis(ms)).await,
        }
    }
    if let Some(grace) = cut {
        let runtime = runtime.clone();
        aside.push(actix::spawn(async move { runtime.shutdown(grace).await }));
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
        judge(&stream, &end, kills);
    }
    drop(shared);
    for ending in endings {
        ending.wait().await;
    }
    for task in aside {
        task.await.unwrap();
    }
}

/// 512 cases have about 15,000 acts; docs/reliability.md has the command for a million.
fn cases() -> u32 {
    std::env::var("SOUFFLEUR_STORM").map_or(512, |text| text.parse().expect("SOUFFLEUR_STORM is a number of cases"))
}

/// Whether every death in a play is one that its front counts.
fn counts(acts: &[Act], plans: &[Plan]) -> bool {
    let unloads = |act: &Act| matches!(act, Act::Unload);
    let stalls = |act: &Act| matches!(act, Act::Complete { prompt, .. } if prompt.starts_with("stall"));
    // A worker that is killed as it refuses has refused.
    let unclear = |plan: &Plan| matches!(plan, Plan::StallLoading | Plan::Refuse(_));
    !acts.iter().any(|act| unloads(act) || stalls(act)) && !plans.iter().any(unclear)
}

static ACTS: AtomicU64 = AtomicU64::new(0);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn every_request_has_one_end_whatever_happens(
        acts in vec(act(), 0..60),
        plans in vec(plan(), 0..6),
        keep in any::<bool>(),
        cut in option::weighted(0.3, (0..40u64).prop_map(Duration::from_millis)),
    ) {
        let all = ACTS.fetch_add(acts.len() as u64, Ordering::Relaxed) + acts.len() as u64;
        if all / 100_000 > (all - acts.len() as u64) / 100_000 {
            let _ = writeln!(std::io::stderr(), "{all} acts");
        }
        // Giving up is tested by itself.
        let restarts = RestartLimit { deaths: u32::MAX, period: Duration::from_secs(30) };
        let keep_alive = keep.then_some(Duration::from_millis(20));
        let exact = !keep && cut.is_none() && counts(&acts, &plans);
        house(Config { restarts, keep_alive, ..config() }, &plans, async |runtime, world| {
            play(runtime, world, acts, cut).await;
            // The last one may be on its way.
            while exact && runtime.models().await[0].restarts != world.deaths.load(Ordering::SeqCst) {
                sleep(STEP).await;
            }
        });
    }
}
