//! Streams a completion from a model that runs on threads of this program.

use souffleur::actors::{Embedded, End, ModelSource, Prompt, Request, Runtime, Sampling};
use souffleur::config::{Config, Isolation, Model};
use std::io::Write;

#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

static WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("../assets/model.safetensors"));

const EMBEDDED: Embedded = Embedded {
    name: "souffleur-46m",
    config: include_bytes!("../assets/config.json"),
    tokenizer: include_bytes!("../assets/tokenizer.json"),
    tokenizer_config: include_bytes!("../assets/tokenizer_config.json"),
    weights: &WEIGHTS.0,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = Model { name: "coder".into(), source: ModelSource::Embedded };
    let runtime = Runtime::start(Config::new(vec![model], Isolation::Thread { embedded: Some(EMBEDDED) })?)?;

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
