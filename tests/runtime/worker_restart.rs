//! A worker may die or be sent away; its requests and its neighbours go on.

use crate::support::{House, MODEL, Told, ask, endless, text, within};
use futures_util::future::join_all;
use souffleur::actors::{Error, FinishReason, ModelState, Request, Sampling};
use std::path::PathBuf;

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it lives");
}

/// Also a zombie is there.
fn is_there(pid: u32) -> bool {
    PathBuf::from(format!("/proc/{pid}")).exists()
}

fn request(house_salt: u64, bias: Vec<(u32, f32)>) -> Request {
    let sampling = Sampling { temperature: 0.8, top_p: 0.95, seed: house_salt, logit_bias: bias, ..Sampling::default() };
    let prompt = format!("# number {house_salt}\ndef f(x):\n    return \"é");
    // Stops that are often begun and never come keep text held back, which a new life must hold back again.
    let stop = vec!["\n\n\n\n\u{1}".into(), " \u{1}".into(), ")\u{1}".into()];
    Request { sampling, stop, logprobs: Some(2), ..ask(text(prompt), 120) }
}

#[test]
fn a_killed_worker_is_replaced_and_its_texts_go_on_unchanged() {
    within(async {
        let (house, cold) = (House::warm(), House::cold());
        let card = house.model_info().await;
        let requests: Vec<_> = (0..4).map(|seed| request(seed, endless(&card))).collect();
        let mut readers: Vec<_> = requests.iter().map(|request| house.runtime.complete(request.clone()).unwrap()).collect();
        let mut told: Vec<_> = readers.iter().map(|_| Told::default()).collect();
        for (told, reader) in told.iter_mut().zip(&mut readers) {
            assert!(told.reach(reader, 6).await);
        }
        let pid = house.model().await.worker_pid.expect("it is loaded");
        kill(pid);
        for ((told, reader), request) in told.iter_mut().zip(&mut readers).zip(&requests) {
            told.follow(reader).await;
            let undisturbed = cold.run(request.clone()).await;
            assert_eq!(told.text, undisturbed.text);
            assert_eq!(told.tokens, undisturbed.tokens);
            assert_eq!(told.reason(), undisturbed.reason());
            assert_eq!(told.usage().completion_tokens, undisturbed.usage().completion_tokens);
        }
        let model = house.model().await;
        assert_eq!((model.state, model.restarts, model.in_flight), (ModelState::Ready, 1, 0));
        assert!(model.last_cause().is_some_and(|cause| cause.contains("signal 9")));
        assert_ne!(model.worker_pid, Some(pid));
        assert!(!is_there(pid));
        assert_eq!(house.run(requests[0].clone()).await.tokens, told[0].tokens);
    });
}

#[test]
fn a_worker_killed_at_any_token_changes_nothing_and_dies_no_second_death() {
    within(async {
        let house = House::warm();
        let card = house.model_info().await;
        // Short ones, so that the last token and the end of the text are among the moments that are hit.
        let short = Request { tokens_max: 8, ..request(9, endless(&card)) };
        let undisturbed = house.run(short.clone()).await;
        for (deaths, count) in [1, 8].into_iter().enumerate() {
            let (mut told, mut reader) = (Told::default(), house.runtime.complete(short.clone()).unwrap());
            told.reach(&mut reader, count).await;
            kill(house.model().await.worker_pid.expect("it is loaded"));
            told.follow(&mut reader).await;
            assert_eq!((told.text.as_str(), told.reason()), (undisturbed.text.as_str(), FinishReason::Length));
            assert_eq!(told.tokens, undisturbed.tokens);
            // A kill after the end is a death as well, once it was noticed.
            house.run(short.clone()).await;
            assert_eq!(house.model().await.restarts as usize, deaths + 1);
        }
    });
}

#[test]
fn unloading_ends_the_process_and_what_it_had_in_hand() {
    within(async {
        let house = House::warm();
        let card = house.model_info().await;
        let long = Request { tokens_max: 1000, ..request(1, endless(&card)) };
        let (mut told, mut reader) = (Told::default(), house.runtime.complete(long.clone()).unwrap());
        assert!(told.reach(&mut reader, 3).await);
        let pid = house.model().await.worker_pid.expect("it is loaded");
        assert!(is_there(pid));
        house.runtime.unload(MODEL).await.unwrap();
        assert!(!is_there(pid), "the memory is not back");
        told.follow(&mut reader).await;
        assert_eq!(told.error(), &Error::Unloading { model: MODEL.into() });
        let model = house.model().await;
        assert_eq!((model.state, model.worker_pid, model.in_flight, model.restarts), (ModelState::Unloaded, None, 0, 0));
        // Unloading what is not loaded is fine, and the next request loads it.
        house.runtime.unload(MODEL).await.unwrap();
        let next = house.run(Request { tokens_max: 5, ..long }).await;
        let shared = told.tokens.len().min(5);
        assert_eq!(next.ids()[..shared], told.ids()[..shared]);
        assert_eq!(next.reason(), FinishReason::Length);
    });
}

#[test]
fn more_than_may_be_in_hand_is_refused_at_once() {
    within(async {
        let house = House::warm();
        let card = house.model_info().await;
        let long = Request { tokens_max: 500, ..request(1, endless(&card)) };
        let limit = house.runtime.limits().requests_in_flight;
        let readers: Vec<_> = (0..limit).map(|_| house.runtime.complete(long.clone()).unwrap()).collect();
        assert_eq!(house.runtime.complete(long.clone()).err(), Some(Error::Overloaded { limit }));
        assert_eq!(house.runtime.status().await.requests_in_flight, limit);
        join_all(readers.into_iter().map(|reader| reader.abandon().wait())).await;
        assert_eq!(house.runtime.status().await.requests_in_flight, 0);
        assert_eq!(house.run(Request { tokens_max: 5, ..long }).await.reason(), FinishReason::Length);
    });
}
