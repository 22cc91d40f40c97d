//! Transports of whole messages: stdio with two framings, and WebSocket over HTTP.

mod framing;
pub mod http;
pub mod stdio;
pub mod ws;
