//! Compares the decoder with a reference implementation on the same weights: prompts, tokens and logits. `make.py` generated
//! the reference.

use serde::Deserialize;
use souffleur::models::backend::cpu::Cpu;
use souffleur::models::backend::{Backend, Span};
use souffleur::models::network::{Decoder, DecoderSpec};
use souffleur::models::tokenizer::Tokenizer;
use souffleur::models::weights::{Files, Tensors};
use souffleur::models::{Activations, CpuSettings, File, FimOrder, ModelSource, Prompt, family, prompt};

#[derive(Deserialize)]
struct Reference {
    probes: Vec<usize>,
    prompts: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    infill: Option<Infill>,
    complete: Option<Complete>,
    ids: Vec<u32>,
    tokens: Vec<u32>,
    /// Best id, its logit, second id, its logit.
    top2: Vec<(usize, f32, usize, f32)>,
    largest: Vec<f32>,
    checkpoints: Vec<Checkpoint>,
}

#[derive(Deserialize)]
struct Infill {
    prefix: String,
    suffix: String,
    path: Option<String>,
    repository: Option<String>,
    #[serde(default)]
    files: Vec<Context>,
    order: String,
}

#[derive(Deserialize)]
struct Context {
    path: String,
    text: String,
}

#[derive(Deserialize)]
struct Complete {
    prompt: String,
}

#[derive(Deserialize)]
struct Checkpoint {
    position: usize,
    logits: Vec<f32>,
}

fn reference() -> Reference {
    serde_json::from_str(include_str!("embedded.json")).expect("make.py writes this shape")
}

fn files() -> Files {
    let assets = concat!(env!("CARGO_MANIFEST_DIR"), "/assets");
    Files::open(&ModelSource::Folder(assets.into()), None).expect("the embedded model's files")
}

fn decoder(activations: Activations, threads: u32) -> Decoder<Cpu> {
    let files = files();
    let spec = DecoderSpec::parse(&files).expect("config.json");
    let backend = Cpu::open(&spec, &CpuSettings { threads, activations }).expect("a backend for it");
    Decoder::load(spec, &Tensors::open(&files).expect("weights"), backend, &mut |_, _| {}).expect("the whole network")
}

/// The logits after each of the last `wanted` tokens, with the prompt computed in chunks of `chunk` tokens.
fn logits(decoder: &mut Decoder<Cpu>, tokens: &[u32], wanted: usize, chunk: usize) -> Vec<Vec<f32>> {
    let mut cache = decoder.backend.cache();
    let mut all = Vec::new();
    let mut position = 0;
    for part in tokens.chunks(chunk) {
        let first = tokens.len() - wanted;
        let rows: Vec<usize> = (0..part.len()).filter(|row| position + row >= first).collect();
        let mut spans = [Span::ids(part, position, &mut cache)];
        let tensor = decoder.step(&mut spans, &rows);
        all.extend(decoder.backend.to_host(&tensor).expect("this backend does not fail"));
        position += part.len();
    }
    all
}

/// The logits for each of the reference's generated tokens, with teacher forcing.
fn teacher_forced(decoder: &mut Decoder<Cpu>, case: &Case) -> Vec<Vec<f32>> {
    let tokens: Vec<u32> = case.ids.iter().chain(&case.tokens[..case.tokens.len() - 1]).copied().collect();
    logits(decoder, &tokens, case.tokens.len(), 96)
}

fn argmax(logits: &[f32]) -> usize {
    (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("a vocabulary")
}

/// The largest difference to the reference over all logits that it contains.
fn error(reference: &Reference, case: &Case, logits: &[Vec<f32>]) -> f32 {
    let best = case.top2.iter().zip(logits).flat_map(|(top, logits)| [(logits[top.0] - top.1).abs(), (logits[top.2] - top.3).abs()]);
    let probes = case.checkpoints.iter().flat_map(|check| {
        let logits = &logits[check.position];
        reference.probes.iter().zip(&check.logits).map(|(&id, x)| (logits[id] - x).abs())
    });
    best.chain(probes).fold(0.0, f32::max)
}

#[test]
fn prompts_encode_to_the_reference_tokens() {
    let files = files();
    let tokenizer = Tokenizer::open(&files).expect("tokenizer.json");
    let family = family::detect("souffleur-46m", "llama", &tokenizer);
    for case in reference().prompts {
        let prompt = match (case.infill, case.complete) {
            (Some(fim), _) => Prompt::Infill {
                prefix: fim.prefix,
                suffix: fim.suffix,
                path: fim.path,
                repository: fim.repository,
                files: fim.files.into_iter().map(|file| File { path: file.path, text: file.text }).collect(),
                order: Some(match fim.order.as_str() {
                    "prefixSuffixMiddle" => FimOrder::PrefixSuffixMiddle,
                    "suffixPrefixMiddle" => FimOrder::SuffixPrefixMiddle,
                    other => panic!("unknown order {other}"),
                }),
            },
            (None, Some(complete)) => Prompt::Text(complete.prompt),
            (None, None) => panic!("{} has no prompt", case.name),
        };
        let parts = prompt::render(&prompt, family).expect("a prompt");
        assert_eq!(prompt::encode(&parts, &tokenizer).expect("tokens"), case.ids, "{}", case.name);
    }
}

#[test]
fn f32_activations_match_the_reference_tokens_and_logits() {
    let reference = reference();
    let mut decoder = decoder(Activations::F32, 0);
    let mut worst = 0f32;
    for case in &reference.prompts {
        let logits = teacher_forced(&mut decoder, case);
        let error = error(&reference, case, &logits);
        let largest = case.largest.iter().copied().fold(f32::INFINITY, f32::min);
        worst = worst.max(error / largest);
        assert!(error <= 1e-3 * largest, "{}: logits differ by {error} of {largest}", case.name);
        let tokens: Vec<u32> = logits.iter().map(|logits| argmax(logits) as u32).collect();
        assert_eq!(tokens, case.tokens, "{}", case.name);
    }
    eprintln!("largest deviation of a logit: {worst:.2e} of the largest logit");
}

#[test]
fn int8_activations_differ_only_at_near_ties() {
    let reference = reference();
    let mut decoder = decoder(Activations::Int8, 0);
    let (mut flips, mut worst) = (0, 0f32);
    for case in &reference.prompts {
        let logits = teacher_forced(&mut decoder, case);
        let error = error(&reference, case, &logits);
        worst = worst.max(error / case.largest[0]);
        // Up to the first difference, free-running generation sees exactly these tokens.
        if let Some(position) = (0..case.tokens.len()).find(|&i| argmax(&logits[i]) as u32 != case.tokens[i]) {
            let (_, best, _, second) = case.top2[position];
            assert!(
                best - second <= 2.0 * error,
                "{}: token {position} differs where the best two are {} apart and the error is {error}",
                case.name,
                best - second
            );
            eprintln!("{}: first differs at token {position}, best two {:.3} apart, error {error:.3}", case.name, best - second);
            flips += 1;
        }
    }
    eprintln!("{flips} of {} texts differ somewhere; largest deviation {worst:.2e} of the largest logit", reference.prompts.len());
}

#[test]
fn logits_do_not_depend_on_chunks_threads_or_batching() {
    let reference = reference();
    let case = reference.prompts.iter().find(|case| (300..900).contains(&case.ids.len())).expect("a prompt of medium length");
    let tokens = &case.ids;
    for activations in [Activations::Int8, Activations::F32] {
        let mut two = decoder(activations, 2);
        let alone = logits(&mut two, tokens, 8, 64);
        for chunk in [1, 7, 150, tokens.len()] {
            assert_eq!(logits(&mut two, tokens, 8, chunk), alone, "{activations:?} in chunks of {chunk}");
        }
        assert_eq!(logits(&mut decoder(activations, 1), tokens, 8, 64), alone, "{activations:?} on one thread");
        assert_eq!(logits(&mut decoder(activations, 3), tokens, 8, 64), alone, "{activations:?} on three threads");
        // In a batch with twelve sequences of other lengths, one token at a time.
        let mut caches: Vec<_> = (0..13).map(|_| two.backend.cache()).collect();
        let mut last = Vec::new();
        for position in 0..tokens.len() {
            let mut spans: Vec<_> = caches
                .iter_mut()
                .enumerate()
                .filter(|(i, _)| position % (i + 1) == 0)
                .map(|(i, cache)| {
                    let at = position / (i + 1);
                    Span::ids(&tokens[at..=at], at, cache)
                })
                .collect();
            let tensor = two.step(&mut spans, &[0]);
            last = two.backend.to_host(&tensor).expect("this backend does not fail");
        }
        assert_eq!(last[0], alone[7], "{activations:?} in a batch");
    }
}

#[test]
fn a_forked_or_truncated_cache_gives_the_same_logits_as_a_new_one() {
    let reference = reference();
    let case = reference.prompts.iter().find(|case| (300..900).contains(&case.ids.len())).expect("a prompt of medium length");
    let tokens = &case.ids;
    let mut decoder = decoder(Activations::Int8, 0);
    let cold = logits(&mut decoder, tokens, 1, 64).remove(0);
    let mut origin = decoder.backend.cache();
    let (keep, other) = (270, vec![42u32; 40]);
    let start: Vec<u32> = tokens[..keep].iter().chain(&other).copied().collect();
    decoder.step(&mut [Span::ids(&start, 0, &mut origin)], &[]);
    let mut fork = decoder.backend.fork(&origin, keep);
    decoder.backend.truncate(&mut origin, keep);
    for cache in [&mut origin, &mut fork] {
        let tensor = decoder.step(&mut [Span::ids(&tokens[keep..], keep, cache)], &[tokens.len() - keep - 1]);
        assert_eq!(decoder.backend.to_host(&tensor).expect("this backend does not fail")[0], cold);
    }
}
