//! Streams a completion from a model that runs on threads of this program.

use souffleur::actors::{End, ModelSource, Prompt, Request, Runtime, Sampling};
use souffleur::config::{Config, Isolation, Model};
use std::io::Write;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/assets");
    let model = Model { name: "coder".into(), source: ModelSource::Folder(folder.into()) };
    let runtime = Runtime::start(Config::new(vec![model], Isolation::Thread { embedded: None })?)?;

    let text = include_str!("holes/load.py");
    let (prefix, suffix) = text.split_at(text.find("\n    except").expect("the hole is the line before it"));
    let request = Request {
        model: "coder".into(),
        prompt: Prompt::Infill {
            prefix: prefix.into(),
            suffix: suffix.into(),
            path: None,
            repository: None,
            files: Vec::new(),
            order: None,
        },
        sampling: Sampling::default(),
        stop: vec!["\n".into()],
        tokens_max: 64,
        logprobs: None,
    };
    let mut out = std::io::stdout();
    write!(out, "{prefix}")?;
    let mut reader = runtime.complete(request)?;
    loop {
        let update = reader.next().await;
        write!(out, "{}", update.text)?;
        out.flush()?;
        match update.end {
            Some(End::Done { .. }) => return Ok(writeln!(out)?),
            Some(End::Failed(error)) => return Err(error.into()),
            None => {}
        }
    }
}
