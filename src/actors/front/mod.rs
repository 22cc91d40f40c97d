//! The front's half: admission, routing, supervision, transcripts. It never touches a model's files.

mod runtime;

pub use runtime::{Ending, News, Reader, Runtime};
