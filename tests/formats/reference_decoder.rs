//! A minimal Qwen2 decoder in f64, written independently: the product's decoder must compute the same logits.

use crate::gguf_writer::{self, HEAD_DIM, HEADS, HIDDEN_SIZE, KV_HEADS, LAYERS};
use crate::{Random, logits};
use souffleur::models::weights::Files;
use std::collections::BTreeMap;

/// Weights by name, row-major.
struct ReferenceDecoder(BTreeMap<String, Vec<f64>>);

impl ReferenceDecoder {
    fn vector(&self, name: &str) -> &[f64] {
        &self.0[name]
    }

    fn matvec(&self, name: &str, x: &[f64]) -> Vec<f64> {
        self.vector(&format!("{name}.weight")).chunks_exact(x.len()).map(|row| dot(row, x)).collect()
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        add(&self.matvec(name, x), self.vector(&format!("{name}.bias")))
    }

    fn rms_norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let rms = (dot(x, x) / x.len() as f64 + 1e-5).sqrt();
        x.iter().zip(self.vector(&format!("{name}.weight"))).map(|(x, weight)| x / rms * weight).collect()
    }

    /// The logits after each token.
    fn logits(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let embedding: Vec<&[f64]> = self.vector("token_embd.weight").chunks_exact(HIDDEN_SIZE).collect();
        let mut rows: Vec<Vec<f64>> = tokens.iter().map(|&token| embedding[token as usize].to_vec()).collect();
        for layer in 0..LAYERS {
            let name = |part: &str| format!("blk.{layer}.{part}");
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for (position, x) in rows.iter_mut().enumerate() {
                let normed = self.rms_norm(&name("attn_norm"), x);
                let query = rope(self.linear(&name("attn_q"), &normed), position);
                keys.push(rope(self.linear(&name("attn_k"), &normed), position));
                values.push(self.linear(&name("attn_v"), &normed));
                let attended: Vec<f64> = (0..HEADS).flat_map(|head| attend(head, &query, &keys, &values)).collect();
                *x = add(x, &self.matvec(&name("attn_output"), &attended));

                let normed = self.rms_norm(&name("ffn_norm"), x);
                let (gate, up) = (self.matvec(&name("ffn_gate"), &normed), self.matvec(&name("ffn_up"), &normed));
                let hidden: Vec<f64> = gate.iter().zip(&up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
                *x = add(x, &self.matvec(&name("ffn_down"), &hidden));
            }
        }
        rows.iter().map(|x| self.matvec("token_embd", &self.rms_norm("output_norm", x))).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// RoPE: element i of each head is rotated with element i + HEAD_DIM / 2.
fn rope(mut heads: Vec<f64>, position: usize) -> Vec<f64> {
    for head in heads.chunks_exact_mut(HEAD_DIM) {
        for i in 0..HEAD_DIM / 2 {
            let angle = position as f64 * 10_000f64.powf(-2.0 * i as f64 / HEAD_DIM as f64);
            let (x, y) = (head[i], head[i + HEAD_DIM / 2]);
            head[i] = x * angle.cos() - y * angle.sin();
            head[i + HEAD_DIM / 2] = y * angle.cos() + x * angle.sin();
        }
    }
    heads
}

/// Causal softmax attention of one head.
fn attend(head: usize, query: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
    let (query_start, kv_start) = (head * HEAD_DIM, head / (HEADS / KV_HEADS) * HEAD_DIM);
    let query = &query[query_start..query_start + HEAD_DIM];
    let exp_score = |key: &Vec<f64>| (dot(query, &key[kv_start..kv_start + HEAD_DIM]) / (HEAD_DIM as f64).sqrt()).exp();
    let weights: Vec<f64> = keys.iter().map(exp_score).collect();
    let mean = |i: usize| weights.iter().zip(values).map(|(weight, value)| weight * value[kv_start + i]).sum::<f64>();
    (0..HEAD_DIM).map(|i| mean(i) / weights.iter().sum::<f64>()).collect()
}

#[test]
fn the_decoder_computes_qwen2() {
    let weights = gguf_writer::weights(&mut Random(14), true);
    let tokens = [105, 110, 259, 7, 7, 256];
    let files = Files::of_gguf("a.gguf", gguf_writer::model("qwen2", &weights).bytes());
    let got = logits(&files, &tokens);

    let to_f64 = |(name, _, values): (String, Vec<usize>, Vec<f32>)| (name, values.into_iter().map(f64::from).collect());
    let want = ReferenceDecoder(weights.into_iter().map(to_f64).collect()).logits(&tokens);
    for (position, (got, want)) in got.iter().zip(&want).enumerate() {
        let error = got.iter().zip(want).map(|(got, want)| (f64::from(*got) - want).abs()).fold(0.0, f64::max);
        assert!(got.len() == want.len() && error < 1e-4, "the logits after token {position} differ by {error}");
    }
    assert_eq!(got.len(), tokens.len());
}
