//! `serve`: JSON-RPC on a WebSocket, for pages and tools.

use super::{Models, over};
use clap::Args;
use rustix::process::{Resource, getrlimit, setrlimit};
use souffleur::actors::{Embedded, Runtime};
use souffleur::protocol::transport::http::{Listen, Server, bind};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

/// Files besides sockets: pipes to workers, and what the runtimes need.
const OTHER_FILES: usize = 256;

#[derive(Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    models: Models,
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
    #[arg(long = "host", value_name = "HOST:PORT")]
    hosts: Vec<String>,
    /// The origin of a page that may connect, such as http://localhost:3000; repeat for several
    #[arg(long = "origin", value_name = "ORIGIN")]
    origins: Vec<String>,
}

pub(crate) fn run(arguments: Serve, embedded: Embedded) -> anyhow::Result<ExitCode> {
    let config = arguments.models.config(embedded)?;
    make_room(config.limits.connections);
    let runtime = Runtime::start(config)?;
    let listen = Listen {
        address: SocketAddr::new(arguments.address, arguments.port),
        beyond_loopback: arguments.beyond_loopback,
        hosts: arguments.hosts,
        origins: arguments.origins,
    };
    let system = actix_web::rt::System::new();
    system.block_on(async {
        let served = async {
            let server = bind(runtime.clone(), listen)?;
            if let Err(error) = announce(&server) {
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

fn announce(server: &Server) -> std::io::Result<()> {
    let (address, file) = (server.address(), server.token_file().display());
    let mut out = std::io::stdout();
    writeln!(out, "listening on ws://{address}/rpc")?;
    writeln!(out, "token in {file}")?;
    writeln!(out, "address with the token: http://{address}/#token={}", server.token().reveal())?;
    writeln!(out, "to try it: websocat \"ws://{address}/rpc?token=$(cat {file})\"")?;
    writeln!(
        out,
        "then: {{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"complete\",\"params\":{{\"prompt\":\"def add(a, b):\",\"maxTokens\":16}}}}"
    )?;
    out.flush()
}
