//! Property test: under random operations every request ends exactly once, and its text is the text without failures.

use super::{
    config,
    fake_worker::{FakeWorkers, STEP_TIME, StartPlan, expected_text},
    request, with_runtime,
};
use crate::actors::front::{Completion, Reader, Runtime};
use crate::actors::{End, Error, FinishReason, Question};
use crate::config::RestartLimit;
use proptest::{collection::vec, option, prelude::*};
use std::{
    io::Write,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::time::sleep;

#[derive(Clone, Debug)]
enum Operation {
    Complete { prompt: String, tokens: u32 },
    Read(usize),
    Clone(usize),
    Drop(usize),
    Abandon(usize),
    Load,
    Unload,
    Ask { fatal: bool },
    Status,
    Kill,
    Wait(u64),
}

fn prompt() -> impl Strategy<Value = String> {
    let word = ("die|die-once|stall", 0..12u32).prop_map(|(word, token)| format!("{word}@{token}"));
    prop_oneof![3 => Just(String::new()), 1 => word]
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        6 => (prompt(), 1..15u32).prop_map(|(prompt, tokens)| Operation::Complete { prompt, tokens }),
        2 => (0..8usize).prop_map(Operation::Read),
        1 => (0..8usize).prop_map(Operation::Clone),
        1 => (0..8usize).prop_map(Operation::Drop),
        2 => (0..8usize).prop_map(Operation::Abandon),
        1 => Just(Operation::Load),
        1 => Just(Operation::Unload),
        2 => any::<bool>().prop_map(|fatal| Operation::Ask { fatal }),
        1 => Just(Operation::Status),
        1 => Just(Operation::Kill),
        6 => (0..60u64).prop_map(Operation::Wait),
    ]
}

fn plan() -> impl Strategy<Value = StartPlan> {
    let fail_load = StartPlan::FailLoad(Error::ShuttingDown);
    prop_oneof![6 => Just(StartPlan::Load), 1 => Just(StartPlan::NotStarted), 1 => Just(StartPlan::DieLoading), 1 => Just(StartPlan::StallLoading), 1 => Just(fail_load)]
}

struct Stream {
    prompt: String,
    tokens: u32,
    text: String,
    reader: Reader,
}

/// Checks that the text is a prefix of the expected text, and that the end is one that this request may have.
fn check_end(stream: &Stream, end: &End, kills: usize) {
    let expected = expected_text(stream.tokens);
    assert!(expected.starts_with(&stream.text), "{:?} is not a prefix of {expected:?}", stream.text);
    match end {
        End::Done { reason: FinishReason::Length, .. } => assert_eq!(stream.text, expected),
        // A request that runs alone when its worker dies again fails, even if the worker was killed from outside.
        End::Failed(Error::WorkerLost { .. }) => {
            assert!(stream.prompt.starts_with("die@") || kills > 0, "{:?} does not kill its worker", stream.prompt)
        }
        // After an unload, a failed load, or a shutdown.
        End::Failed(Error::Unloading { .. } | Error::ShuttingDown) => {}
        End::Done { .. } | End::Failed(_) => panic!("{end:?}"),
    }
}

async fn run(runtime: &Runtime, workers: &FakeWorkers, operations: Vec<Operation>, shutdown: Option<Duration>) {
    let mut streams = Vec::<Stream>::new();
    let mut clones = Vec::<Reader>::new();
    let mut completions = Vec::<Completion>::new();
    let mut tasks = Vec::new();
    let mut kills = 0;
    let pick = |count: usize, at: usize| (count > 0).then(|| at % count.max(1));
    for operation in operations {
        match operation {
            Operation::Complete { prompt, tokens } => match runtime.complete(request(&prompt, tokens)) {
                Ok(reader) => streams.push(Stream { prompt, tokens, text: String::new(), reader }),
                Err(error) => assert_eq!(error, Error::Overloaded { limit: 16 }),
            },
            Operation::Read(at) => {
                if let Some(at) = pick(streams.len(), at) {
                    let update = streams[at].reader.next().await;
                    streams[at].text += &update.text;
                    if let Some(end) = update.end {
                        check_end(&streams.swap_remove(at), &end, kills);
                    }
                }
            }
            Operation::Clone(at) => clones.extend(pick(streams.len(), at).map(|at| streams[at].reader.clone())),
            Operation::Drop(at) => drop(pick(streams.len(), at).map(|at| streams.swap_remove(at))),
            Operation::Abandon(at) => completions.extend(pick(streams.len(), at).map(|at| streams.swap_remove(at).reader.abandon())),
            Operation::Load => {
                let runtime = runtime.clone();
                tasks.push(actix::spawn(async move { drop(runtime.load("a", |_, _| {}).await) }));
            }
            Operation::Unload => {
                let runtime = runtime.clone();
                tasks.push(actix::spawn(async move { drop(runtime.unload("a").await) }));
            }
            Operation::Ask { fatal } => {
                let runtime = runtime.clone();
                let question = Question::Tokenize(if fatal { "die" } else { "x" }.into());
                tasks.push(actix::spawn(async move { drop(runtime.ask("a", question).await) }));
            }
            Operation::Status => assert_eq!(runtime.status().await.models.len(), 2),
            Operation::Kill => {
                kills += 1;
                workers.kill.send_replace(());
            }
            Operation::Wait(ms) => sleep(Duration::from_millis(ms)).await,
        }
    }
    if let Some(grace) = shutdown {
        let runtime = runtime.clone();
        tasks.push(actix::spawn(async move { runtime.shutdown(grace).await }));
    }
    for mut stream in streams {
        let end = loop {
            let update = stream.reader.next().await;
            stream.text += &update.text;
            if let Some(end) = update.end {
                break end;
            }
        };
        assert_eq!(stream.reader.next().await.end.as_ref(), Some(&end), "the end does not change");
        check_end(&stream, &end, kills);
    }
    drop(clones);
    for completion in completions {
        completion.wait().await;
    }
    for task in tasks {
        task.await.unwrap();
    }
}

/// 512 cases are about 15,000 operations; docs/reliability.md has the command for a million.
fn cases() -> u32 {
    std::env::var("SOUFFLEUR_RANDOM_CASES").map_or(512, |text| text.parse().expect("SOUFFLEUR_RANDOM_CASES is a number of cases"))
}

/// Whether the runtime must count every death that these operations cause.
fn deaths_are_exact(operations: &[Operation], plans: &[StartPlan]) -> bool {
    let unloads = |operation: &Operation| matches!(operation, Operation::Unload);
    let stalls = |operation: &Operation| matches!(operation, Operation::Complete { prompt, .. } if prompt.starts_with("stall"));
    // A worker that is killed while its load stalls or fails may be counted as a death or as a failed load.
    let ambiguous = |plan: &StartPlan| matches!(plan, StartPlan::StallLoading | StartPlan::FailLoad(_));
    !operations.iter().any(|operation| unloads(operation) || stalls(operation)) && !plans.iter().any(ambiguous)
}

static OPERATIONS: AtomicU64 = AtomicU64::new(0);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn every_request_ends_exactly_once(
        operations in vec(operation(), 0..60),
        plans in vec(plan(), 0..6),
        keep_alive in any::<bool>(),
        shutdown in option::weighted(0.3, (0..40u64).prop_map(Duration::from_millis)),
    ) {
        let total = OPERATIONS.fetch_add(operations.len() as u64, Ordering::Relaxed) + operations.len() as u64;
        if total / 100_000 > (total - operations.len() as u64) / 100_000 {
            let _ = writeln!(std::io::stderr(), "{total} operations");
        }
        // The restart limit has its own tests.
        let restarts = RestartLimit { deaths: u32::MAX, period: Duration::from_secs(30) };
        let keep_alive = keep_alive.then_some(Duration::from_millis(20));
        let exact = keep_alive.is_none() && shutdown.is_none() && deaths_are_exact(&operations, &plans);
        let config = config().with_restarts(restarts).unwrap().with_keep_alive(keep_alive).unwrap();
        with_runtime(config, &plans, async |runtime, workers| {
            run(runtime, workers, operations, shutdown).await;
            // The last death may not have been processed yet.
            while exact && runtime.models().await[0].restarts != workers.deaths.load(Ordering::SeqCst) {
                sleep(STEP_TIME).await;
            }
        });
    }
}
