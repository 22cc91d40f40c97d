//! The HTTP server: where it listens, and the router, all of it behind the guard.

use super::ws::Sockets;
use crate::{
    actors::Runtime,
    protocol::{Api, Guard, Token, TokenFile, guard::ROUTES, token::TokenFileError, types::HealthResult},
};
use actix_web::{
    App, Error, HttpRequest, HttpResponse, HttpServer,
    body::{EitherBody, MessageBody},
    dev::{Server as HttpServing, ServiceRequest, ServiceResponse},
    middleware::{Next, from_fn},
    web,
};
use std::{
    io,
    net::{SocketAddr, TcpListener},
};
use tokio_util::sync::CancellationToken;

/// A stop waits this many seconds for connections to say goodbye: their requests have ended before.
const STOP_SECONDS: u64 = 1;

/// Where to listen and who may come.
#[derive(Clone, Debug)]
pub struct Listen {
    /// Port 0 takes a free one.
    pub address: SocketAddr,
    /// Let other machines in: they still need the token, which then travels in the clear.
    pub beyond_loopback: bool,
    /// Names under which other machines reach us, such as `build.lan:7777`.
    pub hosts: Vec<String>,
    /// Origins of pages that may connect, such as `http://localhost:3000`.
    pub origins: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("{address} is in use already; choose another port, or 0 for a free one")]
    InUse { address: SocketAddr },
    #[error("{address} is reached from other machines; set beyond-loopback to allow that, or listen on 127.0.0.1")]
    BeyondLoopback { address: SocketAddr },
    #[error("can't listen on {address}: {cause}")]
    Listen { address: SocketAddr, cause: io::Error },
    #[error("no randomness for the token: {0}")]
    Token(io::Error),
    #[error("can't write the token's file: {0}")]
    TokenFile(#[from] TokenFileError),
}

/// A server that listens. Dropping it removes the token's file.
pub struct Server {
    address: SocketAddr,
    token: Token,
    token_file: TokenFile,
    serving: HttpServing,
    stop: CancellationToken,
}

/// Listens at once; `Server::run` serves. Call it inside of an `actix_web::rt::System`.
pub fn bind(runtime: Runtime, listen: Listen) -> Result<Server, BindError> {
    let address = listen.address;
    if !address.ip().is_loopback() && !listen.beyond_loopback {
        return Err(BindError::BeyondLoopback { address });
    }
    let failed = |cause: io::Error| match cause.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { address },
        _ => BindError::Listen { address, cause },
    };
    let listener = TcpListener::bind(address).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let token = Token::new().map_err(BindError::Token)?;
    let token_file = TokenFile::create(&token, address.port())?;
    let guard = Guard::new(address, listen.origins, token.clone()).and_hosts(listen.hosts);
    let stop = CancellationToken::new();
    let sockets = Sockets::new(Api::new(runtime.clone()), stop.clone());
    let serving = HttpServer::new(move || {
        let (guard, sockets) = (web::Data::new(guard.clone()), web::Data::new(sockets.clone()));
        let app = App::new().app_data(sockets).app_data(guard).app_data(web::Data::new(runtime.clone())).wrap(from_fn(admit));
        ROUTES.iter().fold(app, |app, route| app.route(route.path, (route.handler)()))
    })
    // One is enough to carry text, and with one a connection's future need not be `Send`.
    .workers(1)
    .shutdown_timeout(STOP_SECONDS)
    .disable_signals()
    .listen(listener)
    .map_err(failed)?
    .run();
    Ok(Server { address, token, token_file, serving, stop })
}

impl Server {
    pub fn address(&self) -> SocketAddr {
        self.address
    }
    pub fn token(&self) -> &Token {
        &self.token
    }
    pub fn token_file(&self) -> &std::path::Path {
        self.token_file.path()
    }

    /// Serves until `until` is done, then says goodbye to every connection.
    pub async fn run(self, until: impl Future<Output = ()>) -> io::Result<()> {
        let handle = self.serving.handle();
        let mut serving = std::pin::pin!(self.serving);
        tokio::select! {
            ended = &mut serving => return ended,
            () = until => {}
        }
        self.stop.cancel();
        let (_, ended) = tokio::join!(handle.stop(true), serving);
        ended
    }
}

/// The guard, around everything: also around what is not found. What it refuses gets a status and nothing else.
async fn admit<B: MessageBody>(request: ServiceRequest, next: Next<B>) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let guard = request.app_data::<web::Data<Guard>>().expect("given to every app");
    match guard.check(request.uri(), request.headers()) {
        Ok(()) => Ok(next.call(request).await?.map_into_left_body()),
        Err(status) => {
            tracing::debug!(%status, "a request was refused");
            Ok(request.into_response(HttpResponse::new(status)).map_into_right_body())
        }
    }
}

/// How the models are, asked of their decode loops: one word, and everything for who has the token.
pub(crate) async fn health(request: HttpRequest, runtime: web::Data<Runtime>, guard: web::Data<Guard>) -> HttpResponse {
    let in_full = guard.knows(request.uri(), request.headers());
    let health = HealthResult::new(runtime.status().await, runtime.default_model(), in_full);
    let mut response = if health.is_ok() { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    response.content_type("application/json").body(serde_json::to_string(&health).expect("wire types have string keys"))
}
