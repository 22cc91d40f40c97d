//! llama.cpp's own benches on the same file, for the same work.

use anyhow::{Context, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// `llama-bench=PATH`, and `llama-batched-bench=PATH` for several sequences.
#[derive(Clone)]
pub(super) enum Program {
    Bench(PathBuf),
    Batched(PathBuf),
}

pub(super) fn parse(text: &str) -> Result<Program, String> {
    match text.split_once('=') {
        Some(("llama-bench", path)) => Ok(Program::Bench(path.into())),
        Some(("llama-batched-bench", path)) => Ok(Program::Batched(path.into())),
        _ => Err("not llama-bench=PATH or llama-batched-bench=PATH".into()),
    }
}

/// What it is asked to do, with the names of its own options.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Task {
    Prompt(usize),
    Generate { depth: usize, tokens: usize },
    Batch { sequences: usize, prompt: usize, tokens: usize },
}

pub(super) struct LlamaCpp<'a> {
    pub(super) programs: &'a [Program],
    pub(super) model: &'a Path,
    /// Which attention was the better one behind a long context, by threads; each is asked for both once.
    flash: Vec<(usize, &'static str)>,
}

/// llama-batched-bench writes by a thread for its log, and on a crowded machine it was seen to end before that had a turn.
const TRIES: usize = 5;

impl<'a> LlamaCpp<'a> {
    pub(super) fn new(programs: &'a [Program], model: &'a Path) -> Self {
        Self { programs, model, flash: Vec::new() }
    }

    fn program(&self, task: Task) -> Option<&'a Path> {
        self.programs.iter().find_map(|peer| match (peer, task) {
            (Program::Batched(path), Task::Batch { .. }) | (Program::Bench(path), Task::Prompt(_) | Task::Generate { .. }) => {
                Some(path.as_path())
            }
            _ => None,
        })
    }

    pub(super) fn can(&self, task: Task) -> bool {
        self.program(task).is_some()
    }

    /// Tokens per second.
    pub(super) fn run(&mut self, task: Task, threads: usize) -> anyhow::Result<f64> {
        let Task::Generate { depth: 1.., .. } = task else { return self.ask(task, threads, "auto") };
        if let Some((_, better)) = self.flash.iter().find(|(of, _)| *of == threads) {
            return self.ask(task, threads, better);
        }
        let (on, off) = (self.ask(task, threads, "on")?, self.ask(task, threads, "off")?);
        self.flash.push((threads, if on > off { "on" } else { "off" }));
        Ok(on.max(off))
    }

    fn ask(&self, task: Task, threads: usize, flash: &str) -> anyhow::Result<f64> {
        let program = self.program(task).expect("asked for only what can be done");
        let (options, key) = match task {
            Task::Prompt(tokens) => (format!("-p {tokens} -n 0 -r 2 -o jsonl"), "avg_ts"),
            Task::Generate { depth, tokens } => (format!("-p 0 -n {tokens} -d {depth} -r 2 -o jsonl"), "avg_ts"),
            Task::Batch { sequences, prompt, tokens } => {
                (format!("-c 2048 -npp {prompt} -ntg {tokens} -npl {sequences} --output-format jsonl"), "speed_tg")
            }
        };
        let mut command = Command::new(program);
        command.args(["-t", &threads.to_string(), "-fa", flash, "-m"]).arg(self.model).args(options.split(' ')).stdin(Stdio::null());
        let mut tries = 1;
        let (output, figure) = loop {
            let output = command.output().with_context(|| format!("{program:?} can't be started"))?;
            let text = String::from_utf8_lossy(&output.stdout);
            let figure = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|line| line.get(key)?.as_f64());
            if figure.is_some() || !output.status.success() || tries == TRIES {
                break (output, figure);
            }
            tries += 1;
        };
        let Some(figure) = figure else {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("{program:?} gave no {key} ({}): {}", output.status, errors.lines().last().unwrap_or("without a word"));
        };
        Ok(figure)
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_better_attention_is_found_once() {
        let folder = tempfile::tempdir().unwrap();
        let (program, log) = (folder.path().join("llama-bench"), folder.path().join("log"));
        let script = "#!/bin/sh\necho \"$@\" >> LOG\ncase \"$*\" in *'-fa on'*) s=3.5;; *'-fa off'*) s=4.5;; *) s=7;; esac\n\
            case \"$*\" in *'-t 9'*) echo broken >&2; exit 3;; esac\necho loading\necho \"{\\\"n_gen\\\": 16, \\\"avg_ts\\\": $s}\"\n";
        std::fs::write(&program, script.replace("LOG", log.to_str().unwrap())).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let programs = [parse(&format!("llama-bench={}", program.display())).expect("a peer")];
        let mut peers = LlamaCpp::new(&programs, Path::new("a model.gguf"));
        let deep = Task::Generate { depth: 4096, tokens: 16 };
        assert_eq!([(); 3].map(|()| peers.run(deep, 2).unwrap()), [4.5; 3]);
        assert_eq!(peers.run(Task::Prompt(512), 1).unwrap(), 7.0);
        let asked = std::fs::read_to_string(&log).unwrap();
        let flash = |line: &str| line.split(' ').skip(3).take(1).collect::<String>();
        assert_eq!(asked.lines().map(flash).collect::<Vec<_>>(), ["on", "off", "off", "off", "auto"], "{asked}");
        assert_eq!(asked.lines().last(), Some("-t 1 -fa auto -m a model.gguf -p 512 -n 0 -r 2 -o jsonl"));
        assert!(peers.run(Task::Prompt(1), 9).unwrap_err().to_string().ends_with("gave no avg_ts (exit status: 3): broken"));
        assert!(!peers.can(Task::Batch { sequences: 8, prompt: 16, tokens: 24 }));
        assert!(parse("ollama=x").is_err());
    }
}
