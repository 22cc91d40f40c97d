//! `serve`: a JSON-RPC server on a WebSocket, for web pages and tools.

use super::{Log, Models, run_until_stopped};
use clap::Args;
use rustix::process::{Resource, getrlimit, setrlimit};
use souffleur::actors::Runtime;
use souffleur::protocol::transport::http::{ListenOptions, Server, bind};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

/// File descriptors besides sockets: pipes to workers, and those of the async runtimes.
const OTHER_FILES: usize = 256;

const EXAMPLES: &str = "\
Examples:
  souffleur serve                                   accept programs on this machine
  souffleur serve --origin http://localhost:3000    also accept web pages from this origin

Clients authenticate with a token that is new with every start. Its file is printed. PROTOCOL.md explains how to send it, \
and shows every method with a request and its response.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Serve {
    /// The port to listen on; 0 takes a free port
    #[arg(long, default_value_t = 7654)]
    port: u16,
    /// The address to listen on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
    /// Allow an address that other machines can reach. They need the token, which is sent unencrypted
    #[arg(long)]
    beyond_loopback: bool,
    /// A Host header to accept, for other machines that connect by name, such as build.lan:7654. Can be repeated
    #[arg(long = "host", value_name = "HOST:PORT", value_parser = host)]
    hosts: Vec<String>,
    /// An origin whose web pages may connect, such as http://localhost:3000. Can be repeated
    #[arg(long = "origin", value_name = "ORIGIN", value_parser = origin)]
    origins: Vec<String>,
    #[command(flatten)]
    models: Models,
}

/// Whether `text` can occur as a host in a Host or Origin header, where browsers write it in lower case.
fn is_host(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase() && !b"/?#@*".contains(&byte))
}

fn host(text: &str) -> Result<String, &'static str> {
    if is_host(text) { Ok(text.into()) } else { Err("expected a host such as build.lan:7654, without a scheme or a path") }
}

fn origin(text: &str) -> Result<String, &'static str> {
    match text.split_once("://") {
        Some((scheme, rest)) if is_host(scheme) && is_host(rest) => Ok(text.into()),
        _ => Err("expected an origin such as http://localhost:3000, without a path"),
    }
}

pub(crate) fn run(arguments: Serve, log: &Log) -> anyhow::Result<ExitCode> {
    let config = arguments.models.config(log)?;
    raise_file_limit(config.limits().connections);
    let runtime = Runtime::start(config)?;
    let no_host_name = arguments.address.is_unspecified() && arguments.hosts.is_empty();
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
            if let Err(error) = announce(&server, no_host_name) {
                // The starting process may have closed stdout after the first line.
                tracing::warn!(%error, "can't print the address of the server");
            }
            anyhow::Ok(server.run(run_until_stopped(&runtime)).await?)
        }
        .await;
        runtime.shutdown(Duration::ZERO).await;
        served
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Raises the limit of open files, which is 1024 by default on many systems. Without a free descriptor no worker can start.
fn raise_file_limit(connections: usize) {
    let wanted = (connections + OTHER_FILES) as u64;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    limit.current = Some(limit.maximum.map_or(wanted, |maximum| wanted.min(maximum)));
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "can't raise the limit of open files");
    }
}

fn announce(server: &Server, no_host_name: bool) -> std::io::Result<()> {
    let (address, file) = (server.address(), server.token_file().display());
    let mut out = std::io::stdout();
    writeln!(out, "listening on ws://{address}/rpc")?;
    writeln!(out, "token in {file}")?;
    writeln!(out, "for a web page of your own, the address with the token: http://{address}/#token={}", server.token().reveal())?;
    writeln!(out, "try it with websocat: websocat \"ws://{address}/rpc?token=$(cat {file})\"")?;
    writeln!(
        out,
        "then: {{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"complete\",\"params\":{{\"prompt\":\"def add(a, b):\",\"maxTokens\":16}}}}"
    )?;
    if no_host_name {
        writeln!(out, "other machines are refused: use --host to set the name by which they reach this one")?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_origins_that_no_header_can_match_are_refused() {
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
