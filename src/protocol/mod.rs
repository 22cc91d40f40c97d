//! JSON-RPC over anything that carries whole messages. Knows no model.
#![forbid(unsafe_code)]
