//! Who runs when memory is short.

use super::batch::Batch;
use super::{ActivityProbe, Job, Outbox, Prepared, ToDecoder};
use crate::actors::{FromWorker, ModelSource, Prompt, Replay, Request, Sampling};
use crate::models::Activations;
use crate::models::backend::cpu::Cpu;
use crate::models::codec::TextCodec;
use crate::models::network::{Decoder, DecoderSpec};
use crate::models::weights::{Files, Tensors};
use std::sync::{Arc, Mutex, atomic::AtomicBool};
use std::time::Instant;

fn prepared(id: u64, tokens_max: u32) -> ToDecoder {
    let request = Request {
        model: "embedded".into(),
        prompt: Prompt::Text(String::new()),
        sampling: Sampling { logit_bias: vec![(0, -1000.0)], ..Sampling::default() },
        stop: Vec::new(),
        tokens_max,
        logprobs: None,
    };
    let cancelled = Arc::new(AtomicBool::new(false));
    let job = Job { id, request, replay: Replay::default(), cancelled, arrived: Instant::now() };
    ToDecoder::Generate(Box::new(Prepared { job, prompt: vec![40 + id as u32; 10] }))
}

#[test]
fn what_may_not_fit_beside_those_that_run_waits_for_them() {
    let assets = ModelSource::Folder(concat!(env!("CARGO_MANIFEST_DIR"), "/assets").into());
    let files = Files::open(&assets, None).unwrap();
    let spec = DecoderSpec::parse(&files).unwrap();
    let codec = Arc::new(TextCodec::open(&files, &spec).unwrap());
    let backend = Cpu::new(&spec, 1, Activations::Int8).unwrap();
    let decoder = Decoder::load(spec, &Tensors::open(&files).unwrap(), backend, &mut |_, _| {}).unwrap();
    let ended = Arc::new(Mutex::new(Vec::new()));
    let heard = ended.clone();
    let outbox = Outbox::new(move |message| {
        if let FromWorker::End { id, .. } = message {
            heard.lock().unwrap().push(id);
        }
        Ok(())
    });
    let mut batch = Batch::new(decoder, codec, 0, 40, outbox, ActivityProbe::default());
    // 15 positions each but the third, which is longer than all there is and has its turn alone.
    for (id, tokens_max) in [(1, 5), (2, 5), (3, 90), (4, 5)] {
        batch.take(prepared(id, tokens_max)).unwrap();
    }
    let mut together = Vec::new();
    while !batch.is_idle() {
        batch.step().unwrap();
        together.push(batch.status().running);
    }
    assert_eq!(*ended.lock().unwrap(), [1, 2, 3, 4]);
    assert_eq!(together.iter().max(), Some(&2));
    assert!(together.iter().filter(|&&running| running == 1).count() >= 90, "{together:?}");
}
