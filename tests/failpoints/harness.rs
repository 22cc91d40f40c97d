//! The program under test, its failpoint folder, and a client that follows many concurrent requests.

use crate::support::{Client, Server, StdioClient, Transport};
use serde_json::{Value, json};
use souffleur::failpoints::{Action, Point};
use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

/// For events without a message to wait for, such as the end of a process.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct Harness {
    client: Client,
    folder: tempfile::TempDir,
    last_id: u64,
    outcomes: BTreeMap<u64, Outcome>,
}

/// The messages received for one request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) text: String,
    updates: usize,
    pub(crate) responses: Vec<Value>,
}

impl Outcome {
    /// The response. There must be exactly one.
    #[track_caller]
    pub(crate) fn response(&self) -> &Value {
        assert_eq!(self.responses.len(), 1, "not exactly one response: {:?}", self.responses);
        &self.responses[0]
    }

    /// The kind of the error, or `None` for a result.
    #[track_caller]
    pub(crate) fn kind(&self) -> Option<&str> {
        let response = self.response();
        let kind = response["error"]["data"]["kind"].as_str();
        assert!(kind.is_some() || response.get("result").is_some(), "neither an error's kind nor a result: {response}");
        kind
    }
}

impl Harness {
    pub(crate) fn new(transport: Transport, arguments: &[&str]) -> Self {
        let mut command = match transport {
            Transport::Lines | Transport::Headers => StdioClient::command(arguments),
            Transport::WebSocket => Server::command(arguments),
        };
        let folder = tempfile::tempdir().expect("a temporary directory");
        command.env("SOUFFLEUR_FAILPOINTS", folder.path());
        // The injected faults would fill the log.
        command.stderr(Stdio::null());
        Self { client: Client::start(transport, command), folder, last_id: 0, outcomes: BTreeMap::new() }
    }

    /// Arms a failpoint. `options` are the words after the action in its file: `seed=N`, `always`.
    pub(crate) fn arm(&self, point: Point, action: Action, options: &str) {
        // Written under a name that is no failpoint's, and renamed: the program must not read half a file.
        let temporary = self.folder.path().join("unseen");
        fs::write(&temporary, format!("{} {options}", action.name())).expect("the file is written");
        fs::rename(temporary, self.file(point)).expect("the file is renamed");
    }

    /// Disarms a failpoint. Returns whether it was triggered, which removed its file; false if it was armed with `always`.
    pub(crate) fn disarm(&self, point: Point) -> bool {
        fs::remove_file(self.file(point)).is_err()
    }

    fn file(&self, point: Point) -> PathBuf {
        self.folder.path().join(point.spec().0)
    }

    pub(crate) fn send(&mut self, method: &str, params: Value) -> u64 {
        self.last_id += 1;
        self.client.send(json!({"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params}));
        self.outcomes.insert(self.last_id, Outcome::default());
        self.last_id
    }

    /// Sends a batch and returns the array of its responses, which the server sends in the order of the batch.
    pub(crate) fn batch(&mut self, calls: &[(&str, Value)]) -> Value {
        let member =
            |(at, (method, params)): (usize, &(&str, Value))| json!({"jsonrpc": "2.0", "id": at, "method": method, "params": params});
        self.client.request(Value::from_iter(calls.iter().enumerate().map(member)))
    }

    /// Starts a streaming completion (see `completion`), with the request's id as its token. Returns the id.
    pub(crate) fn stream(&mut self, seed: u64, tokens: u32) -> u64 {
        let mut params = completion(seed, tokens);
        // The id that `send` assigns.
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
        let outcome = id.as_u64().and_then(|id| self.outcomes.get_mut(&id)).unwrap_or_else(|| panic!("not for any request: {message}"));
        match value {
            Some(value) => {
                assert!(outcome.responses.is_empty(), "{message} after the response");
                outcome.text += value["text"].as_str().expect("an update has text");
                outcome.updates += 1;
            }
            None => outcome.responses.push(message),
        }
    }

    /// Waits until the request has received this many updates in all.
    pub(crate) fn wait_for_updates(&mut self, id: u64, updates: usize) {
        while self.outcomes[&id].updates < updates {
            assert!(self.outcomes[&id].responses.is_empty(), "ended too early: {:?}", self.outcomes[&id]);
            self.read();
        }
    }

    pub(crate) fn outcome(&mut self, id: u64) -> Outcome {
        while self.outcomes[&id].responses.is_empty() {
            self.read();
        }
        self.outcomes[&id].clone()
    }

    /// Waits for the responses to all requests, and for any second response to one of them.
    pub(crate) fn outcomes(&mut self, ids: &[u64]) -> Vec<Outcome> {
        ids.iter().for_each(|&id| drop(self.outcome(id)));
        // A second response to one of the requests would arrive before the response to this call.
        self.call("models/list", json!({}));
        ids.iter().map(|id| self.outcomes[id].clone()).collect()
    }

    pub(crate) fn call(&mut self, method: &str, params: Value) -> Value {
        let id = self.send(method, params);
        self.outcome(id).response().clone()
    }

    /// The text of a completion without failures. The caller arms no failpoint.
    #[track_caller]
    pub(crate) fn reference_text(&mut self, seed: u64, tokens: u32) -> String {
        let id = self.stream(seed, tokens);
        let outcome = self.outcome(id);
        assert_eq!(outcome.kind(), None, "{outcome:?}");
        outcome.text
    }

    pub(crate) fn model(&mut self) -> Value {
        self.call("models/list", json!({}))["result"]["models"][0].clone()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.client.pid()
    }

    /// Polls `observe` until it returns `expected`.
    #[track_caller]
    pub(crate) fn until<T: PartialEq + std::fmt::Debug>(&self, expected: T, observe: impl Fn(&Self) -> T) {
        let start = Instant::now();
        while observe(self) != expected {
            assert!(start.elapsed() < SETTLE_TIMEOUT, "{:?} did not become {expected:?}", observe(self));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Open file descriptors of the front.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("the process runs").count()
    }

    /// Worker processes of this program, including reparented ones, and children that were not reaped.
    pub(crate) fn processes(&self) -> usize {
        let variable = format!("SOUFFLEUR_FAILPOINTS={}", self.folder.path().display());
        let processes = fs::read_dir("/proc").expect("Linux").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        processes.filter(|&pid| pid != self.pid() && (is_child(pid, self.pid()) || has_in_environment(pid, &variable))).count()
    }
}

fn is_child(pid: u32, parent: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The process name, in parentheses, may contain spaces.
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.split_whitespace().nth(1) == Some(&parent.to_string()))
}

fn has_in_environment(pid: u32, variable: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|variables| variables.split(|&byte| byte == 0).any(|entry| entry == variable.as_bytes()))
}

/// Params of `complete`. Every seed has its own prompt; even seeds sample greedily.
pub(crate) fn completion(seed: u64, tokens: u32) -> Value {
    json!({
        "prompt": format!("# number {seed}\ndef f(x):\n    return \"é"),
        "seed": seed,
        "temperature": if seed.is_multiple_of(2) { 0.0 } else { 0.8 },
        "maxTokens": tokens,
        // Token 0 is EOS. Without it the completion ends at `maxTokens`, and the bias needs a logits processor.
        "logitBias": {"0": -100},
        // Prefixes of these occur often, so text is held back; the whole sequences never do.
        "stop": ["\n\n\n\n\u{1}", " \u{1}", ")\u{1}"],
    })
}
