//! `complete FILE[:LINE[:COLUMN]]`: ghost text in the terminal.

use super::{Log, Models, PATIENCE, load, tell, waiting_for};
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

/// What a model reads before and behind the cursor, in characters: as much as the embedded one was trained on.
const PREFIX_CHARACTERS: usize = 4000;
const SUFFIX_CHARACTERS: usize = 1800;
/// No file that a person completes is larger.
const FILE_BYTES_MAX: u64 = 64 << 20;

const EXAMPLES: &str = "\
Examples:
  souffleur complete src/main.rs:12           what comes at the end of line 12
  souffleur complete src/main.rs:12:9         before the ninth character of line 12
  souffleur complete --lines 5 notes.py       five lines more at the end of the file
  souffleur complete -m coder.gguf lib.c:40   from another model

The model reads up to 4,000 characters before the place and 1,800 behind it, fewer where they are too many tokens for it. The text goes to stdout, and how \
long it took to stderr.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Complete {
    /// The file, and where: a line (its end) or a line and a column, counted from 1; without, the end of the file
    #[arg(value_name = "FILE[:LINE[:COLUMN]]")]
    place: String,
    /// Stop after this many lines that have something in them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    lines: u32,
    /// Stop after this many tokens
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// How far to stray from the likeliest text, from 0 (not at all) to 5
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    temperature: f32,
    /// Which of the texts to write when straying: the same seed writes the same
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    models: Models,
}

fn temperature(text: &str) -> Result<f32, &'static str> {
    text.parse().ok().filter(|temperature| (0.0..=5.0).contains(temperature)).ok_or("not a number from 0 to 5")
}

pub(crate) fn run(arguments: Complete, log: &Log, start: Instant) -> anyhow::Result<ExitCode> {
    let (path, line, column) = parse_place(&arguments.place);
    if let Some((file, place)) = path.rsplit_once(':').filter(|(file, _)| !Path::new(path).exists() && Path::new(file).exists()) {
        bail!("{place:?} is no place in {file:?}: write FILE:LINE or FILE:LINE:COLUMN, counted from 1");
    }
    let text = read(path).with_context(|| format!("can't read {path:?}"))?;
    let at = offset(&text, line, column).with_context(|| format!("in {path:?}"))?;
    let config = arguments.models.config(log)?;
    if config.models().len() > 1 {
        bail!("{} models are named, and a text comes from one", config.models().len());
    }
    let model = config.models()[0].name.clone();
    // With a part of the characters that a model may read, in thousandths.
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
    let begun = text[..at].rsplit('\n').next().unwrap_or_default();
    let outcome = tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let outcome = tokio::select! {
            outcome = stream(&runtime, &model, &request, arguments.lines as usize, begun, start) => outcome,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        };
        runtime.shutdown(Duration::ZERO).await;
        outcome
    });
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Prints what comes until enough lines have, then says how long it took.
async fn stream(
    runtime: &Runtime,
    model: &str,
    request: &dyn Fn(usize) -> Request,
    lines: usize,
    begun: &str,
    start: Instant,
) -> anyhow::Result<()> {
    let before = Instant::now();
    load(runtime, model).await?;
    let loaded = before.elapsed();
    let (mut reader, mut news) = begin(runtime, request).await?;
    let mut out = std::io::stdout();
    // On a terminal, the line as it stands, and then what is new in grey.
    let (grey, plain) = if out.is_terminal() { ("\x1b[90m", "\x1b[0m") } else { ("", "") };
    if out.is_terminal() {
        write!(out, "{begun}")?;
    }
    let mut text = String::new();
    let mut first_token = None;
    let (usage, reason) = loop {
        if !news.tokens.is_empty() {
            first_token.get_or_insert_with(|| start.elapsed());
        }
        let whole = text.clone() + &news.text;
        let enough = lines_end(&whole, lines);
        write!(out, "{grey}{}{plain}", &whole[text.len()..enough.unwrap_or(whole.len())])?;
        out.flush()?;
        text = whole;
        match news.end {
            Some(End::Done { reason, usage, .. }) => break (usage, reason),
            Some(End::Failed(error)) => return Err(error.into()),
            None if enough.is_some() => match reader.abandon().wait().await {
                End::Done { usage, .. } => break (usage, FinishReason::Stop),
                End::Failed(error) => return Err(error.into()),
            },
            None => news = reader.next().await,
        }
    };
    writeln!(out)?;
    tell(timings(first_token, loaded, usage, reason));
    Ok(())
}

/// A request for as much of the text as the model has room for, and what comes first.
async fn begin(runtime: &Runtime, request: &dyn Fn(usize) -> Request) -> anyhow::Result<(Reader, Update)> {
    let mut part = 1000;
    loop {
        let mut reader = runtime.complete(request(part))?;
        let news = first_news(&mut reader).await;
        match news.end {
            // Some texts are more tokens than others: as much less as is too much, and a little.
            Some(End::Failed(Error::Model(models::Error::ContextOverflow { needed, limit }))) if part > 0 && needed > 0 => {
                part = part * limit as usize / needed as usize * 7 / 8;
            }
            _ => return Ok((reader, news)),
        }
    }
}

fn read(path: &str) -> std::io::Result<String> {
    let mut text = String::new();
    if File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)? as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other(format!("it has more than {} MiB", FILE_BYTES_MAX >> 20)));
    }
    Ok(text)
}

/// A person at a terminal is told when the prompt takes long to read.
async fn first_news(reader: &mut Reader) -> Update {
    if let Ok(news) = timeout(PATIENCE, reader.next()).await {
        return news;
    }
    waiting_for("reading the prompt");
    let news = reader.next().await;
    waiting_for("");
    news
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
