//! `complete FILE[:LINE[:COLUMN]]`: prints a completion in the terminal.

use super::{Log, Models, PROGRESS_DELAY, load, print_stderr, show_status};
use anyhow::{Context, bail};
use clap::Args;
use souffleur::actors::{End, Error, FinishReason, Prompt, Reader, Request, Runtime, Sampling, Update, Usage};
use souffleur::models;
use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// Longest prompt on each side of the cursor, in characters: as in the embedded model's training.
const PREFIX_CHARACTERS: usize = 4000;
const SUFFIX_CHARACTERS: usize = 1800;
/// Larger files are refused.
const FILE_BYTES_MAX: u64 = 64 << 20;

const EXAMPLES: &str = "\
Examples:
  souffleur complete src/main.rs:12           complete at the end of line 12
  souffleur complete src/main.rs:12:9         complete before the ninth character of line 12
  souffleur complete --lines 5 notes.py       add five lines at the end of the file
  souffleur complete -m coder.gguf lib.c:40   use another model

The prompt is the text around the position: up to 4,000 characters before it and 1,800 after it, less if that does not fit \
the model's context. The completion goes to stdout, timings go to stderr.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Complete {
    /// The file and the position to complete. LINE and COLUMN count from 1; without COLUMN the end of the line, without LINE the end of the file
    #[arg(value_name = "FILE[:LINE[:COLUMN]]")]
    position: String,
    /// Stop after this many lines that are not blank
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    lines: u32,
    /// Stop after this many tokens
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Sampling temperature, from 0 to 5; 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    temperature: f32,
    /// Seed of the random sampling; the same seed gives the same completion
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    models: Models,
}

fn temperature(text: &str) -> Result<f32, &'static str> {
    text.parse().ok().filter(|temperature| (0.0..=5.0).contains(temperature)).ok_or("not a number from 0 to 5")
}

pub(crate) fn run(arguments: Complete, log: &Log, start: Instant) -> anyhow::Result<ExitCode> {
    let (path, line, column) = parse_position(&arguments.position);
    if let Some((file, position)) = path.rsplit_once(':').filter(|(file, _)| !Path::new(path).exists() && Path::new(file).exists()) {
        bail!("{position:?} is not a position in {file:?}: write FILE:LINE or FILE:LINE:COLUMN, counted from 1");
    }
    let text = read(path).with_context(|| format!("can't read {path:?}"))?;
    let at = offset(&text, line, column).with_context(|| format!("in {path:?}"))?;
    let config = arguments.models.config(log)?;
    if config.models().len() > 1 {
        bail!("complete uses one model, but {} are given", config.models().len());
    }
    let model = config.models()[0].name.clone();
    // `part` is the share of the character limits to use, in thousandths.
    let request = |part: usize| Request {
        model: model.clone(),
        prompt: Prompt::Infill {
            prefix: last(&text[..at], PREFIX_CHARACTERS * part / 1000).into(),
            suffix: first(&text[at..], SUFFIX_CHARACTERS * part / 1000).into(),
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
    let line_start = text[..at].rsplit('\n').next().unwrap_or_default();
    let outcome = tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let outcome = tokio::select! {
            outcome = stream(&runtime, &model, &request, arguments.lines as usize, line_start, start) => outcome,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        };
        runtime.shutdown(Duration::ZERO).await;
        outcome
    });
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Prints the completion until it has enough lines, then the timings.
async fn stream(
    runtime: &Runtime,
    model: &str,
    request: &dyn Fn(usize) -> Request,
    lines: usize,
    line_start: &str,
    start: Instant,
) -> anyhow::Result<()> {
    let before = Instant::now();
    load(runtime, model).await?;
    let loaded = before.elapsed();
    let (mut reader, mut update) = begin(runtime, request).await?;
    let mut out = std::io::stdout();
    // On a terminal, the completion is grey, after the text of its line.
    let (grey, plain) = if out.is_terminal() { ("\x1b[90m", "\x1b[0m") } else { ("", "") };
    if out.is_terminal() {
        write!(out, "{line_start}")?;
    }
    let mut text = String::new();
    let mut first_token = None;
    let (usage, reason) = loop {
        if !update.tokens.is_empty() {
            first_token.get_or_insert_with(|| start.elapsed());
        }
        let whole = text.clone() + &update.text;
        let enough = lines_end(&whole, lines);
        write!(out, "{grey}{}{plain}", &whole[text.len()..enough.unwrap_or(whole.len())])?;
        out.flush()?;
        text = whole;
        match update.end {
            Some(End::Done { reason, usage, .. }) => break (usage, reason),
            Some(End::Failed(error)) => return Err(error.into()),
            None if enough.is_some() => match reader.abandon().wait().await {
                End::Done { usage, .. } => break (usage, FinishReason::Stop),
                End::Failed(error) => return Err(error.into()),
            },
            None => update = reader.next().await,
        }
    };
    writeln!(out)?;
    print_stderr(timings(first_token, loaded, usage, reason));
    Ok(())
}

/// Starts a request with as much of the text as fits the context. Returns its first update, too.
async fn begin(runtime: &Runtime, request: &dyn Fn(usize) -> Request) -> anyhow::Result<(Reader, Update)> {
    let mut part = 1000;
    loop {
        let mut reader = runtime.complete(request(part))?;
        let update = first_update(&mut reader).await;
        match update.end {
            // Shrink in proportion to the overflow, and by another eighth: characters per token vary over the text.
            Some(End::Failed(Error::Model(models::Error::ContextOverflow { needed, limit }))) if part > 0 && needed > 0 => {
                part = part * limit as usize / needed as usize * 7 / 8;
            }
            _ => return Ok((reader, update)),
        }
    }
}

fn read(path: &str) -> std::io::Result<String> {
    let mut text = String::new();
    if File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)? as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other(format!("the file has more than {} MiB", FILE_BYTES_MAX >> 20)));
    }
    Ok(text)
}

/// Waits for the first update, with a status on the terminal when prefill takes long.
async fn first_update(reader: &mut Reader) -> Update {
    if let Ok(update) = timeout(PROGRESS_DELAY, reader.next()).await {
        return update;
    }
    show_status("processing the prompt");
    let update = reader.next().await;
    show_status("");
    update
}

/// The end of the `lines`-th line that is not blank, as a byte offset.
fn lines_end(text: &str, lines: usize) -> Option<usize> {
    let mut count = 0;
    let mut start = 0;
    for (at, _) in text.match_indices('\n') {
        count += usize::from(!text[start..at].trim().is_empty());
        if count == lines {
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
        FinishReason::Eos => "end of text",
        FinishReason::Stop => "enough lines",
        FinishReason::Length => "token limit",
        FinishReason::Cancelled => "cancelled",
    };
    format!(
        "{first} (model loaded in {:.0} ms, {} prompt tokens in {:.1} ms); {} tokens at {rate:.0} tokens/s; stopped: {why}",
        loaded.as_secs_f64() * 1000.0,
        usage.prompt_tokens,
        ms(usage.prefill_us),
        usage.completion_tokens,
    )
}

/// Parses `FILE[:LINE[:COLUMN]]`. A colon without a number after it belongs to the file name.
fn parse_position(position: &str) -> (&str, Option<usize>, Option<usize>) {
    let number = |text: &str| text.parse::<usize>().ok();
    let Some((rest, last)) = position.rsplit_once(':').and_then(|(rest, last)| Some((rest, number(last)?))) else {
        return (position, None, None);
    };
    match rest.rsplit_once(':').and_then(|(file, line)| Some((file, number(line)?))) {
        Some((file, line)) => (file, Some(line), Some(last)),
        None => (rest, Some(last), None),
    }
}

/// The byte offset of a line and a column; columns count characters, both count from 1.
fn offset(text: &str, line: Option<usize>, column: Option<usize>) -> anyhow::Result<usize> {
    let Some(line) = line else { return Ok(text.len()) };
    let mut start = 0;
    for (index, content) in text.split('\n').enumerate() {
        let content = content.strip_suffix('\r').unwrap_or(content);
        if index + 1 == line {
            let characters = content.chars().count();
            let column = column.unwrap_or(characters + 1);
            if column == 0 || column > characters + 1 {
                bail!("column {column} is outside line {line}, which has columns 1 to {}", characters + 1);
            }
            return Ok(start + content.char_indices().nth(column - 1).map_or(content.len(), |(at, _)| at));
        }
        start += text[start..].find('\n').map_or(0, |at| at + 1);
    }
    bail!("line {line} is outside the file, which has lines 1 to {}", text.split('\n').count())
}

/// At most the last `count` characters, cut at the start of a line if possible.
fn last(text: &str, count: usize) -> &str {
    let Some((cut, _)) = text.char_indices().rev().nth(count.saturating_sub(1)).filter(|(cut, _)| *cut > 0) else { return text };
    let tail = &text[cut..];
    tail.find('\n').map_or(tail, |at| &tail[at + 1..])
}

/// At most the first `count` characters, cut at the end of a line if possible.
fn first(text: &str, count: usize) -> &str {
    let Some((cut, _)) = text.char_indices().nth(count) else { return text };
    let head = &text[..cut];
    head.rfind('\n').map_or(head, |at| &head[..=at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_a_file_a_line_and_a_column() {
        assert_eq!(parse_position("a.rs"), ("a.rs", None, None));
        assert_eq!(parse_position("a.rs:3"), ("a.rs", Some(3), None));
        assert_eq!(parse_position("a.rs:3:7"), ("a.rs", Some(3), Some(7)));
        assert_eq!(parse_position("C:a.rs"), ("C:a.rs", None, None));
    }

    #[test]
    fn a_column_counts_characters() {
        assert_eq!(offset("aé\nb", Some(1), Some(3)).unwrap(), 3);
        assert_eq!(offset("aé\r\nb", Some(1), None).unwrap(), 3);
        assert_eq!(offset("aé\nb", Some(2), None).unwrap(), 5);
        assert!(offset("aé\nb", Some(1), Some(5)).unwrap_err().to_string().contains("columns 1 to 3"));
        assert!(offset("a", Some(2), None).unwrap_err().to_string().contains("lines 1 to 1"));
    }

    #[test]
    fn blank_lines_do_not_count() {
        assert_eq!(lines_end("\n  return 1\n", 1), Some(11));
        assert_eq!(lines_end("x", 1), None);
        assert_eq!(lines_end("x\ny\n", 2), Some(3));
    }

    #[test]
    fn long_prompts_are_cut_at_lines() {
        assert_eq!(last("ab\ncd\nef", 4), "ef");
        assert_eq!(first("ab\ncd\nef", 4), "ab\n");
        assert_eq!((last("ab", 2), first("ab", 2)), ("ab", "ab"));
    }
}
