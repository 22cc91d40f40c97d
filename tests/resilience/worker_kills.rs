//! `kill -9` of the worker at random moments of real streams.

use crate::{
    runtime::{House, MODEL, Told, ask, endless, text},
    support::{Dice, HANG, alone, count, runs, signal, spread},
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

/// What is in flight at once.
const STREAMS: usize = 16;
/// Texts to choose from.
const TEXTS: usize = 48;

/// Half of them greedy, of one token to 64, some with stops that are often begun and never come: these hold text back.
fn request(number: usize, card: &ModelInfo) -> Request {
    let seeded = Sampling { temperature: 0.9, top_p: 0.95, repetition_penalty: 1.1, seed: number as u64, ..Sampling::default() };
    let sampling = if number.is_multiple_of(2) { Sampling::default() } else { seeded };
    let bias = if number.is_multiple_of(3) { Vec::new() } else { endless(card) };
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
        ..ask(text(prompt), tokens_max)
    }
}

async fn model(house: &House) -> ModelStatus {
    house.runtime.models().await.remove(0)
}

async fn ready(house: &House) -> u32 {
    loop {
        let model = model(house).await;
        if let (ModelState::Ready, Some(pid)) = (model.state, model.worker_pid) {
            return pid;
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// Reads to the end; when the next token came.
async fn follow(told: &mut Told, reader: &mut Reader) -> Option<Instant> {
    let more = told.tokens.len() + 1;
    told.reach(reader, more).await;
    let back = (told.tokens.len() >= more).then(Instant::now);
    told.follow(reader).await;
    back
}

async fn load_time(house: &House) -> Duration {
    let mut longest = Duration::ZERO;
    for _ in 0..5 {
        house.runtime.unload(MODEL).await.unwrap();
        let start = Instant::now();
        house.model_info().await;
        longest = longest.max(start.elapsed());
    }
    longest
}

#[test]
fn a_worker_killed_at_any_moment_of_any_stream_costs_no_byte() {
    let _alone = alone();
    let (kills, mut dice) = (count("SOUFFLEUR_KILLS", 15), Dice::new());
    let clock = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    clock.block_on(async {
        let undisturbed = House::cold();
        let card = undisturbed.model_info().await;
        let requests: Vec<_> = (0..TEXTS).map(|number| request(number, &card)).collect();
        let texts = timeout(HANG, join_all(requests.iter().map(|request| undisturbed.run(request.clone())))).await.unwrap();
        drop(undisturbed);

        // Deaths on purpose follow each other faster than the default allows, and each is to be the first of its period.
        let restarts = RestartLimit { deaths: u32::MAX, period: Duration::from_millis(1) };
        let house = House::over(House::config(Settings::default(), Vec::new()).with_restarts(restarts).unwrap());
        house.model_info().await;
        let load = load_time(&house).await;
        let mut backs = Vec::new();
        for death in 1..=kills {
            let pid = ready(&house).await;
            let chosen: Vec<_> = (0..1 + dice.roll(STREAMS)).map(|_| dice.roll(TEXTS)).collect();
            let mut readers: Vec<_> = chosen.iter().map(|&at| house.runtime.complete(requests[at].clone()).unwrap()).collect();
            let mut told: Vec<_> = chosen.iter().map(|_| Told::default()).collect();
            // Somewhere in one of the streams, before its first token and after its last one included.
            let at = dice.roll(chosen.len());
            let moment = dice.roll(texts[chosen[at]].tokens.len() + 1);
            timeout(HANG, told[at].reach(&mut readers[at], moment)).await.expect("it hangs before its death");
            thread::sleep(Duration::from_micros(dice.roll(3000) as u64));
            let killed = Instant::now();
            signal(pid, Signal::KILL);
            let noticed = async {
                while (model(&house).await.restarts as usize) < death {
                    sleep(Duration::from_micros(100)).await;
                }
            };
            timeout(HANG, noticed).await.expect("its death was not noticed");
            // What the dead one said, so that what comes next is the new one's.
            for (told, reader) in told.iter_mut().zip(&mut readers) {
                let _ = told.reach(reader, usize::MAX).now_or_never();
            }
            let followed = join_all(told.iter_mut().zip(&mut readers).map(|(told, reader)| follow(told, reader)));
            let followed = timeout(HANG, followed).await.unwrap_or_else(|_| panic!("kill {death} hangs a stream"));
            backs.extend(followed.into_iter().flatten().min().map(|back| (back - killed).as_secs_f64()));
            for (told, &at) in told.iter().zip(&chosen) {
                let whole = &texts[at];
                assert_eq!(told.text, whole.text, "kill {death}, text {at}");
                assert_eq!(told.tokens, whole.tokens, "kill {death}, text {at}");
                assert_eq!(told.reason(), whole.reason(), "kill {death}, text {at}");
                assert_eq!(told.usage().completion_tokens, whole.usage().completion_tokens);
            }
            assert!(!runs(pid));
            if death % 100 == 0 {
                eprintln!("{death} kills; back after {:.3?} s (least, median, 99th, most)", spread(backs.clone()));
            }
        }
        ready(&house).await;
        let decoder = house.decoder().await;
        let model = house.model().await;
        assert_eq!((model.restarts as usize, model.in_flight), (kills, 0));
        assert_eq!((decoder.running, decoder.waiting, decoder.running_bytes), (0, 0, 0));
        assert_eq!(house.runtime.status().await.requests_in_flight, 0);
        let [_, median, _, most] = spread(backs.clone());
        eprintln!("{kills} kills, {} with a stream to go on; load {load:.3?}; back after {:.3?} s", backs.len(), spread(backs));
        let limit = 1.0 + load.as_secs_f64();
        assert!(median < limit, "half of the streams were not back within {limit:.3} s");
        // One of few may meet a busy machine.
        assert!(kills < 1000 || most < limit, "a stream was back after {most:.3} s, not {limit:.3}");
    });
}
