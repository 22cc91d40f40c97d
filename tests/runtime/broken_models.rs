//! Model folders with one defect each: the error names it, and a stream of another model continues.

use crate::{
    oversized_model::oversized_model,
    support::{MODEL, Output, TestRuntime, ban_eos, greedy, run_test, text},
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

/// The expected error.
enum Expected {
    /// The file and the field in it.
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

/// Sets a key of config.json; `null` removes it.
fn config(name: &'static str, key: &'static str, value: Value) -> Case {
    case(name, Expected::File("config.json", key.into()), move |folder| {
        let path = folder.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value.clone();
        fs::write(path, config.to_string()).unwrap();
    })
}

fn truncate(file: &'static str, keep: impl Fn(u64) -> u64) -> impl Fn(&Path) {
    move |folder| {
        let file = OpenOptions::new().write(true).open(folder.join(file)).unwrap();
        file.set_len(keep(file.metadata().unwrap().len())).unwrap();
    }
}

/// Rewrites the weights; `edit` returns the tensors that replace one.
fn rewrite(edit: impl Fn(&str, TensorView<'static>) -> Vec<(String, TensorView<'static>)>) -> impl Fn(&Path) {
    move |folder| {
        let bytes: &'static [u8] = fs::read(folder.join(WEIGHTS)).unwrap().leak();
        let tensors = SafeTensors::deserialize(bytes).unwrap();
        let edited: Vec<_> = tensors.iter().flat_map(|(name, view)| edit(name, view)).collect();
        safetensors::serialize_to_file(edited, None, &folder.join(WEIGHTS)).unwrap();
    }
}

/// The name of a norm weight in the middle of the model: a tensor of one dimension.
fn norm_name() -> String {
    let bytes = fs::read(Path::new(ASSETS).join(WEIGHTS)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut norms: Vec<_> = tensors.iter().filter(|(_, view)| view.shape().len() == 1).map(|(name, _)| name.to_owned()).collect();
    norms.sort();
    norms.swap_remove(norms.len() / 2)
}

fn cases() -> Vec<Case> {
    let norm = norm_name();
    let file = |file, field: &str| Expected::File(file, field.into());
    let reshaped = |name: String, dtype: Dtype, halves: bool| {
        rewrite(move |each, view| {
            let length = view.shape()[0] / if halves { 2 } else { 1 };
            let zeros: &'static [u8] = vec![0; length * 8].leak();
            let bits = if dtype == Dtype::F64 { 8 } else { 2 };
            let new = || TensorView::new(dtype, vec![length], &zeros[..length * bits]).unwrap();
            vec![(each.to_owned(), if each == name { new() } else { view })]
        })
    };
    let (left_out, doubled) = (norm.clone(), norm.clone());
    vec![
        case("half of the weights file", file(WEIGHTS, "header"), truncate(WEIGHTS, |length| length / 2)),
        case("weights file without its last byte", file(WEIGHTS, "header"), truncate(WEIGHTS, |length| length - 1)),
        case("truncated weights header", file(WEIGHTS, "header"), truncate(WEIGHTS, |_| 100)),
        case("empty weights file", file(WEIGHTS, "header"), truncate(WEIGHTS, |_| 0)),
        case("weights header of 2^64 bytes", file(WEIGHTS, "header"), |folder| fs::write(folder.join(WEIGHTS), [255; 64]).unwrap()),
        case("no weights file", file("*.safetensors", ""), |folder| fs::remove_file(folder.join(WEIGHTS)).unwrap()),
        case("weights larger than memory", Expected::Memory, oversized_model),
        case(
            "missing tensor",
            Expected::Missing(norm.clone()),
            rewrite(move |each, view| if each == left_out { vec![] } else { vec![(each.to_owned(), view)] }),
        ),
        case(
            "unexpected tensor",
            Expected::Unexpected("surplus".into()),
            rewrite(move |each, view| {
                let surplus = (each == doubled).then(|| ("surplus".to_owned(), view.clone()));
                surplus.into_iter().chain([(each.to_owned(), view)]).collect()
            }),
        ),
        case("tensor of half the length", file(WEIGHTS, &norm), reshaped(norm.clone(), Dtype::F16, true)),
        case("f64 tensor", file(WEIGHTS, &norm), reshaped(norm.clone(), Dtype::F64, false)),
        config("size that is a string", "hidden_size", json!("many")),
        config("huge size", "hidden_size", json!(u64::MAX)),
        config("head counts that do not divide", "num_key_value_heads", json!(3)),
        config("no layers", "num_hidden_layers", json!(null)),
        config("unknown model_type", "model_type", json!("mystery")),
        config("unknown activation", "hidden_act", json!("gelu")),
        config("negative rope_theta", "rope_theta", json!(-1)),
        config("unknown quantization", "quantization", json!({ "bits": 7, "group_size": 64 })),
        case("config that is not JSON", file("config.json", "json"), truncate("config.json", |length| length / 2)),
        case("no config", file("config.json", "config.json"), |folder| fs::remove_file(folder.join("config.json")).unwrap()),
        case("truncated tokenizer", file("tokenizer.json", "json"), truncate("tokenizer.json", |length| length / 2)),
        case("tokenizer that is an array", file("tokenizer.json", "json"), |folder| {
            fs::write(folder.join("tokenizer.json"), "[1]").unwrap()
        }),
        case("no tokenizer", file("tokenizer.json", "tokenizer.json"), |folder| fs::remove_file(folder.join("tokenizer.json")).unwrap()),
        case("truncated tokenizer_config", file("tokenizer_config.json", "json"), truncate("tokenizer_config.json", |length| length / 2)),
        case("truncated generation_config", file("generation_config.json", "json"), |folder| {
            fs::write(folder.join("generation_config.json"), "{").unwrap();
        }),
    ]
}

/// Copies the embedded model's folder.
pub(crate) fn copy(folder: &Path) {
    fs::create_dir(folder).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS] {
        fs::copy(Path::new(ASSETS).join(name), folder.join(name)).unwrap();
    }
}

#[test]
fn errors_name_the_defect_and_a_running_stream_continues() {
    let root = tempfile::tempdir().unwrap();
    let cases = cases();
    let folders: Vec<(String, PathBuf)> = cases.iter().map(|case| (case.name.to_owned(), root.path().join(case.name))).collect();
    for (case, (_, folder)) in cases.iter().zip(&folders) {
        copy(folder);
        (case.damage)(folder);
    }
    run_test(async {
        let runtime = TestRuntime::with_folders(Settings::default(), folders);
        let sampling = Sampling { temperature: 0.8, seed: 5, logit_bias: ban_eos(&runtime.model_info().await), ..Sampling::default() };
        let request = Request { sampling, ..greedy(text("# another stream\n"), 1500) };
        let (mut running, mut reader) = (Output::default(), runtime.complete(request.clone()).unwrap());
        assert!(running.read_tokens(&mut reader, 2).await);
        let pid = runtime.model().await.worker_pid;
        for case in &cases {
            let error = runtime.load(case.name, |_, _| {}).await.expect_err(case.name);
            check(case, &error);
            // A completion fails with the same error.
            let output = runtime.run(Request { model: case.name.into(), ..request.clone() }).await;
            check(case, output.error());
        }
        for model in runtime.models().await.iter().filter(|model| model.name != MODEL) {
            assert_eq!((model.state, model.worker_pid, model.restarts), (ModelState::Unloaded, None, 0), "{}", model.name);
        }
        let model = runtime.model().await;
        assert_eq!((model.worker_pid, model.restarts), (pid, 0));
        let received = running.tokens.len();
        running.read_tokens(&mut reader, received + 1).await;
        drop(reader);
        let expected = runtime.run(Request { tokens_max: running.tokens.len() as u32, ..request }).await;
        assert_eq!(running.ids(), expected.ids());
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
fn a_repaired_folder_loads() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("model");
    copy(&folder);
    fs::write(folder.join("config.json"), "{").unwrap();
    run_test(async {
        let runtime = TestRuntime::with_folders(Settings::default(), vec![("model".into(), folder.clone())]);
        assert!(runtime.load("model", |_, _| {}).await.is_err());
        fs::copy(Path::new(ASSETS).join("config.json"), folder.join("config.json")).unwrap();
        let embedded = runtime.run(greedy(text("import os\n"), 8)).await;
        let repaired = runtime.run(Request { model: "model".into(), ..greedy(text("import os\n"), 8) }).await;
        assert_eq!(repaired.tokens, embedded.tokens);
    });
}
