//! `stdio`: a JSON-RPC server on stdin and stdout, started by an editor.

use super::{Log, Models, print_stderr, run_until_stopped};
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

Messages are JSON lines, or have LSP's Content-Length headers; the first message decides. At the end of the input, running calls get one more second. PROTOCOL.md shows every method with a request and its response."#;

#[derive(Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Stdio {
    #[command(flatten)]
    models: Models,
}

pub(crate) fn run(arguments: Stdio, log: &Log) -> anyhow::Result<ExitCode> {
    if std::io::stdin().is_terminal() {
        print_stderr(
            "souffleur: waiting for JSON-RPC, one message per line; press Ctrl-D to end, see `souffleur stdio --help` for an example",
        );
    }
    let (input, output) = stdio::take_standard_streams().context("can't take stdin and stdout")?;
    let runtime = Runtime::start(arguments.models.config(log)?)?;
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let closed = executor.block_on(async {
        let stop = CancellationToken::new();
        let peer = stdio::serve_stdio(runtime.clone(), input, output, stop.clone());
        let end = async {
            run_until_stopped(&runtime).await;
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
    // A thread may still block in a read of stdin.
    executor.shutdown_background();
    Ok(match closed {
        CloseReason::ByPeer | CloseReason::Stopped | CloseReason::ParentExited | CloseReason::Exit { after_shutdown: true } => {
            ExitCode::SUCCESS
        }
        // LSP requires exit code 1 here.
        CloseReason::Exit { after_shutdown: false } => ExitCode::FAILURE,
        CloseReason::FramingLost => {
            print_stderr("souffleur: the framing of the input is broken");
            ExitCode::FAILURE
        }
        CloseReason::WriteFailed => {
            print_stderr("souffleur: can't write to stdout");
            ExitCode::FAILURE
        }
    })
}
