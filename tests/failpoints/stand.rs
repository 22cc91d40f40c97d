//! One program under test, the folder in which its faults wait, and a peer that follows many requests at once.

use crate::support::{Client, Pipes, Server, Wire};
use serde_json::{Value, json};
use souffleur::failpoints::{Action, Point};
use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

/// For what happens by itself in a moment, such as a process that ends.
const MOMENT: Duration = Duration::from_secs(5);

pub(crate) struct Stand {
    client: Client,
    folder: tempfile::TempDir,
    last_id: u64,
    told: BTreeMap<u64, Told>,
}

/// What came for one request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    pub(crate) text: String,
    pieces: usize,
    pub(crate) responses: Vec<Value>,
}

impl Told {
    /// The one response that there is, for ever.
    #[track_caller]
    pub(crate) fn response(&self) -> &Value {
        assert_eq!(self.responses.len(), 1, "a request has one end: {:?}", self.responses);
        &self.responses[0]
    }

    /// The kind of error it ended with, if it did.
    #[track_caller]
    pub(crate) fn kind(&self) -> Option<&str> {
        self.response()["error"]["data"]["kind"].as_str()
    }
}

impl Stand {
    pub(crate) fn new(wire: Wire, arguments: &[&str]) -> Self {
        let mut command = match wire {
            Wire::Lines | Wire::Headers => Pipes::command(arguments),
            Wire::Socket => Server::command(arguments),
        };
        let folder = tempfile::tempdir().expect("a temporary directory");
        command.env("SOUFFLEUR_FAILPOINTS", folder.path());
        // What is caused on purpose is no news.
        command.stderr(Stdio::null());
        Self { client: Client::start(wire, command), folder, last_id: 0, told: BTreeMap::new() }
    }

    /// Lets a fault wait at a point; `how` is what is said beside its action.
    pub(crate) fn arm(&self, point: Point, action: Action, how: &str) {
        let unseen = self.folder.path().join("unseen");
        fs::write(&unseen, format!("{} {how}", action.name())).expect("room");
        fs::rename(unseen, self.fault(point)).expect("the same folder");
    }

    /// Takes a fault away, and says whether it had happened.
    pub(crate) fn disarm(&self, point: Point) -> bool {
        fs::remove_file(self.fault(point)).is_err()
    }

    fn fault(&self, point: Point) -> PathBuf {
        self.folder.path().join(point.spec().0)
    }

    pub(crate) fn send(&mut self, method: &str, params: Value) -> u64 {
        self.last_id += 1;
        self.client.send(json!({"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params}));
        self.told.insert(self.last_id, Told::default());
        self.last_id
    }

    /// A batch's answers, in its order.
    pub(crate) fn batch(&mut self, calls: &[(&str, Value)]) -> Value {
        let member =
            |(at, (method, params)): (usize, &(&str, Value))| json!({"jsonrpc": "2.0", "id": at, "method": method, "params": params});
        self.client.ask(Value::from_iter(calls.iter().enumerate().map(member)))
    }

    /// A request that streams. Even seeds are greedy, and every one has a text of its own.
    pub(crate) fn stream(&mut self, seed: u64, tokens: u32) -> u64 {
        let mut params = completion(seed, tokens);
        params["partialResultToken"] = json!(self.last_id + 1);
        self.send("complete", params)
    }

    fn read(&mut self) {
        let message = self.client.message();
        let (id, value) = if message.get("method").is_some() {
            (&message["params"]["token"], Some(&message["params"]["value"]))
        } else {
            (&message["id"], None)
        };
        let told = id.as_u64().and_then(|id| self.told.get_mut(&id)).unwrap_or_else(|| panic!("nobody asked for {message}"));
        match value {
            Some(value) => {
                assert!(told.responses.is_empty(), "{message} after its end");
                told.text += value["text"].as_str().expect("a piece has text");
                told.pieces += 1;
            }
            None => told.responses.push(message),
        }
    }

    pub(crate) fn pieces(&mut self, id: u64, pieces: usize) {
        while self.told[&id].pieces < pieces {
            assert!(self.told[&id].responses.is_empty(), "it ended too soon: {:?}", self.told[&id]);
            self.read();
        }
    }

    pub(crate) fn end(&mut self, id: u64) -> Told {
        while self.told[&id].responses.is_empty() {
            self.read();
        }
        self.told[&id].clone()
    }

    pub(crate) fn ends(&mut self, ids: &[u64]) -> Vec<Told> {
        ids.iter().for_each(|&id| drop(self.end(id)));
        // Whatever else was on its way comes before this.
        self.call("models/list", json!({}));
        ids.iter().map(|id| self.told[id].clone()).collect()
    }

    pub(crate) fn call(&mut self, method: &str, params: Value) -> Value {
        let id = self.send(method, params);
        self.end(id).response().clone()
    }

    /// The text of a stream that nothing disturbs.
    #[track_caller]
    pub(crate) fn undisturbed(&mut self, seed: u64, tokens: u32) -> String {
        let id = self.stream(seed, tokens);
        let told = self.end(id);
        assert_eq!(told.kind(), None, "{told:?}");
        told.text
    }

    pub(crate) fn model(&mut self) -> Value {
        self.call("models/list", json!({}))["result"]["models"][0].clone()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.client.pid()
    }

    /// Waits for this to be so.
    #[track_caller]
    pub(crate) fn until<T: PartialEq + std::fmt::Debug>(&self, expected: T, look: impl Fn(&Self) -> T) {
        let start = Instant::now();
        while look(self) != expected {
            assert!(start.elapsed() < MOMENT, "{:?} stays, and is not {expected:?}", look(self));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Open descriptors of the front.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs").count()
    }

    /// Workers of this program, wherever they are in the tree of processes, and what of its children is left to reap.
    pub(crate) fn processes(&self) -> usize {
        let mark = format!("SOUFFLEUR_FAILPOINTS={}", self.folder.path().display());
        let processes = fs::read_dir("/proc").expect("Linux").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        processes.filter(|&pid| pid != self.pid() && (is_child(pid, self.pid()) || has_in_environment(pid, &mark))).count()
    }
}

fn is_child(pid: u32, parent: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may have blanks.
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.split_whitespace().nth(1) == Some(&parent.to_string()))
}

fn has_in_environment(pid: u32, mark: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ")).is_ok_and(|variables| variables.split(|&byte| byte == 0).any(|one| one == mark.as_bytes()))
}

pub(crate) fn completion(seed: u64, tokens: u32) -> Value {
    json!({
        "prompt": format!("# number {seed}\ndef f(x):\n    return \"é"),
        "seed": seed,
        "temperature": if seed.is_multiple_of(2) { 0.0 } else { 0.8 },
        "maxTokens": tokens,
        // It ends by its length alone, and has a processor.
        "logitBias": {"0": -100},
        // Often begun, so that text is held back, and never there.
        "stop": ["\n\n\n\n\u{1}", " \u{1}", ")\u{1}"],
    })
}
