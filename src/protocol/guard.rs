//! The one guard in front of every route. A page that some browser shows us off to must not get in: it has a Host or an
//! Origin of its own, and no token. Total over whatever bytes a header holds.

use super::token::Token;
use actix_web::{
    http::{StatusCode, Uri, header, header::HeaderMap},
    web,
};
use std::net::SocketAddr;

/// The WebSocket subprotocol, and what stands before the token in its own.
pub(crate) const SUBPROTOCOL: &str = "souffleur";
const TOKEN_SUBPROTOCOL: &str = "souffleur.token.";

/// A route: the router is built from these, and the tests go over them.
pub struct Route {
    pub path: &'static str,
    /// Whether the guard asks for the token. `/health` does without: it then says one word.
    pub needs_token: bool,
    pub(crate) handler: fn() -> actix_web::Route,
}

pub const ROUTES: [Route; 2] = [
    Route { path: "/rpc", needs_token: true, handler: || web::get().to(super::transport::ws::upgrade) },
    Route { path: "/health", needs_token: false, handler: || web::get().to(super::transport::http::health) },
];

#[derive(Clone, Debug)]
pub struct Guard {
    hosts: Vec<String>,
    origins: Vec<String>,
    token: Token,
}

impl Guard {
    /// `address` is where the server listens; `origins` are the pages that may connect, such as `http://localhost:3000`.
    pub fn new(address: SocketAddr, origins: Vec<String>, token: Token) -> Self {
        let port = address.port();
        let mut hosts: Vec<_> = ["127.0.0.1", "localhost", "[::1]"].iter().map(|name| format!("{name}:{port}")).collect();
        if !address.ip().is_unspecified() {
            hosts.push(address.to_string());
        }
        if port == 80 {
            // A browser leaves out the scheme's own port.
            hosts.extend(["127.0.0.1", "localhost", "[::1]"].map(str::to_owned));
        }
        Self { hosts, origins, token }
    }

    /// The names under which a server that listens elsewhere than on loopback is reached.
    pub fn and_hosts(mut self, hosts: impl IntoIterator<Item = String>) -> Self {
        self.hosts.extend(hosts);
        self
    }

    /// `Err` is the status to refuse with, and nothing else.
    pub(crate) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), StatusCode> {
        let mut hosts = headers.get_all(header::HOST);
        let host_is_ours = match (hosts.next(), hosts.next()) {
            (Some(host), None) => self.hosts.iter().any(|ours| ours.as_bytes() == host.as_bytes()),
            _ => false,
        };
        // A request to a proxy names its host in the target; we are none.
        if !host_is_ours || uri.authority().is_some() {
            return Err(StatusCode::FORBIDDEN);
        }
        let allowed = |origin: &header::HeaderValue| self.origins.iter().any(|ours| ours.as_bytes() == origin.as_bytes());
        if !headers.get_all(header::ORIGIN).all(allowed) {
            return Err(StatusCode::FORBIDDEN);
        }
        // A path that is no route needs it too, so that none can be told from another without it.
        let needs_token = ROUTES.iter().find(|route| route.path == uri.path()).is_none_or(|route| route.needs_token);
        if needs_token && !self.knows(uri, headers) {
            return Err(StatusCode::UNAUTHORIZED);
        }
        Ok(())
    }

    /// Whether a request brings the token.
    pub(crate) fn knows(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        offered(uri, headers).any(|token| self.token.matches(token))
    }
}

/// Every token a request brings, wherever one may travel.
fn offered<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> impl Iterator<Item = &'a [u8]> {
    let bearer = headers.get_all(header::AUTHORIZATION).filter_map(|value| {
        let (scheme, token) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
    });
    let subprotocol = subprotocols(headers).filter_map(|name| name.strip_prefix(TOKEN_SUBPROTOCOL.as_bytes()));
    let query = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.strip_prefix("token=")).map(str::as_bytes);
    bearer.chain(subprotocol).chain(query)
}

pub(crate) fn subprotocols(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).flat_map(|value| value.as_bytes().split(|&byte| byte == b',')).map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    fn guard(token: &Token) -> Guard {
        Guard::new("127.0.0.1:7777".parse().unwrap(), vec!["http://localhost:3000".into()], token.clone())
    }

    fn headers(pairs: &[(HeaderName, &[u8])]) -> HeaderMap {
        pairs.iter().filter_map(|(name, value)| Some((name.clone(), HeaderValue::from_bytes(value).ok()?))).collect()
    }

    fn status(uri: &str, pairs: &[(HeaderName, &[u8])], token: &Token) -> u16 {
        guard(token).check(&uri.parse().unwrap(), &headers(pairs)).err().map_or(200, |status| status.as_u16())
    }

    /// Names that reach 127.0.0.1, or look as if they did, and are not ours.
    const FOREIGN_HOSTS: &[&[u8]] = &[
        b"",
        b"127.0.0.1",
        b"localhost",
        b"127.0.0.1:7778",
        b"127.0.0.1:77777",
        b"127.0.0.1:07777",
        b"127.0.0.1: 7777",
        b"127.1:7777",
        b"0.0.0.0:7777",
        b"2130706433:7777",
        b"0x7f000001:7777",
        b"017700000001:7777",
        b"LOCALHOST:7777",
        b"localhost.:7777",
        b"127.0.0.1.:7777",
        b"evil.test:7777",
        b"127.0.0.1.evil.test:7777",
        b"evil.test",
        b"localhost.evil.test:7777",
        b"::1:7777",
        b"[::1]",
        b"[::]:7777",
        b"[::ffff:127.0.0.1]:7777",
        b"user@127.0.0.1:7777",
        b"127.0.0.1:7777@evil.test",
        b"127.0.0.1:7777,evil.test",
        b"127.0.0.1:7777/",
        b"http://127.0.0.1:7777",
        "lоcalhost:7777".as_bytes(),
        b"xn--lcalhost-30a:7777",
        b"127.0.0.1:7777#",
        b"\xff\xfe",
        b"127.0.0.2:7777",
        b"*",
        b"*:7777",
        b"null",
    ];

    #[test]
    fn only_our_own_names_are_hosts() {
        let token = Token::new().unwrap();
        let bearer = format!("Bearer {}", token.reveal());
        let with = |host: &[u8]| status("/rpc", &[(header::HOST, host), (header::AUTHORIZATION, bearer.as_bytes())], &token);
        for host in ["127.0.0.1:7777", "localhost:7777", "[::1]:7777"] {
            assert_eq!(with(host.as_bytes()), 200, "{host}");
        }
        for host in FOREIGN_HOSTS {
            assert_eq!(with(host), 403, "{}", String::from_utf8_lossy(host));
        }
        let twice = [(header::HOST, &b"localhost:7777"[..]), (header::HOST, b"localhost:7777")];
        assert_eq!(status("/health", &twice, &token), 403);
        assert_eq!(status("/health", &[], &token), 403);
        assert_eq!(status("http://localhost:7777/health", &twice[..1], &token), 403);
    }

    #[test]
    fn a_page_gets_in_only_from_an_origin_that_was_named() {
        let token = Token::new().unwrap();
        let with = |origin: &[u8]| status("/health", &[(header::HOST, b"localhost:7777"), (header::ORIGIN, origin)], &token);
        assert_eq!(with(b"http://localhost:3000"), 200);
        for origin in [
            &b"null"[..],
            b"",
            b"http://localhost:3001",
            b"https://localhost:3000",
            b"http://localhost:3000/",
            b"http://LOCALHOST:3000",
            b"http://127.0.0.1:3000",
            b"http://localhost:7777",
            b"http://evil.test",
            b"file://",
            b"chrome-extension://abc",
            b"\xff",
            b"*",
        ] {
            assert_eq!(with(origin), 403, "{}", String::from_utf8_lossy(origin));
        }
        let both =
            [(header::HOST, &b"localhost:7777"[..]), (header::ORIGIN, b"http://localhost:3000"), (header::ORIGIN, b"http://evil.test")];
        assert_eq!(status("/health", &both, &token), 403);
    }

    #[test]
    fn the_token_travels_three_ways() {
        let token = Token::new().unwrap();
        let secret = token.reveal();
        let host = (header::HOST, &b"localhost:7777"[..]);
        let bearer = format!("bearer  {secret}");
        let subprotocol = format!("souffleur, souffleur.token.{secret}");
        assert_eq!(status("/rpc", &[host.clone(), (header::AUTHORIZATION, bearer.as_bytes())], &token), 200);
        assert_eq!(status("/rpc", &[host.clone(), (header::SEC_WEBSOCKET_PROTOCOL, subprotocol.as_bytes())], &token), 200);
        assert_eq!(status(&format!("/rpc?a=b&token={secret}"), std::slice::from_ref(&host), &token), 200);
        let wrong = Token::new().unwrap();
        for offer in [wrong.reveal(), &secret[..63], &secret.to_uppercase(), "", " "] {
            let bearer = format!("Bearer {offer}");
            let refused = status("/rpc", &[host.clone(), (header::AUTHORIZATION, bearer.as_bytes())], &token);
            // An all-digit token has no upper case; it would be the same.
            assert!(refused == 401 || offer == secret, "{offer}");
        }
        assert_eq!(status("/rpc", std::slice::from_ref(&host), &token), 401);
        assert_eq!(status("/no-such-route", std::slice::from_ref(&host), &token), 401);
        assert_eq!(status("/health", &[host], &token), 200);
    }

    proptest! {
        #[test]
        fn whatever_the_headers_hold_nobody_gets_in_without_the_token(host: Vec<u8>, origin: Vec<u8>, authorization: Vec<u8>, protocol: Vec<u8>) {
            let token = Token::new().unwrap();
            let pairs = [
                (header::HOST, &host[..]), (header::ORIGIN, &origin), (header::AUTHORIZATION, &authorization),
                (header::SEC_WEBSOCKET_PROTOCOL, &protocol),
            ];
            prop_assert_ne!(status("/rpc", &pairs, &token), 200);
            let ours = [(header::HOST, &b"localhost:7777"[..]), (header::AUTHORIZATION, &authorization), (header::SEC_WEBSOCKET_PROTOCOL, &protocol)];
            prop_assert_eq!(status("/rpc", &ours, &token), 401);
        }
    }
}
