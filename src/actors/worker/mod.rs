//! The worker's half: three threads, `wire`, `prompter` and `decoder`. No actix, no tokio.
//!
//! `wire` reads the link and ends the process at its EOF. `prompter` renders and encodes. `decoder`
//! loads the model and owns everything that computes.
