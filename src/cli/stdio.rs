//! `stdio`: JSON-RPC on stdin and stdout, as an editor's child process.

use super::{Log, Models, over, tell};
use anyhow::Context;
use clap::Args;
use souffleur::actors::Runtime;
use souffleur::protocol::{CloseReason, transport::stdio};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const EXAMPLE: &str = r#"Example:
  echo '{"jsonrpc":"2.0","id":1,"method":"status"}' | souffleur stdio

Lines of JSON and LSP's Content-Length frames both work. After the input's end calls have one second. PROTOCOL.md has every method, with a request and its answer."#;

#[derive(Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Stdio {
    #[command(flatten)]
    models: Models,
}

pub(crate) fn run(arguments: Stdio, log: &Log) -> anyhow::Result<ExitCode> {
    if std::io::stdin().is_terminal() {
        tell("souffleur: waiting for JSON-RPC, one message a line; Ctrl-D ends it, and `souffleur stdio --help` has an example");
    }
    let (input, output) = stdio::take_standard_streams().context("can't take stdin and stdout")?;
    let runtime = Runtime::start(arguments.models.config(log)?)?;
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let closed = executor.block_on(async {
        let stop = CancellationToken::new();
        let peer = stdio::serve_stdio(runtime.clone(), input, output, stop.clone());
        let end = async {
            over(&runtime).await;
            stop.cancel();
            std::future::pending::<CloseReason>().await
        };
        let closed = tokio::select! {
            closed = peer => closed,
            closed = end => closed,
        };
        runtime.shutdown(Duration::ZERO).await;
        closed
    });
    // A thread may still wait for input that never comes.
    executor.shutdown_background();
    Ok(match closed {
        CloseReason::ByPeer | CloseReason::Stopped | CloseReason::ParentExited | CloseReason::Exit { after_shutdown: true } => {
            ExitCode::SUCCESS
        }
        // LSP asks for this.
        CloseReason::Exit { after_shutdown: false } => ExitCode::FAILURE,
        CloseReason::FramingLost => {
            tell("souffleur: the input is not in step with its framing any more");
            ExitCode::FAILURE
        }
        CloseReason::WriteFailed => {
            tell("souffleur: stdout can't be written to any more");
            ExitCode::FAILURE
        }
    })
}
