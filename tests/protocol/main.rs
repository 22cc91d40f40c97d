//! The program from outside: the real binary, its worker a process of its own.

mod bad_input;
mod bench;
mod clients;
mod doctor;
mod guard;
mod readme;
mod rooms;
mod sockets;
mod stderr;
mod support;
mod terabyte;
mod transcripts;
