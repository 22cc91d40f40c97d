//! Model folders that are broken in one place each: the error names it, and a neighbour streams on.

use crate::{
    oversized_model::oversized_model,
    support::{House, MODEL, Told, ask, endless, text, within},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use souffleur::actors::{Error, ModelState, Request, Sampling, Settings};
use souffleur::models;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets");
const WEIGHTS: &str = "model.safetensors";
const TERABYTE: u64 = 1 << 40;

/// What a broken folder must be answered with.
enum Expected {
    /// File and field.
    File(&'static str, String),
    Missing(String),
    Unexpected(String),
    Memory,
}

struct Case {
    name: &'static str,
    damage: Box<dyn Fn(&Path)>,
    expected: Expected,
}

fn case(name: &'static str, expected: Expected, damage: impl Fn(&Path) + 'static) -> Case {
    Case { name, damage: Box::new(damage), expected }
}

/// A key of config.json set to something; `null` takes it away.
fn config(name: &'static str, key: &'static str, value: Value) -> Case {
    case(name, Expected::File("config.json", key.into()), move |folder| {
        let path = folder.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value.clone();
        fs::write(path, config.to_string()).unwrap();
    })
}

fn cut(file: &'static str, keep: impl Fn(u64) -> u64) -> impl Fn(&Path) {
    move |folder| {
        let file = OpenOptions::new().write(true).open(folder.join(file)).unwrap();
        file.set_len(keep(file.metadata().unwrap().len())).unwrap();
    }
}

/// Writes the weights anew; a tensor's entry may be changed, left out or doubled.
fn rewrite(edit: impl Fn(&str, TensorView<'static>) -> Vec<(String, TensorView<'static>)>) -> impl Fn(&Path) {
    move |folder| {
        let bytes: &'static [u8] = fs::read(folder.join(WEIGHTS)).unwrap().leak();
        let tensors = SafeTensors::deserialize(bytes).unwrap();
        let edited: Vec<_> = tensors.iter().flat_map(|(name, view)| edit(name, view)).collect();
        safetensors::serialize_to_file(edited, None, &folder.join(WEIGHTS)).unwrap();
    }
}

/// The name of a norm in the middle of the model: whatever has one dimension.
fn a_norm() -> String {
    let bytes = fs::read(Path::new(ASSETS).join(WEIGHTS)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut norms: Vec<_> = tensors.iter().filter(|(_, view)| view.shape().len() == 1).map(|(name, _)| name.to_owned()).collect();
    norms.sort();
    norms.swap_remove(norms.len() / 2)
}

fn cases() -> Vec<Case> {
    let norm = a_norm();
    let file = |file, field: &str| Expected::File(file, field.into());
    let reshaped = |name: String, dtype: Dtype, halves: bool| {
        rewrite(move |each, view| {
            let length = view.shape()[0] / if halves { 2 } else { 1 };
            // Zeros are as good as anything in what must not be read.
            let zeros: &'static [u8] = vec![0; length * 8].leak();
            let bits = if dtype == Dtype::F64 { 8 } else { 2 };
            let new = || TensorView::new(dtype, vec![length], &zeros[..length * bits]).unwrap();
            vec![(each.to_owned(), if each == name { new() } else { view })]
        })
    };
    let (left_out, doubled) = (norm.clone(), norm.clone());
    vec![
        case("half the weights", file(WEIGHTS, "header"), cut(WEIGHTS, |length| length / 2)),
        case("one byte less of weights", file(WEIGHTS, "header"), cut(WEIGHTS, |length| length - 1)),
        case("half a header of weights", file(WEIGHTS, "header"), cut(WEIGHTS, |_| 100)),
        case("no byte of weights", file(WEIGHTS, "header"), cut(WEIGHTS, |_| 0)),
        case("a header of 2^64 bytes", file(WEIGHTS, "header"), |folder| fs::write(folder.join(WEIGHTS), [255; 64]).unwrap()),
        case("no weights", file("*.safetensors", ""), |folder| fs::remove_file(folder.join(WEIGHTS)).unwrap()),
        case("a terabyte of weights", Expected::Memory, oversized_model),
        case(
            "a tensor left out",
            Expected::Missing(norm.clone()),
            rewrite(move |each, view| if each == left_out { vec![] } else { vec![(each.to_owned(), view)] }),
        ),
        case(
            "a tensor too many",
            Expected::Unexpected("surplus".into()),
            rewrite(move |each, view| {
                let surplus = (each == doubled).then(|| ("surplus".to_owned(), view.clone()));
                surplus.into_iter().chain([(each.to_owned(), view)]).collect()
            }),
        ),
        case("a tensor of half the length", file(WEIGHTS, &norm), reshaped(norm.clone(), Dtype::F16, true)),
        case("a tensor of doubles", file(WEIGHTS, &norm), reshaped(norm.clone(), Dtype::F64, false)),
        config("a size that is a word", "hidden_size", json!("many")),
        config("a size that is huge", "hidden_size", json!(u64::MAX)),
        config("heads that can't share", "num_key_value_heads", json!(3)),
        config("no layers", "num_hidden_layers", json!(null)),
        config("an unknown model_type", "model_type", json!("mystery")),
        config("an unknown activation", "hidden_act", json!("gelu")),
        config("a negative base", "rope_theta", json!(-1)),
        config("unknown quantization", "quantization", json!({ "bits": 7, "group_size": 64 })),
        case("a config that is no JSON", file("config.json", "json"), cut("config.json", |length| length / 2)),
        case("no config", file("config.json", "config.json"), |folder| fs::remove_file(folder.join("config.json")).unwrap()),
        case("half a tokenizer", file("tokenizer.json", "json"), cut("tokenizer.json", |length| length / 2)),
        case("a tokenizer of another kind", file("tokenizer.json", "json"), |folder| {
            fs::write(folder.join("tokenizer.json"), "[1]").unwrap()
        }),
        case("no tokenizer", file("tokenizer.json", "tokenizer.json"), |folder| fs::remove_file(folder.join("tokenizer.json")).unwrap()),
        case("half a tokenizer_config", file("tokenizer_config.json", "json"), cut("tokenizer_config.json", |length| length / 2)),
        case("a broken generation_config", file("generation_config.json", "json"), |folder| {
            fs::write(folder.join("generation_config.json"), "{").unwrap();
        }),
    ]
}

/// A copy of the embedded model's folder; the weights are copied only where nothing else would do.
pub(crate) fn copy(folder: &Path) {
    fs::create_dir(folder).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS] {
        fs::copy(Path::new(ASSETS).join(name), folder.join(name)).unwrap();
    }
}

#[test]
fn broken_folders_are_named_and_disturb_nobody() {
    let root = tempfile::tempdir().unwrap();
    let cases = cases();
    let folders: Vec<(String, PathBuf)> = cases.iter().map(|case| (case.name.to_owned(), root.path().join(case.name))).collect();
    for (case, (_, folder)) in cases.iter().zip(&folders) {
        copy(folder);
        (case.damage)(folder);
    }
    within(async {
        let house = House::start(Settings::default(), folders);
        let sampling = Sampling { temperature: 0.8, seed: 5, logit_bias: endless(&house.model_info().await), ..Sampling::default() };
        let request = Request { sampling, ..ask(text("# a neighbour\n"), 1500) };
        let (mut neighbour, mut reader) = (Told::default(), house.runtime.complete(request.clone()).unwrap());
        assert!(neighbour.reach(&mut reader, 2).await);
        let pid = house.model().await.worker_pid;
        for case in &cases {
            let error = house.runtime.load(case.name, |_, _| {}).await.expect_err(case.name);
            check(case, &error);
            // A request is answered with the same, and the model is not loaded but may be tried again.
            let told = house.run(Request { model: case.name.into(), ..request.clone() }).await;
            check(case, told.error());
        }
        for model in house.runtime.models().await.iter().filter(|model| model.name != MODEL) {
            assert_eq!((model.state, model.worker_pid, model.restarts), (ModelState::Unloaded, None, 0), "{}", model.name);
        }
        let model = house.model().await;
        assert_eq!((model.worker_pid, model.restarts), (pid, 0));
        let so_far = neighbour.tokens.len();
        neighbour.reach(&mut reader, so_far + 1).await;
        drop(reader);
        let alone = house.run(Request { tokens_max: neighbour.tokens.len() as u32, ..request }).await;
        assert_eq!(neighbour.ids(), alone.ids());
    });
}

fn check(case: &Case, error: &Error) {
    let Error::Model(model) = error else { panic!("{}: {error}", case.name) };
    match (&case.expected, model) {
        (Expected::File(file, field), models::Error::ModelFile { file: named, field: where_, reason }) => {
            assert!(named == file && where_.contains(field.as_str()) && !reason.is_empty(), "{}: {error}", case.name);
        }
        (Expected::Missing(name), models::Error::Weights { missing, unexpected }) => {
            assert!(missing[..] == [name.as_str()] && unexpected.is_empty(), "{}: {error}", case.name);
        }
        (Expected::Unexpected(name), models::Error::Weights { missing, unexpected }) => {
            assert!(missing.is_empty() && unexpected[..] == [name.as_str()], "{}: {error}", case.name);
        }
        (Expected::Memory, models::Error::Memory { needed, free }) => {
            assert!(*needed >= TERABYTE && *free < TERABYTE && *free > 0, "{}: {error}", case.name);
        }
        _ => panic!("{}: {error}", case.name),
    }
}

#[test]
fn a_folder_that_was_repaired_loads() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("model");
    copy(&folder);
    fs::write(folder.join("config.json"), "{").unwrap();
    within(async {
        let house = House::start(Settings::default(), vec![("model".into(), folder.clone())]);
        assert!(house.runtime.load("model", |_, _| {}).await.is_err());
        fs::copy(Path::new(ASSETS).join("config.json"), folder.join("config.json")).unwrap();
        let embedded = house.run(ask(text("import os\n"), 8)).await;
        let repaired = house.run(Request { model: "model".into(), ..ask(text("import os\n"), 8) }).await;
        assert_eq!(repaired.tokens, embedded.tokens);
    });
}
