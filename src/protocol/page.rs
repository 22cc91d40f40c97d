//! PROTOCOL.md and the code say the same.

use super::{Api, Kind, tests::without_a_model};
use crate::config::Limits;

const PAGE: &str = include_str!("../../PROTOCOL.md");

#[test]
fn every_method_has_a_heading_and_every_heading_a_method() {
    let api = Api::new(without_a_model());
    let mut methods: Vec<_> = api.names().collect();
    let mut headings: Vec<_> = PAGE.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`')).collect();
    methods.sort_unstable();
    headings.sort_unstable();
    assert_eq!(methods, headings);
}

#[test]
fn every_kind_has_its_row() {
    for kind in Kind::ALL {
        let (code, name, retryable) = kind.row();
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
fn the_limits_are_those_of_the_code() {
    let limits = Limits::default();
    for row in [
        format!("| requests in hand, over all connections | {} ", limits.requests_in_flight),
        format!("| calls of one connection | {}, ", limits.calls_per_connection),
        format!("| bytes of a message | {} MiB |", limits.message_bytes >> 20),
        format!("| calls of a batch | {} |", limits.batch),
        format!("| tokens of an answer | {} |", limits.answer_tokens),
        format!("| `maxTokens` | 1 to {} |", limits.answer_tokens),
        format!("| bytes of all texts of a request | {} MiB |", limits.text_bytes >> 20),
        format!("| files of context | {} |", limits.files),
        format!("| stop sequences | {}, of {} bytes |", limits.stops, limits.stop_bytes),
        format!("| tokens with a bias | {} |", limits.logit_bias),
        format!("| `logprobs` | 0 to {} |", limits.logprobs),
        format!("| unread messages, before a connection's calls wait for their reader | {} |", limits.outbox),
        format!("| WebSockets at once | {};", limits.connections),
    ] {
        assert!(PAGE.contains(&row), "PROTOCOL.md lacks the row {row}");
    }
}
