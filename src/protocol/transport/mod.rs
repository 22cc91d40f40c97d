//! What carries whole messages: two framings over pipes, and WebSocket over HTTP.

mod framing;
pub mod http;
pub mod stdio;
pub mod ws;
