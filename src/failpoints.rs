//! Failpoints: named points at which a test injects a failure, in a build with the feature `failpoints`.
//!
//! Such a build is for tests only and is never released; `--version` and `doctor` report it. In every other build the functions
//! here are empty and compile to nothing.
//!
//! `SOUFFLEUR_FAILPOINTS` names a folder. A file in it with the name of a point arms that point. The file's first word is the
//! action; `seed=7` after it limits the failure to the request with that seed. The failure happens once, because the file is
//! removed first; with `always`, the file stays.
//!
//! ```text
//! mkdir /tmp/failpoints && echo "abort seed=7" >/tmp/failpoints/stopper
//! SOUFFLEUR_FAILPOINTS=/tmp/failpoints souffleur stdio
//! ```

#[cfg(feature = "failpoints")]
mod inject;

#[cfg(not(feature = "failpoints"))]
pub(crate) use disabled::{at, check, write};
#[cfg(feature = "failpoints")]
pub(crate) use inject::{at, check, write};

/// The failure that is injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Panic,
    Abort,
    Exit,
    /// The thread blocks until its process is killed.
    Stall,
    Error,
    /// Half of a frame is written, then an error is returned.
    Short,
}

/// Where a point is, which decides what can be injected there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// In the front process, which must neither exit nor block.
    Front,
    /// Where the front writes a frame.
    FrontWrite,
    /// In a worker, outside of any panic boundary.
    Worker,
    /// In a worker, in code that cannot return an error.
    WorkerStep,
    /// Where a worker writes a frame.
    WorkerWrite,
    /// In a stage of one request, inside its panic boundary.
    Stage,
    /// In such a stage, in code that cannot return an error.
    StageStep,
}

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident $name:literal $site:ident)*) => {
        /// All failpoints.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Point {
            $($(#[$doc])* $point,)*
        }

        impl Point {
            pub const ALL: &[Self] = &[$(Self::$point,)*];

            /// The point's name and site.
            pub const fn spec(self) -> (&'static str, Site) {
                match self {
                    $(Self::$point => ($name, Site::$site),)*
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
    /// Once per weight that is packed.
    LoadPack "load.pack" Worker
    LoadEnd "load.end" WorkerStep

    Template "template" Stage
    Tokenizer "tokenizer" Stage
    /// Before each logits processor.
    Processor "processor" StageStep
    Sampler "sampler" StageStep
    /// The detokenizer with its stop sequences; `stopper` is the stage's name in the protocol.
    Stopper "stopper" Stage

    Admit "admit" WorkerStep
    /// KV cache memory of new tokens is allocated.
    Reserve "reserve" WorkerStep
    Prefill "prefill" WorkerStep
    Decode "decode" WorkerStep
    /// A finished sequence's cache goes to the prefix cache.
    Keep "keep" WorkerStep
}

impl Site {
    /// The actions that can be injected here.
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
mod disabled {
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
