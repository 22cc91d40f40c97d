//! Everything at once for a long time: texts, batches, cancels, connections that go away, and a death every so often.
//! Every request that somebody waits for is answered once and rightly, and nothing grows.

use crate::{
    program::{Received, Server, Socket, call, receive},
    support::{Dice, HANG, alone, count, signal, status},
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};
use tokio_tungstenite::tungstenite::Message;

const CLIENTS: usize = 4;
const TEXTS: usize = 32;
const KILL_EVERY: usize = 1000;
/// Where Linux says how much there is of a process.
const KIB: &str = "VmRSS";

fn params(number: usize) -> Value {
    let seeded = json!({ "temperature": 0.9, "seed": number });
    let mut params = if number.is_multiple_of(2) { json!({}) } else { seeded };
    params["prompt"] = json!(format!("{}# text {number}\ndef f(x):\n    ", "# a longer beginning\n".repeat(number % 5 * 6)));
    params["maxTokens"] = json!(1 + number * 5 % 8);
    params
}

/// One client: a connection, and what it knows of the texts.
struct Client<'a> {
    server: &'a Server,
    socket: Socket,
    texts: &'a [String],
    dice: Dice,
    last_id: usize,
}

impl<'a> Client<'a> {
    fn new(server: &'a Server, texts: &'a [String], dice: Dice) -> Self {
        Self { server, socket: server.connect(), texts, dice, last_id: 0 }
    }

    fn send(&mut self, message: String) {
        self.socket.send(Message::text(message)).expect("it listens");
    }

    fn next(&mut self) -> Value {
        match receive(&mut self.socket) {
            Received::Message(message) => message,
            Received::Closed(code) => panic!("closed ({code:?})"),
        }
    }

    /// A request for one of the texts; which, and its message.
    fn request(&mut self, more: Value) -> (usize, String) {
        let number = self.dice.roll(TEXTS);
        self.last_id += 1;
        let mut params = params(number);
        params.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        (number, call(&self.last_id.to_string(), "complete", params))
    }

    fn plain(&mut self) -> usize {
        let (number, message) = self.request(json!({}));
        self.send(message);
        let answer = self.next();
        assert_eq!((&answer["id"], &answer["result"]["text"]), (&json!(self.last_id), &json!(self.texts[number])), "{answer}");
        1
    }

    fn streamed(&mut self) -> usize {
        let (number, message) = self.request(json!({ "partialResultToken": "p" }));
        self.send(message);
        let mut text = String::new();
        let answer = loop {
            let message = self.next();
            match message["params"]["value"]["text"].as_str() {
                Some(piece) => text += piece,
                None => break message,
            }
        };
        assert_eq!((&answer["id"], &answer["result"]["text"]), (&json!(self.last_id), &json!("")), "{answer}");
        assert_eq!(text, self.texts[number]);
        1
    }

    fn batch(&mut self) -> usize {
        let members: Vec<_> = (0..2 + self.dice.roll(5)).map(|_| self.request(json!({}))).collect();
        let messages: Vec<_> = members.iter().map(|(_, message)| message.as_str()).collect();
        self.send(format!("[{}]", messages.join(",")));
        let answers = self.next();
        let texts: Vec<_> = answers.as_array().expect("an array").iter().map(|answer| answer["result"]["text"].as_str()).collect();
        let expected: Vec<_> = members.iter().map(|(number, _)| Some(self.texts[*number].as_str())).collect();
        assert_eq!(texts, expected, "{answers}");
        members.len()
    }

    fn cancelled(&mut self) -> usize {
        let (_, message) = self.request(json!({ "maxTokens": 200 }));
        self.send(message);
        thread::sleep(Duration::from_micros(self.dice.roll(8000) as u64));
        let id = self.last_id;
        self.send(format!(r#"{{"jsonrpc":"2.0","method":"$/cancelRequest","params":{{"id":{id}}}}}"#));
        let answer = self.next();
        assert_eq!(answer["id"], json!(id), "{answer}");
        assert!(answer["error"]["code"] == -32800 || answer["result"]["text"].is_string(), "{answer}");
        1
    }

    /// Asks and goes away, with and without a goodbye.
    fn dropped(&mut self) -> usize {
        let asked = 1 + self.dice.roll(3);
        for _ in 0..asked {
            let (_, message) = self.request(json!({ "maxTokens": 200, "partialResultToken": "p" }));
            self.send(message);
        }
        match self.dice.roll(3) {
            0 => drop(self.next()),
            1 => drop(self.socket.close(None)),
            _ => thread::sleep(Duration::from_micros(self.dice.roll(8000) as u64)),
        }
        self.socket = self.server.connect();
        asked
    }

    fn turn(&mut self) -> usize {
        match self.dice.roll(20) {
            0..9 => self.plain(),
            9..12 => self.streamed(),
            12..15 => self.batch(),
            15..18 => self.cancelled(),
            _ => self.dropped(),
        }
    }
}

/// The least squares' line through samples at equal distances: how far it rises over all of them.
fn rise(samples: &[u64]) -> f64 {
    let middle = (samples.len() as f64 - 1.0) / 2.0;
    let mean = samples.iter().sum::<u64>() as f64 / samples.len() as f64;
    let at = |index: usize| index as f64 - middle;
    let along: f64 = samples.iter().enumerate().map(|(index, &sample)| at(index) * (sample as f64 - mean)).sum();
    let across: f64 = (0..samples.len()).map(|index| at(index).powi(2)).sum();
    along / across * (samples.len() as f64 - 1.0)
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives").count()
}

/// On a connection of its own: one that is not read for long is closed.
fn state(server: &Server) -> Value {
    let mut socket = server.connect();
    socket.send(Message::text(call("0", "status", "{}"))).expect("it listens");
    match receive(&mut socket) {
        Received::Message(message) => message["result"].clone(),
        Received::Closed(code) => panic!("closed ({code:?})"),
    }
}

#[test]
fn a_long_and_bumpy_ride_leaves_nothing_behind() {
    let _alone = alone();
    let (requests, mut dice) = (count("SOUFFLEUR_SOAK", 2500), Dice::new());
    let server = Server::with(&["--restarts", "1000000", "--cache", "16"]);
    let front = server.program.child.id();
    let worker_but = |last: u32| loop {
        let model = &state(&server)["models"][0];
        match (model["state"].as_str(), model["workerPid"].as_u64()) {
            (Some("ready"), Some(pid)) if pid as u32 != last => break pid as u32,
            _ => thread::sleep(Duration::from_millis(1)),
        }
    };
    let texts: Vec<String> = {
        let mut client = Client::new(&server, &[], dice.clone());
        let text = |number| {
            client.send(call("1", "complete", params(number)));
            client.next()["result"]["text"].as_str().expect("a text").to_owned()
        };
        (0..TEXTS).map(text).collect()
    };
    let (start, descriptors_before) = (Instant::now(), descriptors(front));
    let done = AtomicUsize::new(0);
    // A quarter more without deaths: only a worker that lives long can show that it grows.
    let (with_deaths, requests) = (requests, requests + requests / 4);
    let (mut of_front, mut of_lives, mut of_last_life) = (Vec::new(), Vec::new(), Vec::new());
    let mut kills = 0;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let dice = Dice::from(dice.roll(usize::MAX) as u64 + number as u64);
                let (server, texts, done) = (&server, &texts, &done);
                scope.spawn(move || {
                    let mut client = Client::new(server, texts, dice);
                    while done.load(Ordering::Relaxed) < requests {
                        let turn = client.turn();
                        done.fetch_add(turn, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let mut pid = worker_but(0);
        // Without what a worker holds for those that run just then.
        let mut of_worker = u64::MAX;
        let mut next = KILL_EVERY / 4;
        while clients.iter().any(|client| !client.is_finished()) {
            thread::sleep(Duration::from_millis(5));
            of_worker = of_worker.min(status(pid, KIB).expect("it lives"));
            let now = done.load(Ordering::Relaxed);
            if now < next {
                continue;
            }
            of_front.push(status(front, KIB).expect("it lives"));
            if next > with_deaths {
                of_last_life.push(of_worker);
            } else if next.is_multiple_of(KILL_EVERY) {
                of_lives.push(of_worker);
                kills += 1;
                signal(pid, Signal::KILL);
                eprintln!("{now} requests in {:.0?}; KiB of front {:?} and worker {of_worker}", start.elapsed(), of_front.last());
                pid = worker_but(pid);
            }
            of_worker = u64::MAX;
            next += KILL_EVERY / 4;
        }
        for client in clients {
            client.join().expect("every answer came, once and right");
        }
    });
    // Those that nobody waits for end too.
    let waiting = Instant::now();
    let after = loop {
        let after = state(&server);
        if after["requestsInFlight"] == 0 && after["models"][0]["decoder"]["running"] == 0 {
            break after;
        }
        assert!(waiting.elapsed() < HANG, "{after}");
        thread::sleep(Duration::from_millis(10));
    };
    let model = &after["models"][0];
    assert_eq!((&model["restarts"], &model["inFlight"]), (&json!(kills), &json!(0)), "{after}");
    let decoder = &model["decoder"];
    assert_eq!((&decoder["waiting"], &decoder["runningBytes"]), (&json!(0), &json!(0)), "{after}");
    assert!(decoder["cacheBytes"].as_u64() <= decoder["cacheBudgetBytes"].as_u64(), "{after}");
    let half = |samples: &[u64]| rise(&samples[samples.len() / 2..]) / 1024.0;
    let rises = [half(&of_front), half(&of_lives), half(&of_last_life)];
    eprintln!("{} requests, {kills} kills in {:.0?}", done.load(Ordering::Relaxed), start.elapsed());
    eprintln!("MiB more over the last half: front {:.3}, worker from life to life {:.3}, last life {:.3}", rises[0], rises[1], rises[2]);
    eprintln!("KiB of the front {of_front:?}, of the workers {of_lives:?}, of the last {of_last_life:?}");
    // The last connection's is on its way.
    while descriptors(front) > descriptors_before {
        assert!(waiting.elapsed() < HANG, "{descriptors_before} descriptors became {}", descriptors(front));
    }
    // Few requests say nothing of a slope.
    assert!(requests < 50_000 || rises.iter().all(|rise| rise.abs() <= 1.0), "{rises:?} MiB");
}
