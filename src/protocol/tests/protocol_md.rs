//! PROTOCOL.md agrees with the code.

use super::runtime_without_model;
use crate::protocol::{
    Api, ErrorKind,
    types::{HealthResult, StatusResult},
};
use crate::{
    actors::{Death, DecoderStatus, ModelSource, ModelState, ModelStatus, Status},
    config::Limits,
};
use serde_json::{Value, json};
use std::time::Duration;

const PAGE: &str = include_str!("../../../PROTOCOL.md");

#[test]
fn the_headings_are_the_methods() {
    let api = Api::new(runtime_without_model());
    let mut methods: Vec<_> = api.names().collect();
    let mut headings: Vec<_> = PAGE.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`')).collect();
    methods.sort_unstable();
    headings.sort_unstable();
    assert_eq!(methods, headings);
}

#[test]
fn every_error_kind_has_its_row() {
    for kind in ErrorKind::ALL {
        let (code, name, retryable) = kind.spec();
        let retry = if retryable { "yes" } else { "no" };
        let row = format!("| {code} | `{name}` | {retry} |");
        assert!(PAGE.contains(&row), "PROTOCOL.md lacks the row {row}");
    }
}

#[test]
fn every_example_is_json() {
    let mut in_example = false;
    for line in PAGE.lines() {
        match line {
            "```json" => in_example = true,
            "```" => in_example = false,
            _ if in_example => drop(serde_json::from_str::<serde_json::Value>(line).expect(line)),
            _ => {}
        }
    }
}

#[test]
fn the_limits_match_the_code() {
    let limits = Limits::default();
    for row in [
        format!("| requests in flight, over all connections | {} ", limits.requests_in_flight),
        format!("| calls of one connection | {}, ", limits.calls_per_connection),
        format!("| bytes of a message | {} MiB |", limits.message_bytes >> 20),
        format!("| messages of a batch | {} |", limits.batch),
        format!("| tokens of a completion | {} |", limits.answer_tokens),
        format!("| `maxTokens` | 1 to {} |", limits.answer_tokens),
        format!("| bytes of all texts of a request | {} MiB |", limits.text_bytes >> 20),
        format!("| files of context | {} |", limits.files),
        format!("| stop sequences | {}, of {} bytes |", limits.stops, limits.stop_bytes),
        format!("| tokens with a bias | {} |", limits.logit_bias),
        format!("| `logprobs` | 0 to {} |", limits.logprobs),
        format!("| unread messages before a connection's calls wait for the peer | {} |", limits.outbox),
        format!("| open WebSocket connections | {};", limits.connections),
    ] {
        assert!(PAGE.contains(&row), "PROTOCOL.md lacks the row {row}");
    }
}

/// The paths of all members of a value, nested ones too. An array counts by its first element.
fn names(value: &Value) -> Vec<String> {
    let with_nested = |name: &String, value: &Value| {
        std::iter::once(name.clone()).chain(names(value).into_iter().map(|inner| format!("{name}.{inner}"))).collect::<Vec<_>>()
    };
    match value {
        Value::Object(members) => members.iter().flat_map(|(name, value)| with_nested(name, value)).collect(),
        Value::Array(elements) => elements.first().map(names).unwrap_or_default(),
        _ => Vec::new(),
    }
}

#[test]
fn status_and_health_results_match_the_page() {
    let death = Death { cause: "killed by signal 9".into(), ago: Duration::from_millis(640) };
    let model = |state| ModelStatus {
        name: "a".into(),
        source: ModelSource::Embedded,
        state,
        worker_pid: Some(1),
        in_flight: 0,
        restarts: 1,
        deaths: vec![death.clone()],
        last_activity: Some(Duration::ZERO),
        info: None,
        decoder: Some(DecoderStatus { last_step_us: Some(1), ..DecoderStatus::default() }),
    };
    let status = |states: &[ModelState]| Status {
        uptime: Duration::ZERO,
        requests_in_flight: 0,
        requests_limit: 64,
        models: states.iter().copied().map(model).collect(),
    };
    let shown = PAGE.lines().find(|line| line.contains(r#""uptimeMs""#)).expect("an example");
    let shown: Value = serde_json::from_str(shown).unwrap();
    let actual = serde_json::to_value(StatusResult::new(status(&[ModelState::Ready]), "a")).unwrap();
    assert_eq!(names(&shown["result"]), names(&actual));

    use ModelState::{Failed, Loading, Ready, Restarting, Stalled, Unloaded};
    for (states, word, code) in [
        (&[Ready, Loading, Unloaded][..], "ok", 200),
        (&[Restarting, Ready], "restarting", 503),
        (&[Ready, Stalled, Restarting], "stalled", 503),
        (&[Stalled, Restarting, Failed], "failed", 503),
    ] {
        let health = HealthResult::new(status(states), "a", false);
        assert_eq!(health.is_ok(), code == 200);
        assert_eq!(serde_json::to_value(health).unwrap(), json!({ "status": word }));
        assert!(PAGE.contains(&format!("| `{word}` | {code} |")), "PROTOCOL.md lacks the row of {word}");
        let full = serde_json::to_value(HealthResult::new(status(states), "a", true)).unwrap();
        assert_eq!(names(&full["models"]), names(&actual["models"]));
    }
}
