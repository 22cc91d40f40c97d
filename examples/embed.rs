//! Streams a completion from a model that runs on threads of this program.
#![allow(clippy::print_stdout, reason = "this example prints what it streams")]

use souffleur::actors::{End, ModelSource, Prompt, Request, Runtime, Sampling};
use souffleur::config::{Config, Isolation, Model};
use std::io::Write;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/assets");
    let model = Model { name: "coder".into(), source: ModelSource::Folder(folder.into()) };
    let runtime = Runtime::start(Config::new(vec![model], Isolation::Thread { embedded: None })?)?;

    let prompt = Prompt::Text("def load(path):\n    with open(path) as f:\n".into());
    let (model, sampling, stop) = ("coder".into(), Sampling::default(), vec!["\n\n".into()]);
    let mut reader = runtime.complete(Request { model, prompt, sampling, stop, tokens_max: 64, logprobs: None })?;
    loop {
        let update = reader.next().await;
        print!("{}", update.text);
        std::io::stdout().flush()?;
        match update.end {
            Some(End::Done { .. }) => return Ok(()),
            Some(End::Failed(error)) => return Err(error.into()),
            None => {}
        }
    }
}
