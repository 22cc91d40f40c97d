//! The front's half: admission, routing, supervision, transcripts. It never touches a model's files.

mod errand;
mod hand;
mod house;
mod inspect;
mod life;
mod link;
mod model;
mod restarts;
mod runtime;
#[cfg(test)]
pub(super) mod script;
#[cfg(test)]
mod storm;
mod supervisor;
#[cfg(test)]
mod tests;
mod transcript;

pub use runtime::Runtime;
pub use transcript::{Ending, News, Reader};
