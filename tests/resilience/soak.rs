//! Soak test: completions, batches, cancels, dropped connections, and worker kills at intervals.
//! Every request whose client waits gets one correct response, and memory does not grow.

use crate::{
    program::{Received, Server, Socket, call, receive},
    support::{HANG, Rng, exclusive, number_from_env, signal, status},
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
/// Resident memory in KiB, in `/proc/PID/status`.
const RSS: &str = "VmRSS";

fn params(number: usize) -> Value {
    let seeded = json!({ "temperature": 0.9, "seed": number });
    let mut params = if number.is_multiple_of(2) { json!({}) } else { seeded };
    params["prompt"] = json!(format!("{}# text {number}\ndef f(x):\n    ", "# a longer beginning\n".repeat(number % 5 * 6)));
    params["maxTokens"] = json!(1 + number * 5 % 8);
    params
}

/// One client: a connection, and the expected texts.
struct Client<'a> {
    server: &'a Server,
    socket: Socket,
    texts: &'a [String],
    rng: Rng,
    last_id: usize,
}

impl<'a> Client<'a> {
    fn new(server: &'a Server, texts: &'a [String], rng: Rng) -> Self {
        Self { server, socket: server.connect(), texts, rng, last_id: 0 }
    }

    fn send(&mut self, message: String) {
        self.socket.send(Message::text(message)).expect("the server listens");
    }

    fn next(&mut self) -> Value {
        match receive(&mut self.socket) {
            Received::Message(message) => message,
            Received::Closed(code) => panic!("closed ({code:?})"),
        }
    }

    /// A request for a random text: its number and the message.
    fn request(&mut self, more: Value) -> (usize, String) {
        let number = self.rng.below(TEXTS);
        self.last_id += 1;
        let mut params = params(number);
        params.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        (number, call(&self.last_id.to_string(), "complete", params))
    }

    fn plain(&mut self) -> usize {
        let (number, message) = self.request(json!({}));
        self.send(message);
        let response = self.next();
        assert_eq!((&response["id"], &response["result"]["text"]), (&json!(self.last_id), &json!(self.texts[number])), "{response}");
        1
    }

    fn streamed(&mut self) -> usize {
        let (number, message) = self.request(json!({ "partialResultToken": "p" }));
        self.send(message);
        let mut text = String::new();
        let response = loop {
            let message = self.next();
            match message["params"]["value"]["text"].as_str() {
                Some(partial) => text += partial,
                None => break message,
            }
        };
        assert_eq!((&response["id"], &response["result"]["text"]), (&json!(self.last_id), &json!("")), "{response}");
        assert_eq!(text, self.texts[number]);
        1
    }

    fn batch(&mut self) -> usize {
        let members: Vec<_> = (0..2 + self.rng.below(5)).map(|_| self.request(json!({}))).collect();
        let messages: Vec<_> = members.iter().map(|(_, message)| message.as_str()).collect();
        self.send(format!("[{}]", messages.join(",")));
        let responses = self.next();
        let texts: Vec<_> = responses.as_array().expect("an array").iter().map(|response| response["result"]["text"].as_str()).collect();
        let expected: Vec<_> = members.iter().map(|(number, _)| Some(self.texts[*number].as_str())).collect();
        assert_eq!(texts, expected, "{responses}");
        members.len()
    }

    fn cancelled(&mut self) -> usize {
        let (_, message) = self.request(json!({ "maxTokens": 200 }));
        self.send(message);
        thread::sleep(Duration::from_micros(self.rng.below(8000) as u64));
        let id = self.last_id;
        self.send(format!(r#"{{"jsonrpc":"2.0","method":"$/cancelRequest","params":{{"id":{id}}}}}"#));
        let response = self.next();
        assert_eq!(response["id"], json!(id), "{response}");
        assert!(response["error"]["code"] == -32800 || response["result"]["text"].is_string(), "{response}");
        1
    }

    /// Sends requests and disconnects, with or without a close frame.
    fn dropped(&mut self) -> usize {
        let sent = 1 + self.rng.below(3);
        for _ in 0..sent {
            let (_, message) = self.request(json!({ "maxTokens": 200, "partialResultToken": "p" }));
            self.send(message);
        }
        match self.rng.below(3) {
            0 => drop(self.next()),
            1 => drop(self.socket.close(None)),
            _ => thread::sleep(Duration::from_micros(self.rng.below(8000) as u64)),
        }
        self.socket = self.server.connect();
        sent
    }

    fn turn(&mut self) -> usize {
        match self.rng.below(20) {
            0..9 => self.plain(),
            9..12 => self.streamed(),
            12..15 => self.batch(),
            15..18 => self.cancelled(),
            _ => self.dropped(),
        }
    }
}

/// The rise of a least-squares line through equally spaced samples, from the first to the last.
fn rise(samples: &[u64]) -> f64 {
    let middle = (samples.len() as f64 - 1.0) / 2.0;
    let mean = samples.iter().sum::<u64>() as f64 / samples.len() as f64;
    let at = |index: usize| index as f64 - middle;
    let along: f64 = samples.iter().enumerate().map(|(index, &sample)| at(index) * (sample as f64 - mean)).sum();
    let across: f64 = (0..samples.len()).map(|index| at(index).powi(2)).sum();
    along / across * (samples.len() as f64 - 1.0)
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("the process exists").count()
}

/// The result of `status`, over a new connection: one that is not read for long is closed.
fn server_status(server: &Server) -> Value {
    let mut socket = server.connect();
    socket.send(Message::text(call("0", "status", "{}"))).expect("the server listens");
    match receive(&mut socket) {
        Received::Message(message) => message["result"].clone(),
        Received::Closed(code) => panic!("closed ({code:?})"),
    }
}

#[test]
fn soak_with_worker_kills_gives_correct_responses_and_no_growth() {
    let _exclusive = exclusive();
    let (requests, mut rng) = (number_from_env("SOUFFLEUR_SOAK", 2500), Rng::new());
    let server = Server::with(&["--restarts", "1000000", "--cache", "16"]);
    let front = server.program.child.id();
    let worker_other_than = |last: u32| loop {
        let model = &server_status(&server)["models"][0];
        match (model["state"].as_str(), model["workerPid"].as_u64()) {
            (Some("ready"), Some(pid)) if pid as u32 != last => break pid as u32,
            _ => thread::sleep(Duration::from_millis(1)),
        }
    };
    let texts: Vec<String> = {
        let mut client = Client::new(&server, &[], rng.clone());
        let text = |number| {
            client.send(call("1", "complete", params(number)));
            client.next()["result"]["text"].as_str().expect("a text").to_owned()
        };
        (0..TEXTS).map(text).collect()
    };
    let (start, descriptors_before) = (Instant::now(), descriptors(front));
    let done = AtomicUsize::new(0);
    // A quarter more without kills: only a worker that runs for long can show growth.
    let (with_kills, requests) = (requests, requests + requests / 4);
    let (mut front_rss, mut worker_rss, mut last_worker_rss) = (Vec::new(), Vec::new(), Vec::new());
    let mut kills = 0;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let rng = Rng::from(rng.below(usize::MAX) as u64 + number as u64);
                let (server, texts, done) = (&server, &texts, &done);
                scope.spawn(move || {
                    let mut client = Client::new(server, texts, rng);
                    while done.load(Ordering::Relaxed) < requests {
                        let turn = client.turn();
                        done.fetch_add(turn, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let mut pid = worker_other_than(0);
        // The minimum, which excludes the memory of the requests that happen to run.
        let mut of_worker = u64::MAX;
        let mut next = KILL_EVERY / 4;
        while clients.iter().any(|client| !client.is_finished()) {
            thread::sleep(Duration::from_millis(5));
            of_worker = of_worker.min(status(pid, RSS).expect("the process exists"));
            let now = done.load(Ordering::Relaxed);
            if now < next {
                continue;
            }
            front_rss.push(status(front, RSS).expect("the process exists"));
            if next > with_kills {
                last_worker_rss.push(of_worker);
            } else if next.is_multiple_of(KILL_EVERY) {
                worker_rss.push(of_worker);
                kills += 1;
                signal(pid, Signal::KILL);
                eprintln!("{now} requests in {:.0?}; KiB of front {:?} and worker {of_worker}", start.elapsed(), front_rss.last());
                pid = worker_other_than(pid);
            }
            of_worker = u64::MAX;
            next += KILL_EVERY / 4;
        }
        for client in clients {
            client.join().expect("every response came once and was correct");
        }
    });
    // Requests whose client disconnected end too.
    let waiting = Instant::now();
    let after = loop {
        let after = server_status(&server);
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
    let rises = [half(&front_rss), half(&worker_rss), half(&last_worker_rss)];
    eprintln!("{} requests, {kills} kills in {:.0?}", done.load(Ordering::Relaxed), start.elapsed());
    eprintln!("MiB growth over the second half: front {:.3}, from worker to worker {:.3}, last worker {:.3}", rises[0], rises[1], rises[2]);
    eprintln!("KiB of the front {front_rss:?}, of the workers {worker_rss:?}, of the last worker {last_worker_rss:?}");
    // The descriptor of the last connection is closed asynchronously.
    while descriptors(front) > descriptors_before {
        assert!(waiting.elapsed() < HANG, "{descriptors_before} descriptors became {}", descriptors(front));
    }
    // A short run is too noisy for a slope.
    assert!(requests < 50_000 || rises.iter().all(|rise| rise.abs() <= 1.0), "{rises:?} MiB");
}
