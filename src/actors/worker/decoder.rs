//! Loads the model, then owns everything that computes.

use super::batch::Batch;
use super::messages::{Disconnected, Outbox, ToDecoder};
use super::probe::ActivityProbe;
use crate::actors::{Error, FromWorker, ModelInfo, ModelSource, Result, Settings};
use crate::failpoints::{self, Point};
use crate::models::backend::{Backend, Native};
use crate::models::codec::TextCodec;
use crate::models::network::{Decoder, DecoderSpec};
use crate::models::weights::{Files, Tensors, check_memory};
use crate::models::{Embedded, model_info};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

/// How often a load reports its progress.
const PROGRESS_PERIOD: Duration = Duration::from_millis(100);
/// Tokens of keys and values that must fit beside the weights before a load begins: one long prompt.
const CACHE_TOKENS: usize = 4096;
/// Memory for activations, RoPE tables and the process itself.
const WORKING_BYTES: u64 = 48 << 20;

/// Returns when the inbox ends or the front is gone.
pub(super) fn run(inbox: Receiver<ToDecoder>, outbox: Outbox, probe: ActivityProbe, embedded: Option<Embedded>) {
    let loaded = match inbox.recv() {
        Ok(ToDecoder::Load { source, settings }) => load(&inbox, &outbox, &source, &settings, probe, embedded),
        Ok(ToDecoder::Inspect { source, settings }) => {
            let _ = outbox.send(FromWorker::Loaded(inspect(&source, &settings, embedded)));
            return;
        }
        Ok(ToDecoder::Generate(_) | ToDecoder::Codec(_) | ToDecoder::Ping { .. }) => Err(Error::Internal("a decoder loads first".into())),
        Err(_) => return,
    };
    let (model_info, mut batch) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            let _ = outbox.send(FromWorker::Loaded(Err(error)));
            return;
        }
    };
    failpoints::at(Point::LoadEnd, None);
    if outbox.send(FromWorker::Loaded(Ok(model_info))).is_ok() {
        // An error means that the front is gone, or that the backend failed, which was reported.
        let _ = serve(&inbox, &mut batch);
    }
}

/// Waits for messages while the batch is idle. Otherwise receives those that have arrived between two steps.
fn serve(inbox: &Receiver<ToDecoder>, batch: &mut Batch<Native>) -> std::result::Result<(), Disconnected> {
    loop {
        if batch.is_idle() {
            let Ok(message) = inbox.recv() else { return Ok(()) };
            batch.receive(message)?;
        }
        loop {
            match inbox.try_recv() {
                Ok(message) => batch.receive(message)?,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
        batch.step()?;
    }
}

fn inspect(source: &ModelSource, settings: &Settings, embedded: Option<Embedded>) -> Result<ModelInfo> {
    failpoints::check(Point::Inspect, None).map_err(|fault| Error::Internal(fault.to_string()))?;
    let files = Files::open(source, embedded)?;
    let spec = DecoderSpec::parse(&files)?;
    let tensors = Tensors::open(&files)?;
    tensors.expect(&spec.parameters())?;
    Ok(model_info(&files, &tensors, &spec, &TextCodec::open(&files, &spec)?, settings)?)
}

fn load(
    inbox: &Receiver<ToDecoder>,
    outbox: &Outbox,
    source: &ModelSource,
    settings: &Settings,
    probe: ActivityProbe,
    embedded: Option<Embedded>,
) -> Result<(ModelInfo, Batch<Native>)> {
    failpoints::check(Point::LoadFiles, None).map_err(|fault| Error::Internal(fault.to_string()))?;
    let files = Files::open(source, embedded)?;
    let spec = DecoderSpec::parse(&files)?;
    let bytes = files.weight_bytes();
    let kv_bytes_per_token = Native::kv_bytes_per_token(&spec, &settings.cpu);
    let beside = CACHE_TOKENS.min(spec.context_length) as u64 * kv_bytes_per_token + WORKING_BYTES;
    // The size of the files is nearly the size of the weights, and is known before their headers are parsed.
    check_memory(bytes + beside, Native::free_memory())?;
    let tensors = Tensors::open(&files)?;
    check_memory(Decoder::<Native>::weight_bytes(&spec, &tensors)? + beside, Native::free_memory())?;
    let backend = Native::open(&spec, &settings.cpu)?;
    let mut reported = Instant::now();
    let mut progress = |done: u64, total: u64| {
        if reported.elapsed() >= PROGRESS_PERIOD {
            reported = Instant::now();
            // Converted to bytes of the files. An error is ignored: this process ends when the front is gone.
            let done = (u128::from(bytes) * u128::from(done) / u128::from(total.max(1))) as u64;
            let _ = outbox.send(FromWorker::Loading { done, total: bytes });
        }
    };
    let decoder = Decoder::load(spec, &tensors, backend, &mut progress)?;
    // The prompter loads the tokenizer at the same time. The front sends requests only after `Loaded`.
    let codec = loop {
        match inbox.recv() {
            Ok(ToDecoder::Codec(codec)) => break codec?,
            Ok(ToDecoder::Ping { id }) => drop(outbox.send(FromWorker::Pong { id, status: Default::default() })),
            Ok(ToDecoder::Load { .. } | ToDecoder::Inspect { .. } | ToDecoder::Generate(_)) | Err(_) => {
                return Err(Error::Internal("a decoder waits for its tokenizer".into()));
            }
        }
    };
    let model_info = model_info(&files, &tensors, &decoder.spec, &codec, settings)?;
    // The prefix cache has its budget; the running sequences have the rest.
    let free = Native::free_memory().map_or(u64::MAX, |free| free.saturating_sub(settings.cache_bytes + WORKING_BYTES));
    let kv_tokens_max = free / kv_bytes_per_token;
    Ok((model_info, Batch::new(decoder, Arc::clone(&codec), settings.cache_bytes as usize, kv_tokens_max, outbox.clone(), probe)))
}
