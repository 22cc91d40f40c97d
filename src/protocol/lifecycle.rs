//! The state of a connection between `initialize`, `shutdown` and `exit`, and why it closes.
//!
//! LSP's rules apply to a connection whose first request is `initialize`. Others need no handshake.

use super::{
    envelope::Params,
    error::{ErrorKind, ResponseError},
    parent,
    types::{InitializeParams, InitializeResult, parse_params},
};
use rustix::process::Pid;

/// Why a connection closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The input ended.
    ByPeer,
    /// The peer sent `exit`; LSP asks for `shutdown` before it.
    Exit {
        after_shutdown: bool,
    },
    /// The process named by `initialize` has exited.
    ParentExited,
    /// A frame was malformed, and the start of the next one can't be found.
    FramingLost,
    WriteFailed,
    /// The server stops.
    Stopped,
}

#[derive(Debug, Default)]
pub(super) struct Lifecycle {
    phase: Phase,
    lsp: bool,
    parent: Option<Pid>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    New,
    Open,
    ShutDown,
}

impl Lifecycle {
    pub(super) fn is_lsp(&self) -> bool {
        self.lsp
    }

    pub(super) fn is_shut_down(&self) -> bool {
        self.phase == Phase::ShutDown
    }

    /// The process whose exit closes the connection.
    pub(super) fn parent(&self) -> Option<Pid> {
        self.parent
    }

    /// Checks that a request is allowed in this state.
    ///
    /// # Errors
    ///
    /// `AfterShutdown` after `shutdown`, `InitializeNotFirst` for an `initialize` that is not the first request.
    pub(super) fn admit(&mut self, method: &str) -> Result<(), ResponseError> {
        match (&self.phase, method) {
            (Phase::ShutDown, _) => return Err(ResponseError::new(ErrorKind::AfterShutdown, "only exit may follow shutdown")),
            (Phase::Open, "initialize") => {
                return Err(ResponseError::new(ErrorKind::InitializeNotFirst, "initialize must be the first request of its connection"));
            }
            (Phase::New | Phase::Open, _) => {}
        }
        self.lsp |= method == "initialize";
        self.phase = Phase::Open;
        Ok(())
    }

    /// The result of `initialize`, as JSON.
    pub(super) fn initialize(&mut self, params: Params) -> Result<String, ResponseError> {
        let params = jsonrpsee_types::Params::new(params.as_ref().map(|params| params.get()));
        let process = parse_params::<InitializeParams>(&params)?.process_id.filter(|&id| id > 0).and_then(Pid::from_raw);
        // A process that is not visible here (another PID namespace) can't be watched.
        self.parent = process.filter(|&parent| parent::exists(parent));
        Ok(serde_json::to_string(&InitializeResult::new()).expect("strings only"))
    }

    pub(super) fn shut_down(&mut self) {
        self.phase = Phase::ShutDown;
    }
}
