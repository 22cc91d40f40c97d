//! A client that does not read must not slow down eight others that do.

use crate::support::{Output, TestRuntime};
use crate::table::{ms, p99, row};
use crate::unending;
use futures_util::future::join_all;
use souffleur::actors::{ModelInfo, Reader, Request};
use std::time::{Duration, Instant};

pub(crate) async fn readers(time: Duration) {
    let runtime = TestRuntime::new();
    let info = runtime.model_info().await;
    let (mut all_reading, mut one_not_reading, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        let until = Instant::now() + time;
        let reading = join_all((1..=9).map(|reader| read_on(&runtime, &info, reader, until))).await;
        let until = Instant::now() + time;
        let others = join_all((1..=8).map(|reader| read_on(&runtime, &info, reader, until)));
        let (others, unread) = tokio::join!(others, read_nothing(&runtime, &info, 9, until));
        for (round, mut reader) in (0..).zip(unread) {
            let mut late = Output::default();
            late.read_to_end(&mut reader).await;
            let alone = runtime.run(nth(&info, 9, round)).await;
            assert!((late.text, late.tokens) == (alone.text, alone.tokens), "the ninth client did not get its whole text");
        }
        all_reading.push(p99(reading[..8].concat()));
        one_not_reading.push(p99(others.concat()));
        ratios.push(one_not_reading[one_not_reading.len() - 1] / all_reading[all_reading.len() - 1]);
    }
    row(&format!("p99 gap of eight, nine reading for {} s", time.as_secs()), all_reading, "ms");
    row("p99 gap of eight, the ninth not reading", one_not_reading, "ms");
    row("the second, relative to the first", ratios, "times");
    println!("  the ninth client then read its whole texts, and every token was correct");
}

/// Milliseconds between updates, until `until` or the end of the text.
async fn gaps(reader: &mut Reader, until: Instant) -> Vec<f64> {
    let mut gaps = Vec::new();
    let mut last: Option<Instant> = None;
    while let Ok(news) = tokio::time::timeout_at(until.into(), reader.next()).await {
        let now = Instant::now();
        gaps.extend(last.replace(now).map(|last| ms(now - last)));
        if news.end.is_some() {
            break;
        }
    }
    gaps
}

/// The request of reader `reader` in round `round`.
fn nth(info: &ModelInfo, reader: u64, round: u64) -> Request {
    unending(info, format!("# number {reader}\ndef f(x):\n"), 1900, 100 * reader + round)
}

async fn read_on(runtime: &TestRuntime, info: &ModelInfo, reader: u64, until: Instant) -> Vec<f64> {
    let mut all = Vec::new();
    for round in 0.. {
        if Instant::now() >= until {
            break;
        }
        all.extend(gaps(&mut runtime.complete(nth(info, reader, round)).expect("below the limit of requests"), until).await);
    }
    all
}

/// As `read_on`, but nothing is read. Waits for the end of each text without reading it.
async fn read_nothing(runtime: &TestRuntime, info: &ModelInfo, reader: u64, until: Instant) -> Vec<Reader> {
    let mut unread = Vec::new();
    for round in 0.. {
        if Instant::now() >= until {
            break;
        }
        let reader = runtime.complete(nth(info, reader, round)).expect("below the limit of requests");
        let _ = tokio::time::timeout_at(until.into(), reader.clone().abandon().wait()).await;
        unread.push(reader);
    }
    unread
}
