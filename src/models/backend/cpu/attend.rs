//! Attention of a step's rows, by all threads: rotate, append, attend.

use super::attention::{self, Job, part_length};
use super::buffer::Buffer;
use super::cache::{CHUNK, Shape};
use super::kernels::Kernels;
use super::product::ROWS_PURE;
use super::tensor::{Shared, Tensor};
use super::{Cpu, Norm, Scratch, Step, each_row};
use crate::models::backend::Span;
use crate::models::network::{Attention, AttentionSpec};
use std::sync::Arc;

/// Consecutive rows of one span.
struct Tile {
    span: usize,
    row: usize,
    rows: usize,
    position: usize,
}

/// What the scores and values are made from.
struct AttentionInput {
    q: Arc<Vec<f32>>,
    chunks: Arc<Vec<Vec<Arc<Buffer>>>>,
    tiles: Vec<Tile>,
    shape: Shape,
    layer: usize,
    heads: usize,
    kernels: &'static Kernels,
}

impl AttentionInput {
    fn group(&self) -> usize {
        self.heads / self.shape.kv_heads
    }

    /// Where a piece's first row and head are in `q`, and in the result.
    fn start(&self, tile: &Tile, kv_head: usize) -> usize {
        (tile.row * self.heads + kv_head * self.group()) * self.shape.head_size
    }

    fn job(&self, tile: &Tile, kv_head: usize) -> Job<'_> {
        Job {
            chunks: &self.chunks[tile.span],
            shape: self.shape,
            layer: self.layer,
            kv_head,
            group: self.group(),
            position: tile.position,
            rows: tile.rows,
            q: &self.q[self.start(tile, kv_head)..],
            q_stride: self.heads * self.shape.head_size,
        }
    }
}

/// A tile's queries of one key-value head against one chunk.
struct Piece {
    tile: usize,
    kv_head: usize,
    chunk: usize,
}

impl Cpu {
    pub(super) fn attention(
        &mut self,
        [mut q, mut k, v]: [Tensor; 3],
        of: &Attention<Norm>,
        layer: usize,
        Step(pages): &Step,
        spans: &mut [Span<'_, Cpu>],
    ) -> Tensor {
        let AttentionSpec { heads, kv_heads, head_dim: size, .. } = of.spec;
        let shape = self.kv_shape;
        let rows = spans.iter().map(Span::rows).sum();
        assert_eq!((kv_heads, size), (shape.kv_heads, shape.head_size), "the block's heads are those of the caches");
        assert!(layer < shape.layers, "layer {layer} is not in the caches");
        assert_eq!((q.rows, q.width), (rows, heads * size), "q has a row for each token and its heads side by side");
        for tensor in [&k, &v] {
            assert_eq!((tensor.rows, tensor.width), (rows, kv_heads * size), "k and v have a row for each token");
        }
        assert_eq!(pages.len(), spans.len(), "the step was begun with these spans");
        for (span, pages) in spans.iter().zip(pages.iter()) {
            assert!(span.cache.holds(span.end(), pages), "the step was begun with this span");
        }
        self.append(&mut q, &mut k, &v, of, layer, spans);

        let mut tiles = Vec::new();
        let mut first = 0;
        for (index, span) in spans.iter().enumerate() {
            let tile = |i| Tile { span: index, row: first + i, rows: attention::ROWS.min(span.rows() - i), position: span.position + i };
            tiles.extend((0..span.rows()).step_by(attention::ROWS).map(tile));
            first += span.rows();
        }
        let kernels = self.kernels;
        let attention = Arc::new(AttentionInput { q: q.data.clone(), chunks: pages.clone(), tiles, shape, layer, heads, kernels });
        let mut y = Tensor::new(rows, heads * size);
        if rows <= ROWS_PURE {
            self.attend_by_chunks(attention, &mut y)
        } else {
            self.attend_by_tiles(&attention, &mut y)
        }
        y
    }

    /// Few rows: the chunks are shared out too, or as many threads as there are key-value heads would have all the work.
    fn attend_by_chunks(&mut self, attention: Arc<AttentionInput>, y: &mut Tensor) {
        let (heads, shape, group, kernels) = (attention.heads, attention.shape, attention.group(), attention.kernels);
        let part = part_length(shape.head_size);
        // Of every row, the chunks that it sees.
        let (mut pieces, mut reaches) = (Vec::new(), Vec::new());
        for (index, tile) in attention.tiles.iter().enumerate() {
            reaches.extend((1..=tile.rows).map(|rows| Job { rows, ..attention.job(tile, 0) }.reach()));
            let reach = attention.job(tile, 0).reach();
            let piece = |kv_head| (0..reach).map(move |chunk| Piece { tile: index, kv_head, chunk });
            pieces.extend((0..shape.kv_heads).flat_map(piece));
        }
        // `[row][head][chunk][part]`, of few sizes, or every 256 positions would leave a tensor of its own among the spare ones.
        // What no query sees is some earlier tensor's, and is not merged.
        let chunks = attention.chunks.iter().map(Vec::len).max().unwrap_or(0).next_power_of_two();
        let mut parts = Tensor::new(y.rows, heads * chunks * part);
        let (out, count, pieces) = (parts.shared(), pieces.len(), Arc::new(pieces));
        let (computed, of) = (attention.clone(), pieces.clone());
        let compute = move |piece: usize, scratch: &mut Scratch| {
            let Piece { tile, kv_head, chunk } = of[piece];
            let job = computed.job(&computed.tiles[tile], kv_head);
            scratch.out.resize(job.queries() * part, 0.0);
            // SAFETY: made for this processor; all keys and values were appended by the operation before.
            unsafe { (kernels.attend_chunk)(&job, chunk, &mut scratch.attention, &mut scratch.out) }
        };
        self.pool.run_pure(count, Box::new(compute), &|piece, scratch| {
            let Piece { tile, kv_head, chunk } = pieces[piece];
            let tile = &attention.tiles[tile];
            let job = attention.job(tile, kv_head);
            for query in job.first(chunk)..job.queries() {
                let (row, head) = (tile.row + query / group, kv_head * group + query % group);
                // SAFETY: this part is this piece's, which is committed once.
                let to = unsafe { out.part(((row * heads + head) * chunks + chunk) * part, part) };
                to.copy_from_slice(&scratch.out[query * part..][..part]);
            }
        });
        let out = y.shared();
        each_row(&mut self.pool, y.rows, &|row| {
            for head in 0..heads {
                let parts = &parts.row(row)[head * chunks * part..][..reaches[row] * part];
                // SAFETY: made for this processor; a row is one piece's.
                unsafe { (kernels.merge)(parts, out.part((row * heads + head) * shape.head_size, shape.head_size)) }
            }
        });
    }

    fn attend_by_tiles(&mut self, attention: &AttentionInput, y: &mut Tensor) {
        let (kv_heads, stride, out) = (attention.shape.kv_heads, y.width, y.shared());
        self.pool.run(attention.tiles.len() * kv_heads, &|piece, scratch| {
            let (tile, kv_head) = (&attention.tiles[piece / kv_heads], piece % kv_heads);
            // SAFETY: made for this processor; all keys and values were appended by the operation before, and these rows'
            // heads are this piece's.
            unsafe {
                let out = out.pointer(attention.start(tile, kv_head));
                (attention.kernels.attend)(&attention.job(tile, kv_head), &mut scratch.attention, out, stride);
            }
        });
    }

    /// Normalizes and rotates queries and keys, and writes keys and values to the caches.
    fn append(&mut self, q: &mut Tensor, k: &mut Tensor, v: &Tensor, of: &Attention<Norm>, layer: usize, spans: &[Span<'_, Cpu>]) {
        let AttentionSpec { heads, kv_heads, head_dim: size, scale, rope, .. } = of.spec;
        for norm in [&of.q_norm, &of.k_norm].into_iter().flatten() {
            assert_eq!(norm.weight.len(), size, "a norm of q or k is as long as a head");
        }
        // For each row its position and the chunk that holds it.
        let mut places: Vec<(usize, Chunk)> = Vec::new();
        for span in spans {
            let chunk = |position| Chunk(span.cache.pointer(position / CHUNK));
            places.extend((span.position..span.end()).map(|position| (position, chunk(position))));
        }
        let (rows, shape, kernels) = (q.rows, self.kv_shape, self.kernels);
        let rope = self.ropes.iter().find(|table| table.spec() == rope).expect("`open` made a table for every rotation of the spec");
        let (q_out, k_out): (Shared, Shared) = (q.shared(), k.shared());
        each_row(&mut self.pool, rows, &|row| {
            let (position, Chunk(chunk)) = places[row];
            let (cos, sin) = rope.at(position);
            // SAFETY: the shapes were checked above; each row is one task's, and its position in the cache, which `begin`
            // made writable, is this row's.
            unsafe {
                for head in 0..heads {
                    let query = q_out.part((row * heads + head) * size, size);
                    normalize(kernels, query, of.q_norm.as_ref());
                    (kernels.rotate)(query, cos, sin, scale);
                }
                for head in 0..kv_heads {
                    let key = k_out.part((row * kv_heads + head) * size, size);
                    normalize(kernels, key, of.k_norm.as_ref());
                    (kernels.rotate)(key, cos, sin, 1.0);
                    let value = &v.row(row)[head * size..(head + 1) * size];
                    (kernels.append)(chunk, shape, layer, head, position, key, value);
                }
            }
        });
    }
}

/// Normalizes one head in place.
///
/// # Safety
/// The kernels run on this processor; the norm's weight is as long as the head, a multiple of 8.
unsafe fn normalize(kernels: &Kernels, head: &mut [f32], norm: Option<&Norm>) {
    let Some(Norm { weight, epsilon }) = norm else { return };
    let mut x = [0f32; attention::HEAD_MAX];
    let x = &mut x[..head.len()];
    x.copy_from_slice(head);
    // SAFETY: the caller's, and `x` is as long as `head`.
    unsafe { (kernels.norm)(x, weight, *epsilon, head) }
}

#[derive(Clone, Copy)]
struct Chunk(*mut u8);
// SAFETY: within one operation, threads write disjoint positions.
unsafe impl Sync for Chunk {}
