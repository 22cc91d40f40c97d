//! Where a connection stands between `initialize`, `shutdown` and `exit`.
//!
//! LSP's rules hold on a connection whose first request is `initialize`. Elsewhere no handshake is needed.

use super::{
    envelope::Params,
    error::{Fault, Kind},
    parent,
    types::{InitializeParams, InitializeResult, read},
};
use rustix::process::Pid;

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

    /// The process that the peer asked us to watch.
    pub(super) fn parent(&self) -> Option<Pid> {
        self.parent
    }

    /// May this request run now?
    pub(super) fn admit(&mut self, method: &str) -> Result<(), Fault> {
        match (&self.phase, method) {
            (Phase::ShutDown, _) => return Err(Fault::new(Kind::AfterShutdown, "only exit may follow shutdown")),
            (Phase::Open, "initialize") => {
                return Err(Fault::new(Kind::InitializeNotFirst, "initialize must be the first request of its connection"));
            }
            (Phase::New | Phase::Open, _) => {}
        }
        self.lsp |= method == "initialize";
        self.phase = Phase::Open;
        Ok(())
    }

    /// The result of `initialize`, as JSON.
    pub(super) fn initialize(&mut self, params: Params) -> Result<String, Fault> {
        let params = jsonrpsee_types::Params::new(params.as_ref().map(|params| params.get()));
        let process = read::<InitializeParams>(&params)?.process_id.filter(|&id| id > 0).and_then(Pid::from_raw);
        // Out of our sight from the start, as across process namespaces, it can't be seen to end.
        self.parent = process.filter(|&parent| parent::exists(parent));
        Ok(serde_json::to_string(&InitializeResult::new()).expect("strings only"))
    }

    pub(super) fn shut_down(&mut self) {
        self.phase = Phase::ShutDown;
    }
}
