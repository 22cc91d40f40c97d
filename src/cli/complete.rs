//! `complete FILE[:LINE[:COLUMN]]`: ghost text in the terminal.

use super::Models;
use anyhow::{Context, bail};
use clap::Args;
use souffleur::actors::{Embedded, End, FinishReason, Prompt, Request, Runtime, Sampling, Usage};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What a model reads before and behind the cursor, in characters: as much as the embedded one was trained on.
const PREFIX_CHARACTERS: usize = 4000;
const SUFFIX_CHARACTERS: usize = 1800;

#[derive(Args)]
pub(crate) struct Complete {
    /// The file, and where: a line (its end) or a line and a column, counted from 1; without, the end of the file
    #[arg(value_name = "FILE[:LINE[:COLUMN]]")]
    place: String,
    #[command(flatten)]
    models: Models,
    /// Lines to write
    #[arg(long, value_name = "N", default_value_t = 1)]
    lines: usize,
    /// Tokens to write at most
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_tokens: u32,
    /// 0 takes the likeliest token every time
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Fixes every draw at a temperature above 0
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub(crate) fn run(arguments: Complete, embedded: Embedded, start: Instant) -> anyhow::Result<ExitCode> {
    let (path, line, column) = parse_place(&arguments.place);
    let text = std::fs::read_to_string(path).with_context(|| format!("can't read {path:?}"))?;
    let at = offset(&text, line, column).with_context(|| format!("in {path:?}"))?;
    if arguments.lines == 0 || arguments.max_tokens == 0 || !(0.0..=5.0).contains(&arguments.temperature) {
        bail!("--lines and --max-tokens start at 1, --temperature goes from 0 to 5");
    }
    let config = arguments.models.config(embedded)?;
    let request = Request {
        model: config.models[0].name.clone(),
        prompt: Prompt::Infill {
            prefix: last(&text[..at], PREFIX_CHARACTERS).into(),
            suffix: first(&text[at..], SUFFIX_CHARACTERS).into(),
            path: None,
            repository: None,
            files: Vec::new(),
            order: None,
        },
        sampling: Sampling { temperature: arguments.temperature, seed: arguments.seed, ..Sampling::default() },
        stop: Vec::new(),
        tokens_max: arguments.max_tokens,
        logprobs: None,
    };
    let runtime = Runtime::start(config)?;
    let begun = text[..at].rsplit('\n').next().unwrap_or_default();
    let outcome = tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let outcome = tokio::select! {
            outcome = stream(&runtime, request, arguments.lines, begun, start) => outcome,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        };
        runtime.shutdown(Duration::ZERO).await;
        outcome
    });
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Prints what comes until enough lines have, then says how long it took.
async fn stream(runtime: &Runtime, request: Request, lines: usize, begun: &str, start: Instant) -> anyhow::Result<()> {
    let loaded = {
        let before = Instant::now();
        runtime.load(&request.model, |_, _| {}).await?;
        before.elapsed()
    };
    let mut reader = runtime.complete(request)?;
    let mut out = std::io::stdout();
    let terminal = out.is_terminal();
    if terminal {
        // The line as it stands, then what is new in grey.
        write!(out, "{begun}\x1b[90m")?;
    }
    let mut text = String::new();
    let mut first_token = None;
    let (usage, reason) = loop {
        let news = reader.next().await;
        if !news.tokens.is_empty() {
            first_token.get_or_insert_with(|| start.elapsed());
        }
        let whole = text.clone() + &news.text;
        let enough = lines_end(&whole, lines);
        out.write_all(&whole.as_bytes()[text.len()..enough.unwrap_or(whole.len())])?;
        out.flush()?;
        text = whole;
        match news.end {
            Some(End::Done { reason, usage, .. }) => break (usage, reason),
            Some(End::Failed(error)) => return Err(error.into()),
            None if enough.is_some() => match reader.abandon().wait().await {
                End::Done { usage, .. } => break (usage, FinishReason::Stop),
                End::Failed(error) => return Err(error.into()),
            },
            None => {}
        }
    };
    out.write_all(if terminal { b"\x1b[0m\n" } else { b"\n" })?;
    eprintln!("{}", timings(first_token, loaded, usage, reason));
    Ok(())
}

/// Where the `lines`-th line with something in it ends, if it does.
fn lines_end(text: &str, lines: usize) -> Option<usize> {
    let mut full = 0;
    let mut start = 0;
    for (at, _) in text.match_indices('\n') {
        full += usize::from(!text[start..at].trim().is_empty());
        if full == lines {
            return Some(at);
        }
        start = at + 1;
    }
    None
}

fn timings(first_token: Option<Duration>, loaded: Duration, usage: Usage, reason: FinishReason) -> String {
    let ms = |us: u64| us as f64 / 1000.0;
    let first = first_token.map_or_else(|| "no token".into(), |time| format!("first token after {:.0} ms", time.as_secs_f64() * 1000.0));
    let further = usage.completion_tokens.saturating_sub(1);
    let rate = f64::from(further) / (usage.decode_us.max(1) as f64 / 1e6);
    let why = match reason {
        FinishReason::Eos => "the model ended it",
        FinishReason::Stop => "enough lines",
        FinishReason::Length => "enough tokens",
        FinishReason::Cancelled => "cancelled",
    };
    format!(
        "{first} (model ready after {:.0}, prompt of {} tokens read in {:.1}); {} tokens, {rate:.0} a second; {why}",
        loaded.as_secs_f64() * 1000.0,
        usage.prompt_tokens,
        ms(usage.prefill_us),
        usage.completion_tokens,
    )
}

/// `FILE[:LINE[:COLUMN]]`; a colon that no number follows belongs to the file's name.
fn parse_place(place: &str) -> (&str, Option<usize>, Option<usize>) {
    let number = |text: &str| text.parse::<usize>().ok();
    let Some((rest, last)) = place.rsplit_once(':').and_then(|(rest, last)| Some((rest, number(last)?))) else {
        return (place, None, None);
    };
    match rest.rsplit_once(':').and_then(|(file, line)| Some((file, number(line)?))) {
        Some((file, line)) => (file, Some(line), Some(last)),
        None => (rest, Some(last), None),
    }
}

/// The byte where a line and a column (of characters, from 1) are.
fn offset(text: &str, line: Option<usize>, column: Option<usize>) -> anyhow::Result<usize> {
    let Some(line) = line else { return Ok(text.len()) };
    let mut start = 0;
    for (index, content) in text.split('\n').enumerate() {
        let content = content.strip_suffix('\r').unwrap_or(content);
        if index + 1 == line {
            let characters = content.chars().count();
            let column = column.unwrap_or(characters + 1);
            if column == 0 || column > characters + 1 {
                bail!("column {column} is not from 1 to {}, where line {line} ends", characters + 1);
            }
            return Ok(start + content.char_indices().nth(column - 1).map_or(content.len(), |(at, _)| at));
        }
        start += text[start..].find('\n').map_or(0, |at| at + 1);
    }
    bail!("line {line} is not from 1 to {}, where the file ends", text.split('\n').count())
}

/// The last `count` characters, from the start of a line where one is.
fn last(text: &str, count: usize) -> &str {
    let Some((cut, _)) = text.char_indices().rev().nth(count.saturating_sub(1)).filter(|(cut, _)| *cut > 0) else { return text };
    let tail = &text[cut..];
    tail.find('\n').map_or(tail, |at| &tail[at + 1..])
}

/// The first `count` characters, to the end of a line where one is.
fn first(text: &str, count: usize) -> &str {
    let Some((cut, _)) = text.char_indices().nth(count) else { return text };
    let head = &text[..cut];
    head.rfind('\n').map_or(head, |at| &head[..=at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_file_a_line_and_a_column() {
        assert_eq!(parse_place("a.rs"), ("a.rs", None, None));
        assert_eq!(parse_place("a.rs:3"), ("a.rs", Some(3), None));
        assert_eq!(parse_place("a.rs:3:7"), ("a.rs", Some(3), Some(7)));
        assert_eq!(parse_place("C:a.rs"), ("C:a.rs", None, None));
    }

    #[test]
    fn a_column_counts_characters() {
        assert_eq!(offset("aé\nb", Some(1), Some(3)).unwrap(), 3);
        assert_eq!(offset("aé\r\nb", Some(1), None).unwrap(), 3);
        assert_eq!(offset("aé\nb", Some(2), None).unwrap(), 5);
        assert!(offset("aé\nb", Some(1), Some(5)).unwrap_err().to_string().contains("from 1 to 3"));
        assert!(offset("a", Some(2), None).unwrap_err().to_string().contains("from 1 to 1"));
    }

    #[test]
    fn lines_count_when_something_is_in_them() {
        assert_eq!(lines_end("\n  return 1\n", 1), Some(11));
        assert_eq!(lines_end("x", 1), None);
        assert_eq!(lines_end("x\ny\n", 2), Some(3));
    }

    #[test]
    fn long_files_are_cut_at_lines() {
        assert_eq!(last("ab\ncd\nef", 4), "ef");
        assert_eq!(first("ab\ncd\nef", 4), "ab\n");
        assert_eq!((last("ab", 2), first("ab", 2)), ("ab", "ab"));
    }
}
