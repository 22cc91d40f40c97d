//! The protocol and the command line: the real binary with its worker process.

mod architecture;
mod bad_input;
mod bench;
mod doctor;
mod http_access;
mod jsonrpsee_client;
mod oversized_model;
mod readme;
mod slow_readers;
mod stderr;
mod support;
mod transcripts;
