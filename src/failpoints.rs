//! Faults on purpose: named points at which a test makes this program fail, in a build with the feature `failpoints`.
//!
//! Such a build is for tests and is never released: `--version` and `doctor` say what it is. In every other build the
//! functions here are empty, and nothing is left of the points.
//!
//! `SOUFFLEUR_FAILPOINTS` names a folder. A file in it that is called like a point is a fault that waits there. Its first word
//! is the action; `seed=7` behind it binds it to the request with that seed. It happens once, because the file is removed
//! before; with `always` it stays.
//!
//! ```text
//! mkdir /tmp/failpoints && echo "abort seed=7" >/tmp/failpoints/stopper
//! SOUFFLEUR_FAILPOINTS=/tmp/failpoints souffleur stdio
//! ```

#[cfg(feature = "failpoints")]
mod inject;

#[cfg(feature = "failpoints")]
pub(crate) use inject::{at, check, write};
#[cfg(not(feature = "failpoints"))]
pub(crate) use nothing::{at, check, write};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Panic,
    Abort,
    Exit,
    /// The thread stands still until its process is killed.
    Stall,
    Error,
    /// Half of a frame is written, and then it is an error.
    Short,
}

/// Where a point is, which says what can happen there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// In the front, which itself must neither end nor stand still.
    Front,
    /// Where the front writes a frame.
    FrontWrite,
    /// In a worker, outside of every wall.
    Worker,
    /// The same, where nothing can return an error.
    WorkerStep,
    /// Where a worker writes a frame.
    WorkerWrite,
    /// Behind the wall around one request.
    Stage,
    /// The same, where nothing can return an error.
    StageStep,
}

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident $name:literal $place:ident)*) => {
        /// Every point; one line each, and one line where it is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Point {
            $($(#[$doc])* $point,)*
        }

        impl Point {
            pub const ALL: &[Self] = &[$(Self::$point,)*];

            pub const fn spec(self) -> (&'static str, Site) {
                match self {
                    $(Self::$point => ($name, Site::$place),)*
                }
            }
        }
    };
}

points! {
    FrontSpawn "front.spawn" Front
    FrontSpawned "front.spawned" Front
    FrontReadBefore "front.read.before" Front
    FrontReadAfter "front.read.after" Front
    FrontWriteBefore "front.write.before" FrontWrite
    FrontWriteAfter "front.write.after" Front

    WorkerStart "worker.start" WorkerStep
    WorkerHello "worker.hello" WorkerStep
    WorkerReadBefore "worker.read.before" Worker
    WorkerReadAfter "worker.read.after" Worker
    WorkerWriteBefore "worker.write.before" WorkerWrite
    WorkerWriteAfter "worker.write.after" Worker

    Inspect "inspect" Worker
    LoadFiles "load.files" Worker
    LoadTokenizer "load.tokenizer" Worker
    /// Each weight, into memory of its own.
    LoadPack "load.pack" Worker
    LoadEnd "load.end" WorkerStep

    Template "template" Stage
    Tokenizer "tokenizer" Stage
    /// Of logits.
    Processor "processor" StageStep
    Sampler "sampler" StageStep
    /// And detokenizer.
    Stopper "stopper" Stage

    Admit "admit" WorkerStep
    /// Keys and values of new tokens get their memory.
    Reserve "reserve" WorkerStep
    Prefill "prefill" WorkerStep
    Decode "decode" WorkerStep
    /// An ended sequence's cache is kept.
    Keep "keep" WorkerStep
}

impl Site {
    /// What can happen here.
    pub const fn actions(self) -> &'static [Action] {
        use Action::*;
        match self {
            Self::Front => &[Panic, Error],
            Self::FrontWrite => &[Panic, Error, Short],
            Self::Worker | Self::Stage => &[Panic, Abort, Exit, Stall, Error],
            Self::WorkerStep | Self::StageStep => &[Panic, Abort, Exit, Stall],
            Self::WorkerWrite => &[Panic, Abort, Exit, Stall, Error, Short],
        }
    }
}

impl Action {
    pub const ALL: [Self; 6] = [Self::Panic, Self::Abort, Self::Exit, Self::Stall, Self::Error, Self::Short];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Abort => "abort",
            Self::Exit => "exit",
            Self::Stall => "stall",
            Self::Error => "error",
            Self::Short => "short",
        }
    }
}

#[cfg(not(feature = "failpoints"))]
mod nothing {
    use super::Point;
    use std::io::{self, Write};

    #[inline(always)]
    pub(crate) fn at(_: Point, _: Option<u64>) {}

    #[inline(always)]
    pub(crate) fn check(_: Point, _: Option<u64>) -> io::Result<()> {
        Ok(())
    }

    #[inline(always)]
    pub(crate) fn write(_: Point, _: &mut impl Write, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}
