//! Attention against its definition, as a whole and by split-KV.

use super::super::kernels::Kernels;
use super::super::kernels::attention::{AttentionScratch, GROUP_SIZE_MAX, HEAD_DIM_MAX, QueryTile, TILE_ROWS, partial_len};
use super::super::kv_cache::{Cache, KvShape, PAGE_TOKENS};
use super::Random;

/// Softmax attention by its definition, for one query.
fn softmax_attention(q: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f64> {
    let dot = |k: &Vec<f32>| q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let scores: Vec<f64> = keys.iter().map(dot).collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
    let total: f64 = weights.iter().sum();
    (0..q.len()).map(|d| weights.iter().zip(values).map(|(w, v)| w * f64::from(v[d])).sum::<f64>() / total).collect()
}

/// The same as `attend`, by split-KV: one partial result per page.
fn by_pages(kernels: &Kernels, tile: &QueryTile<'_>, scratch: &mut AttentionScratch) -> Vec<f32> {
    let (head_dim, partial_len) = (tile.shape.head_dim, partial_len(tile.shape.head_dim));
    let mut combined = vec![0.0; tile.queries() * head_dim];
    let mut pages = vec![vec![f32::NAN; tile.queries() * partial_len]; tile.kv_pages()];
    for (page, partials) in pages.iter_mut().enumerate() {
        // SAFETY: this CPU has the kernels' instruction set; the cache holds all positions.
        unsafe { (kernels.attend_page)(tile, page, scratch, partials) };
    }
    for (query, out) in combined.chunks_exact_mut(head_dim).enumerate() {
        let visible = pages.iter().enumerate().filter(|(page, _)| query >= tile.first_visible(*page));
        let partials: Vec<f32> = visible.flat_map(|(_, partials)| &partials[query * partial_len..][..partial_len]).copied().collect();
        // SAFETY: this CPU has the kernels' instruction set.
        unsafe { (kernels.combine)(&partials, out) };
    }
    combined
}

#[test]
fn attention_matches_the_definition_on_every_instruction_set() {
    let mut random = Random(3);
    for (head_dim, group_size, half) in [
        (16, 5, true),
        (64, 2, true),
        (64, 3, false),
        (64, 7, true),
        (80, 1, true),
        (80, 3, true),
        (112, 1, false),
        (128, 8, false),
        (144, 2, false),
        (HEAD_DIM_MAX, GROUP_SIZE_MAX, true),
    ] {
        let shape = KvShape { layers: 2, kv_heads: 2, head_dim, half };
        for (position, rows) in [(0, 1), (0, 4), (5, 3), (254, 4), (511, 1), (600, 2)] {
            let length = position + rows;
            let keys: Vec<Vec<f32>> = (0..length).map(|_| random.floats(head_dim)).collect();
            let values: Vec<Vec<f32>> = (0..length).map(|_| random.floats(head_dim)).collect();
            let q = random.floats(rows * group_size * head_dim);
            let results: Vec<Vec<f32>> = Kernels::all()
                .into_iter()
                .map(|kernels| {
                    let mut cache = Cache::new(shape);
                    cache.reserve(0, length);
                    let pages = cache.pages();
                    for t in 0..length {
                        // SAFETY: this CPU has the kernels' instruction set; the position was reserved, and this is the only thread.
                        unsafe { (kernels.append)(cache.page_ptr(t / PAGE_TOKENS), shape, 1, 1, t, &keys[t], &values[t]) };
                    }
                    let mut out = vec![0.0; q.len()];
                    let tile = QueryTile {
                        pages: &pages,
                        shape,
                        layer: 1,
                        kv_head: 1,
                        group_size,
                        position,
                        rows,
                        q: &q,
                        q_stride: group_size * head_dim,
                    };
                    let mut scratch = AttentionScratch::default();
                    // SAFETY: this CPU has the kernels' instruction set; `out` has the tile's rows, and the cache holds all positions.
                    unsafe { (kernels.attend)(&tile, &mut scratch, out.as_mut_ptr(), group_size * head_dim) };
                    assert_eq!(out, by_pages(kernels, &tile, &mut scratch), "split-KV differs");
                    out
                })
                .collect();
            assert!(results.iter().all(|result| result == &results[0]), "instruction sets differ");
            for query in 0..rows * group_size {
                let kv_len = position + query / group_size + 1;
                let want = softmax_attention(&q[query * head_dim..(query + 1) * head_dim], &keys[..kv_len], &values[..kv_len]);
                for (got, want) in results[0][query * head_dim..].iter().zip(want) {
                    let tolerance = if half { 5e-3 } else { 1e-5 };
                    assert!((f64::from(*got) - want).abs() < tolerance, "head_dim {head_dim} position {position}: {got} is not {want}");
                }
            }
        }
    }
    const { assert!(TILE_ROWS >= 4, "the shapes above have up to four rows") };
}
