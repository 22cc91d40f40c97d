//! The embedded model dequantized to f32, f16 and bf16 generates what the quantized weights generate.

use crate::broken_models::copy;
use crate::support::{Output, TestRuntime, greedy, infill, run_test, text};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use souffleur::actors::{Activations, CpuSettings, Prompt, Request, Settings};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const TOKENS: u32 = 32;

/// A dequantized copy of the weights, and the allowed difference in log-probabilities to the quantized weights.
struct Variant {
    name: &'static str,
    dtype: Dtype,
    tied: bool,
    tolerance: f32,
}

const VARIANTS: [Variant; 4] = [
    // The same values, summed in another order.
    Variant { name: "f32", dtype: Dtype::F32, tied: true, tolerance: 1e-3 },
    Variant { name: "f32 untied", dtype: Dtype::F32, tied: false, tolerance: 1e-3 },
    // Rounded to significands of 11 and 8 bits.
    Variant { name: "f16", dtype: Dtype::F16, tied: true, tolerance: 0.05 },
    Variant { name: "bf16", dtype: Dtype::BF16, tied: true, tolerance: 0.4 },
];

struct Dense {
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// MLX affine dequantization: `bits`-wide integers in 32-bit words, lowest bits first, times a scale plus a bias per group.
fn dequantized(folder: &Path) -> BTreeMap<String, Dense> {
    let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    let bits = config["quantization"]["bits"].as_u64().unwrap() as usize;
    let group = config["quantization"]["group_size"].as_u64().unwrap() as usize;
    assert_eq!(32 % bits, 0, "only bit widths that divide 32 are handled here");
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut plain = BTreeMap::new();
    for (name, view) in tensors.iter().filter(|(name, _)| !name.ends_with(".scales") && !name.ends_with(".biases")) {
        let base = name.strip_suffix(".weight").unwrap_or(name);
        let (Ok(scales), Ok(biases)) = (tensors.tensor(&format!("{base}.scales")), tensors.tensor(&format!("{base}.biases"))) else {
            plain.insert(name.to_owned(), Dense { shape: view.shape().to_vec(), values: floats(&view) });
            continue;
        };
        let (scales, biases, per_word) = (floats(&scales), floats(&biases), 32 / bits);
        let words = view.data().chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap()));
        let numbers = words.flat_map(|word| (0..per_word).map(move |i| word >> (i * bits) & ((1 << bits) - 1)));
        let values = numbers.enumerate().map(|(i, number)| number as f32 * scales[i / group] + biases[i / group]).collect();
        plain.insert(name.to_owned(), Dense { shape: vec![view.shape()[0], view.shape()[1] * per_word], values });
    }
    plain
}

fn floats(view: &TensorView<'_>) -> Vec<f32> {
    let pairs = || view.data().chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    match view.dtype() {
        Dtype::F16 => pairs().map(|pair| f16::from_le_bytes(pair).to_f32()).collect(),
        Dtype::BF16 => pairs().map(|pair| bf16::from_le_bytes(pair).to_f32()).collect(),
        Dtype::F32 => view.data().chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect(),
        other => panic!("{other:?} is not an element type of weights"),
    }
}

fn write(folder: &Path, variant: &Variant, plain: &BTreeMap<String, Dense>) {
    let element = |x: &f32| match variant.dtype {
        Dtype::F16 => f16::from_f32(*x).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f32(*x).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    };
    let mut bytes: Vec<(&str, &Dense, Vec<u8>)> =
        plain.iter().map(|(name, tensor)| (name.as_str(), tensor, tensor.values.iter().flat_map(element).collect())).collect();
    if !variant.tied {
        let (_, embedding, data) = bytes.iter().find(|(name, ..)| name.contains("embed_tokens")).expect("an embedding");
        bytes.push(("lm_head.weight", *embedding, data.clone()));
    }
    let views = bytes.iter().map(|(name, tensor, data)| (*name, TensorView::new(variant.dtype, tensor.shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let keys = config.as_object_mut().unwrap();
    keys.remove("quantization");
    keys.remove("quantization_config");
    keys.insert("tie_word_embeddings".into(), json!(variant.tied));
    fs::write(path, config.to_string()).unwrap();
}

fn prompts() -> [Prompt; 3] {
    [
        text("import json\nimport os\n\n\ndef load(path):\n    with open(path) as f:\n"),
        infill(
            "impl fmt::Display for Error {\n    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {\n        match self {\n            Error::Parse(e) => ",
            "\n        }\n    }\n}\n",
        ),
        text("// Package queue holds a queue.\npackage queue\n\ntype Queue struct {\n"),
    ]
}

#[test]
fn dequantized_weights_generate_the_same_text() {
    let root = tempfile::tempdir().unwrap();
    let mut folders = Vec::new();
    for variant in &VARIANTS {
        let folder = root.path().join(variant.name);
        copy(&folder);
        write(&folder, variant, &dequantized(&folder));
        folders.push((variant.name.to_owned(), folder));
    }
    run_test(async {
        let cpu = CpuSettings { threads: 0, activations: Activations::F32 };
        let runtime = TestRuntime::with_folders(Settings { cpu, ..Settings::default() }, folders);
        let quantized = runtime.model_info().await;
        for variant in &VARIANTS {
            let info = runtime.load(variant.name, |_, _| {}).await.expect(variant.name);
            assert_eq!(info.quantization, variant.name.split(' ').next().unwrap());
            assert_eq!(
                (info.layers, info.hidden_size, info.vocab_size, info.eos),
                (quantized.layers, quantized.hidden_size, quantized.vocab_size, quantized.eos.clone())
            );
            for prompt in prompts() {
                let request = Request { logprobs: Some(2), ..greedy(prompt, TOKENS) };
                let expected = runtime.run(request.clone()).await;
                let output = runtime.run(Request { model: variant.name.into(), ..request }).await;
                compare(variant, &expected, &output);
            }
            runtime.unload(variant.name).await.unwrap();
        }
    });
}

/// The outputs must agree up to the first token whose two best candidates differ by no more than the rounding.
fn compare(variant: &Variant, expected: &Output, output: &Output) {
    for (index, (a, b)) in expected.tokens.iter().zip(&output.tokens).enumerate() {
        let gap = a.top[0].1 - a.top[1].1;
        if a.token != b.token {
            assert!(gap <= 2.0 * variant.tolerance, "{}: token {index} differs, and the best two are {gap} apart", variant.name);
            return;
        }
        let difference = (a.logprob - b.logprob).abs();
        assert!(difference <= variant.tolerance, "{}: the log-probability of token {index} differs by {difference}", variant.name);
    }
    assert_eq!((&expected.text, expected.reason()), (&output.text, output.reason()), "{}", variant.name);
}
