//! Checks every HTTP request before it is routed: the Host and Origin headers, and the access token. A web page that makes
//! its browser connect to this server (DNS rebinding, cross-site WebSocket) has a foreign Host or Origin, and no token.
//! Header values are compared as bytes; no value can make a check panic.

use super::token::Token;
use actix_web::http::{StatusCode, Uri, header, header::HeaderMap};
use std::net::SocketAddr;

/// The WebSocket subprotocol that the server selects.
pub(crate) const SUBPROTOCOL: &str = "souffleur";
/// Prefix of a second subprotocol, which carries the access token.
const TOKEN_SUBPROTOCOL_PREFIX: &str = "souffleur.token.";

/// Decides which HTTP requests are allowed.
#[derive(Clone, Debug)]
pub struct Guard {
    allowed_hosts: Vec<String>,
    allowed_origins: Vec<String>,
    token: Token,
}

impl Guard {
    /// `address` is the one that the server listens on; `origins` are the allowed Origin values, such as
    /// `http://localhost:3000`.
    pub fn new(address: SocketAddr, origins: Vec<String>, token: Token) -> Self {
        let port = address.port();
        let mut allowed_hosts: Vec<_> = ["127.0.0.1", "localhost", "[::1]"].iter().map(|name| format!("{name}:{port}")).collect();
        if !address.ip().is_unspecified() {
            allowed_hosts.push(address.to_string());
        }
        if port == 80 {
            // Browsers omit the default port of http.
            allowed_hosts.extend(["127.0.0.1", "localhost", "[::1]"].map(str::to_owned));
        }
        Self { allowed_hosts, allowed_origins: origins, token }
    }

    /// Adds allowed Host values, for a server that other machines reach by name.
    pub fn allow_hosts(mut self, hosts: impl IntoIterator<Item = String>) -> Self {
        self.allowed_hosts.extend(hosts);
        self
    }

    /// Checks a request; with `needs_token`, also its access token.
    ///
    /// # Errors
    ///
    /// The HTTP status that refuses the request.
    pub(crate) fn check(&self, uri: &Uri, headers: &HeaderMap, needs_token: bool) -> Result<(), StatusCode> {
        let mut hosts = headers.get_all(header::HOST);
        let host_is_allowed = match (hosts.next(), hosts.next()) {
            (Some(host), None) => self.allowed_hosts.iter().any(|allowed| allowed.as_bytes() == host.as_bytes()),
            _ => false,
        };
        // Only requests to a proxy have a target with an authority.
        if !host_is_allowed || uri.authority().is_some() {
            return Err(StatusCode::FORBIDDEN);
        }
        let origin_is_allowed =
            |origin: &header::HeaderValue| self.allowed_origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes());
        if !headers.get_all(header::ORIGIN).all(origin_is_allowed) {
            return Err(StatusCode::FORBIDDEN);
        }
        if needs_token && !self.has_valid_token(uri, headers) {
            return Err(StatusCode::UNAUTHORIZED);
        }
        Ok(())
    }

    /// Whether a request carries the right access token.
    pub(crate) fn has_valid_token(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        tokens(uri, headers).any(|token| self.token.matches(token))
    }
}

/// All access tokens that a request offers: from the `Authorization` header, the WebSocket subprotocols and the query.
fn tokens<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> impl Iterator<Item = &'a [u8]> {
    let bearer = headers.get_all(header::AUTHORIZATION).filter_map(|value| {
        let (scheme, token) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
    });
    let subprotocol = subprotocols(headers).filter_map(|name| name.strip_prefix(TOKEN_SUBPROTOCOL_PREFIX.as_bytes()));
    let query = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.strip_prefix("token=")).map(str::as_bytes);
    bearer.chain(subprotocol).chain(query)
}

/// The WebSocket subprotocols that a request offers.
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
        let uri: Uri = uri.parse().unwrap();
        let needs_token = crate::protocol::transport::http::needs_token(uri.path());
        guard(token).check(&uri, &headers(pairs), needs_token).err().map_or(200, |status| status.as_u16())
    }

    /// Host values that are refused. Many of them reach 127.0.0.1, or look as if they did.
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
    fn only_the_exact_host_names_are_accepted() {
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
    fn only_configured_origins_are_accepted() {
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
    fn the_token_is_accepted_in_three_places() {
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
            // The upper case of a token without letters is the token itself.
            assert!(refused == 401 || offer == secret, "{offer}");
        }
        assert_eq!(status("/rpc", std::slice::from_ref(&host), &token), 401);
        assert_eq!(status("/no-such-route", std::slice::from_ref(&host), &token), 401);
        assert_eq!(status("/health", &[host], &token), 200);
    }

    proptest! {
        #[test]
        fn a_request_without_the_token_is_refused_whatever_its_headers_are(host: Vec<u8>, origin: Vec<u8>, authorization: Vec<u8>, protocol: Vec<u8>) {
            let token = Token::new().unwrap();
            let pairs = [
                (header::HOST, &host[..]), (header::ORIGIN, &origin), (header::AUTHORIZATION, &authorization),
                (header::SEC_WEBSOCKET_PROTOCOL, &protocol),
            ];
            prop_assert_ne!(status("/rpc", &pairs, &token), 200);
            let allowed = [(header::HOST, &b"localhost:7777"[..]), (header::AUTHORIZATION, &authorization), (header::SEC_WEBSOCKET_PROTOCOL, &protocol)];
            prop_assert_eq!(status("/rpc", &allowed, &token), 401);
        }
    }
}
