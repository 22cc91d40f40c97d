//! Qwen2 as plainly as it can be written, in f64: the decoder must compute the same.

use crate::gguf_writer::{self, HEAD_SIZE, HEADS, KV_HEADS, LAYERS, WIDTH};
use crate::{Random, logits};
use souffleur::models::weights::Files;
use std::collections::BTreeMap;

/// Weights by name, rows first.
struct Plain(BTreeMap<String, Vec<f64>>);

impl Plain {
    fn vector(&self, name: &str) -> &[f64] {
        &self.0[name]
    }

    fn product(&self, name: &str, x: &[f64]) -> Vec<f64> {
        self.vector(&format!("{name}.weight")).chunks_exact(x.len()).map(|row| dot(row, x)).collect()
    }

    fn biased(&self, name: &str, x: &[f64]) -> Vec<f64> {
        add(&self.product(name, x), self.vector(&format!("{name}.bias")))
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let root = (dot(x, x) / x.len() as f64 + 1e-5).sqrt();
        x.iter().zip(self.vector(&format!("{name}.weight"))).map(|(x, weight)| x / root * weight).collect()
    }

    /// The logits behind each token.
    fn logits(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let embedding: Vec<&[f64]> = self.vector("token_embd.weight").chunks_exact(WIDTH).collect();
        let mut rows: Vec<Vec<f64>> = tokens.iter().map(|&token| embedding[token as usize].to_vec()).collect();
        for layer in 0..LAYERS {
            let name = |part: &str| format!("blk.{layer}.{part}");
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for (position, x) in rows.iter_mut().enumerate() {
                let normed = self.norm(&name("attn_norm"), x);
                let query = rotated(self.biased(&name("attn_q"), &normed), position);
                keys.push(rotated(self.biased(&name("attn_k"), &normed), position));
                values.push(self.biased(&name("attn_v"), &normed));
                let attended: Vec<f64> = (0..HEADS).flat_map(|head| attend(head, &query, &keys, &values)).collect();
                *x = add(x, &self.product(&name("attn_output"), &attended));

                let normed = self.norm(&name("ffn_norm"), x);
                let (gate, up) = (self.product(&name("ffn_gate"), &normed), self.product(&name("ffn_up"), &normed));
                let hidden: Vec<f64> = gate.iter().zip(&up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
                *x = add(x, &self.product(&name("ffn_down"), &hidden));
            }
        }
        rows.iter().map(|x| self.product("token_embd", &self.norm("output_norm", x))).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// Each head's first half and second half, turned against each other.
fn rotated(mut heads: Vec<f64>, position: usize) -> Vec<f64> {
    for head in heads.chunks_exact_mut(HEAD_SIZE) {
        for i in 0..HEAD_SIZE / 2 {
            let angle = position as f64 * 10_000f64.powf(-2.0 * i as f64 / HEAD_SIZE as f64);
            let (x, y) = (head[i], head[i + HEAD_SIZE / 2]);
            head[i] = x * angle.cos() - y * angle.sin();
            head[i + HEAD_SIZE / 2] = y * angle.cos() + x * angle.sin();
        }
    }
    heads
}

/// One head's mean of the values so far.
fn attend(head: usize, query: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
    let (of_query, of_key) = (head * HEAD_SIZE, head / (HEADS / KV_HEADS) * HEAD_SIZE);
    let query = &query[of_query..of_query + HEAD_SIZE];
    let weigh = |key: &Vec<f64>| (dot(query, &key[of_key..of_key + HEAD_SIZE]) / (HEAD_SIZE as f64).sqrt()).exp();
    let weights: Vec<f64> = keys.iter().map(weigh).collect();
    let mean = |i: usize| weights.iter().zip(values).map(|(weight, value)| weight * value[of_key + i]).sum::<f64>();
    (0..HEAD_SIZE).map(|i| mean(i) / weights.iter().sum::<f64>()).collect()
}

#[test]
fn the_decoder_computes_qwen2() {
    let weights = gguf_writer::weights(&mut Random(14), true);
    let tokens = [105, 110, 259, 7, 7, 256];
    let files = Files::of_gguf("a.gguf", gguf_writer::model("qwen2", &weights).bytes());
    let got = logits(&files, &tokens);

    let wide = |(name, _, values): (String, Vec<usize>, Vec<f32>)| (name, values.into_iter().map(f64::from).collect());
    let want = Plain(weights.into_iter().map(wide).collect()).logits(&tokens);
    for (position, (got, want)) in got.iter().zip(&want).enumerate() {
        let furthest = got.iter().zip(want).map(|(got, want)| (f64::from(*got) - want).abs()).fold(0.0, f64::max);
        assert!(got.len() == want.len() && furthest < 1e-4, "logits behind token {position} are off by {furthest}");
    }
    assert_eq!(got.len(), tokens.len());
}
