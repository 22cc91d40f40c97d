//! `serve`: JSON-RPC on a WebSocket, for pages and tools.

use super::{Log, Models, over};
use clap::Args;
use rustix::process::{Resource, getrlimit, setrlimit};
use souffleur::actors::Runtime;
use souffleur::protocol::transport::http::{ListenOptions, Server, bind};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

/// Files besides sockets: pipes to workers, and what the runtimes need.
const OTHER_FILES: usize = 256;

const EXAMPLES: &str = "\
Examples:
  souffleur serve                                   for programs on this machine
  souffleur serve --origin http://localhost:3000    and for a page from there

Whoever connects brings the token of this start, from the file that is printed. PROTOCOL.md says how, and \
has every method with a request and its answer.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Serve {
    /// The port; 0 takes a free one
    #[arg(long, default_value_t = 7654)]
    port: u16,
    /// The address to listen on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
    /// Let other machines in; they need the token, which then travels in the clear
    #[arg(long)]
    beyond_loopback: bool,
    /// A name and port by which other machines reach this one, such as build.lan:7654; repeat for several
    #[arg(long = "host", value_name = "HOST:PORT", value_parser = host)]
    hosts: Vec<String>,
    /// The origin of a page that may connect, such as http://localhost:3000; repeat for several
    #[arg(long = "origin", value_name = "ORIGIN", value_parser = origin)]
    origins: Vec<String>,
    #[command(flatten)]
    models: Models,
}

/// Whether this may stand in a header as browsers and clients write a host there; what may not would never be matched.
fn is_host(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase() && !b"/?#@*".contains(&byte))
}

fn host(text: &str) -> Result<String, &'static str> {
    if is_host(text) { Ok(text.into()) } else { Err("a host is written like build.lan:7654, without a scheme or a path") }
}

fn origin(text: &str) -> Result<String, &'static str> {
    match text.split_once("://") {
        Some((scheme, rest)) if is_host(scheme) && is_host(rest) => Ok(text.into()),
        _ => Err("an origin is written like http://localhost:3000, without a path"),
    }
}

pub(crate) fn run(arguments: Serve, log: &Log) -> anyhow::Result<ExitCode> {
    let config = arguments.models.config(log)?;
    make_room(config.limits().connections);
    let runtime = Runtime::start(config)?;
    let nameless = arguments.address.is_unspecified() && arguments.hosts.is_empty();
    let listen = ListenOptions {
        address: SocketAddr::new(arguments.address, arguments.port),
        beyond_loopback: arguments.beyond_loopback,
        hosts: arguments.hosts,
        origins: arguments.origins,
    };
    let system = actix_web::rt::System::new();
    system.block_on(async {
        let served = async {
            let server = bind(runtime.clone(), listen)?;
            if let Err(error) = announce(&server, nameless) {
                // Whoever started us may read the first line only.
                tracing::warn!(%error, "can't say where the server listens");
            }
            anyhow::Ok(server.run(over(&runtime)).await?)
        }
        .await;
        runtime.shutdown(Duration::ZERO).await;
        served
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Many systems let a process have 1024 files open if it does not ask for more; without one, no worker could be started.
fn make_room(connections: usize) {
    let wanted = (connections + OTHER_FILES) as u64;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    limit.current = Some(limit.maximum.map_or(wanted, |maximum| wanted.min(maximum)));
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "can't have more files open");
    }
}

fn announce(server: &Server, nameless: bool) -> std::io::Result<()> {
    let (address, file) = (server.address(), server.token_file().display());
    let mut out = std::io::stdout();
    writeln!(out, "listening on ws://{address}/rpc")?;
    writeln!(out, "token in {file}")?;
    writeln!(out, "for a page of yours, the address with the token: http://{address}/#token={}", server.token().reveal())?;
    writeln!(out, "to try it, with websocat: websocat \"ws://{address}/rpc?token=$(cat {file})\"")?;
    writeln!(
        out,
        "then: {{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"complete\",\"params\":{{\"prompt\":\"def add(a, b):\",\"maxTokens\":16}}}}"
    )?;
    if nameless {
        writeln!(out, "other machines are refused until --host says by which name they reach this one")?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_header_can_match_is_refused_at_once() {
        for good in ["http://localhost:3000", "https://example.org", "vscode-webview://0abc", "http://[::1]:8080"] {
            assert!(origin(good).is_ok(), "{good}");
        }
        for bad in ["localhost:3000", "http://", "http://localhost:3000/", "http://Localhost:3000", "*", "null", "http://*"] {
            assert!(origin(bad).is_err(), "{bad}");
        }
        assert!(host("build.lan:7654").is_ok() && host("build.lan").is_ok());
        assert!(host("http://build.lan:7654").is_err() && host("build.lan:7654/rpc").is_err() && host("").is_err());
    }
}
