//! The HTTP server: listening, the routes, and the guard in front of all of them.

use super::ws::{self, WebSocketState};
use crate::{
    actors::Runtime,
    protocol::{Api, Guard, Token, TokenFile, token::TokenFileError, types::HealthResult},
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

/// An HTTP route. The router is built from `ROUTES`, and the tests iterate over them.
pub struct Route {
    pub path: &'static str,
    /// Whether the guard requires the token. Without it, `/health` gives only the status word.
    pub needs_token: bool,
    handler: fn() -> actix_web::Route,
}

pub const ROUTES: [Route; 2] = [
    Route { path: "/rpc", needs_token: true, handler: || web::get().to(ws::upgrade) },
    Route { path: "/health", needs_token: false, handler: || web::get().to(health) },
];

/// Unknown paths need the token too, so that a client without it can't find out which paths exist.
pub(crate) fn needs_token(path: &str) -> bool {
    ROUTES.iter().find(|route| route.path == path).is_none_or(|route| route.needs_token)
}

/// How many seconds a stop waits for connections to close; their requests have ended before.
const STOP_SECONDS: u64 = 1;

/// The address to listen on, and the clients that may connect.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// Port 0 takes a free port.
    pub address: SocketAddr,
    /// Accept an address that other machines can reach. They still need the token, which is sent unencrypted.
    pub beyond_loopback: bool,
    /// Allowed Host values besides the address, such as `build.lan:7777`.
    pub hosts: Vec<String>,
    /// Allowed Origin values, such as `http://localhost:3000`.
    pub origins: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("{address} is already in use; choose another port, or 0 for a free one")]
    InUse { address: SocketAddr },
    #[error("{address} can be reached from other machines; set beyond-loopback to allow that, or listen on 127.0.0.1")]
    BeyondLoopback { address: SocketAddr },
    #[error("can't listen on {address}: {cause}")]
    Listen { address: SocketAddr, cause: io::Error },
    #[error("can't get random bytes for the token: {0}")]
    Token(io::Error),
    #[error("can't write the token file: {0}")]
    TokenFile(#[from] TokenFileError),
}

/// A listening server. Dropping it removes the token file.
pub struct Server {
    address: SocketAddr,
    token: Token,
    token_file: TokenFile,
    serving: HttpServing,
    stop: CancellationToken,
}

/// Starts to listen; `Server::run` serves. Must be called inside an `actix_web::rt::System`.
///
/// # Errors
///
/// The address can't be used, or the token file can't be written.
pub fn bind(runtime: Runtime, listen: ListenOptions) -> Result<Server, BindError> {
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
    let guard = Guard::new(address, listen.origins, token.clone()).allow_hosts(listen.hosts);
    let stop = CancellationToken::new();
    let websockets = WebSocketState::new(Api::new(runtime.clone()), stop.clone());
    let serving = HttpServer::new(move || {
        let (guard, websockets) = (web::Data::new(guard.clone()), web::Data::new(websockets.clone()));
        let app = App::new().app_data(websockets).app_data(guard).app_data(web::Data::new(runtime.clone())).wrap(from_fn(check_request));
        ROUTES.iter().fold(app, |app, route| app.route(route.path, (route.handler)()))
    })
    // One thread is enough to carry text, and connection futures then need not be `Send`.
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

    /// Serves until `until` resolves, then closes every connection.
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

/// The guard as middleware, for unknown paths too. A refused request gets a status without a body.
async fn check_request<B: MessageBody>(request: ServiceRequest, next: Next<B>) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let guard = request.app_data::<web::Data<Guard>>().expect("added to every app in `bind`");
    match guard.check(request.uri(), request.headers(), needs_token(request.path())) {
        Ok(()) => Ok(next.call(request).await?.map_into_left_body()),
        Err(status) => {
            tracing::debug!(%status, "refused an HTTP request");
            Ok(request.into_response(HttpResponse::new(status)).map_into_right_body())
        }
    }
}

/// The health of all models: one status word, and each model's status for a client with the token.
async fn health(request: HttpRequest, runtime: web::Data<Runtime>, guard: web::Data<Guard>) -> HttpResponse {
    let with_models = guard.has_valid_token(request.uri(), request.headers());
    let health = HealthResult::new(runtime.status().await, runtime.default_model(), with_models);
    let mut response = if health.is_ok() { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    response.content_type("application/json").body(serde_json::to_string(&health).expect("wire types have string keys"))
}
