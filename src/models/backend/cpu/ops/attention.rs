//! The attention of one layer, divided among threads: norms of q and k, rotary embedding (RoPE), append to the KV caches, then
//! attention.

use super::super::buffer::Buffer;
use super::super::kernels::Kernels;
use super::super::kernels::attention::{HEAD_DIM_MAX, QueryTile, TILE_ROWS, partial_len};
use super::super::kv_cache::{KvShape, PAGE_TOKENS};
use super::super::tensor::{Tensor, TensorWriter};
use super::super::{Cpu, Norm, Scratch, Step, each_row, supported};
use super::linear::FEW_ROWS_MAX;
use crate::models::backend::Span;
use crate::models::network::{Attention, AttentionSpec};
use std::sync::Arc;

/// Up to `TILE_ROWS` consecutive rows of one span.
struct RowTile {
    span_index: usize,
    /// The first row, counted over the whole step.
    first_row: usize,
    rows: usize,
    /// Position of the first row.
    position: usize,
}

/// The input of one layer's attention, shared with the threads.
struct AttentionInput {
    q: Arc<Vec<f32>>,
    /// The KV pages of each span.
    pages: Arc<Vec<Vec<Arc<Buffer>>>>,
    tiles: Vec<RowTile>,
    shape: KvShape,
    layer: usize,
    /// Query heads.
    heads: usize,
    kernels: &'static Kernels,
}

impl AttentionInput {
    /// Query heads per KV head.
    fn group_size(&self) -> usize {
        self.heads / self.shape.kv_heads
    }

    /// Offset in floats of the first query of a tile and KV head, in `q` and in the result.
    fn query_offset(&self, tile: &RowTile, kv_head: usize) -> usize {
        (tile.first_row * self.heads + kv_head * self.group_size()) * self.shape.head_dim
    }

    fn query_tile(&self, tile: &RowTile, kv_head: usize) -> QueryTile<'_> {
        QueryTile {
            pages: &self.pages[tile.span_index],
            shape: self.shape,
            layer: self.layer,
            kv_head,
            group_size: self.group_size(),
            position: tile.position,
            rows: tile.rows,
            q: &self.q[self.query_offset(tile, kv_head)..],
            q_stride: self.heads * self.shape.head_dim,
        }
    }
}

/// One task of split-KV attention: a tile's queries of one KV head against one KV page.
struct PageTask {
    tile_index: usize,
    kv_head: usize,
    page_index: usize,
}

impl Cpu {
    /// Appends the new keys and values of one layer to the caches and computes attention, `[rows, heads * head_dim]`.
    pub(in super::super) fn attention(
        &mut self,
        [mut q, mut k, v]: [Tensor; 3],
        attention: &Attention<Norm>,
        layer: usize,
        step: &Step,
        spans: &mut [Span<'_, Cpu>],
    ) -> Tensor {
        let AttentionSpec { heads, kv_heads, head_dim, .. } = attention.spec;
        let (shape, pages) = (self.kv_shape, &step.pages);
        supported(&attention.spec).expect("`open` accepts no other attention");
        let rows = spans.iter().map(Span::rows).sum();
        assert_eq!((kv_heads, head_dim), (shape.kv_heads, shape.head_dim), "the layer's head shape equals the caches'");
        assert!(layer < shape.layers, "layer {layer} is not in the caches");
        assert_eq!((q.rows, q.width), (rows, heads * head_dim), "q is [tokens, heads * head_dim]");
        for tensor in [&k, &v] {
            assert_eq!((tensor.rows, tensor.width), (rows, kv_heads * head_dim), "k and v are [tokens, kv_heads * head_dim]");
        }
        assert_eq!(pages.len(), spans.len(), "`begin` was called with these spans");
        for (span, pages) in spans.iter().zip(pages.iter()) {
            assert!(span.cache.shape == shape && span.cache.holds(span.end(), pages), "`begin` was called with this span");
        }
        assert_eq!(step.next_layer.replace(layer + 1), layer, "each layer attends once in a step, in order");
        self.rotate_and_append(&mut q, &mut k, &v, attention, layer, spans);

        let mut tiles = Vec::new();
        let mut first_row = 0;
        for (span_index, span) in spans.iter().enumerate() {
            let rows = span.rows();
            let tile = |i| RowTile { span_index, first_row: first_row + i, rows: TILE_ROWS.min(rows - i), position: span.position + i };
            tiles.extend((0..rows).step_by(TILE_ROWS).map(tile));
            first_row += rows;
        }
        let kernels = self.kernels;
        let input = Arc::new(AttentionInput { q: q.data.clone(), pages: pages.clone(), tiles, shape, layer, heads, kernels });
        let mut y = self.tensors.alloc(rows, heads * head_dim);
        if rows <= FEW_ROWS_MAX {
            self.attend_by_pages(input, &mut y)
        } else {
            self.attend_by_tiles(&input, &mut y)
        }
        y
    }

    /// Split-KV attention, for few rows: each KV page is a task of its own, because one task per KV head would not occupy all
    /// threads. The partial results are combined at the end.
    fn attend_by_pages(&mut self, input: Arc<AttentionInput>, y: &mut Tensor) {
        let (heads, shape, group_size, kernels) = (input.heads, input.shape, input.group_size(), input.kernels);
        let partial_len = partial_len(shape.head_dim);
        // `pages_per_row`: the number of pages that each row attends to.
        let (mut tasks, mut pages_per_row) = (Vec::new(), Vec::new());
        for (tile_index, tile) in input.tiles.iter().enumerate() {
            pages_per_row.extend((1..=tile.rows).map(|rows| QueryTile { rows, ..input.query_tile(tile, 0) }.kv_pages()));
            let page_count = input.query_tile(tile, 0).kv_pages();
            let task = |kv_head| (0..page_count).map(move |page_index| PageTask { tile_index, kv_head, page_index });
            tasks.extend((0..shape.kv_heads).flat_map(task));
        }
        // `[row][head][page][partial_len]`. The number of pages is rounded up, so that the allocator can reuse the buffer while
        // sequences grow. Results for pages past a row's last page are unspecified values and are not combined.
        let page_stride = input.pages.iter().map(Vec::len).max().unwrap_or(0).next_power_of_two();
        let mut partials = self.tensors.alloc(y.rows, heads * page_stride * partial_len);
        let (partials_out, count, tasks) = (partials.writer(), tasks.len(), Arc::new(tasks));
        let (shared_input, shared_tasks) = (input.clone(), tasks.clone());
        let compute = move |task: usize, scratch: &mut Scratch| {
            let PageTask { tile_index, kv_head, page_index } = shared_tasks[task];
            let tile = shared_input.query_tile(&shared_input.tiles[tile_index], kv_head);
            scratch.out.resize(tile.queries() * partial_len, 0.0);
            // SAFETY: this CPU has the kernels' instruction set; all keys and values were appended by an earlier operation.
            unsafe { (kernels.attend_page)(&tile, page_index, &mut scratch.attention, &mut scratch.out) }
        };
        self.pool.run_idempotent(count, Box::new(compute), &|task, scratch| {
            let PageTask { tile_index, kv_head, page_index } = tasks[task];
            let row_tile = &input.tiles[tile_index];
            let tile = input.query_tile(row_tile, kv_head);
            for query in tile.first_visible(page_index)..tile.queries() {
                let (row, head) = (row_tile.first_row + query / group_size, kv_head * group_size + query % group_size);
                // SAFETY: only this task writes this partial result, and the pool commits a task once.
                let to = unsafe { partials_out.slice(((row * heads + head) * page_stride + page_index) * partial_len, partial_len) };
                to.copy_from_slice(&scratch.out[query * partial_len..][..partial_len]);
            }
        });
        let (rows, y_out) = (y.rows, y.writer());
        each_row(&mut self.pool, rows, &|row| {
            for head in 0..heads {
                let partials = &partials.row(row)[head * page_stride * partial_len..][..pages_per_row[row] * partial_len];
                // SAFETY: this CPU has the kernels' instruction set; each row is written by one task.
                unsafe { (kernels.combine)(partials, y_out.slice((row * heads + head) * shape.head_dim, shape.head_dim)) }
            }
        });
    }

    /// For many rows: each tile of rows and KV head is a task.
    fn attend_by_tiles(&mut self, input: &AttentionInput, y: &mut Tensor) {
        let (kv_heads, stride, y_out) = (input.shape.kv_heads, y.width, y.writer());
        self.pool.run(input.tiles.len() * kv_heads, &|task, scratch| {
            let (tile, kv_head) = (&input.tiles[task / kv_heads], task % kv_heads);
            // SAFETY: this CPU has the kernels' instruction set; all keys and values were appended by an earlier operation; only this
            // task writes these heads of these rows.
            unsafe {
                let out = y_out.pointer(input.query_offset(tile, kv_head));
                (input.kernels.attend)(&input.query_tile(tile, kv_head), &mut scratch.attention, out, stride);
            }
        });
    }

    /// Applies the norms of q and k, rotates queries and keys, and writes keys and values to the caches. Queries are multiplied by
    /// the softmax scale too.
    fn rotate_and_append(
        &mut self,
        q: &mut Tensor,
        k: &mut Tensor,
        v: &Tensor,
        attention: &Attention<Norm>,
        layer: usize,
        spans: &[Span<'_, Cpu>],
    ) {
        let AttentionSpec { heads, kv_heads, head_dim, scale, rope, .. } = attention.spec;
        for norm in [&attention.q_norm, &attention.k_norm].into_iter().flatten() {
            assert_eq!(norm.weight.len(), head_dim, "q_norm and k_norm have head_dim values");
        }
        // Each row's position, and the page that holds it.
        let mut destinations: Vec<(usize, PagePtr)> = Vec::new();
        for span in spans {
            let page = |position| PagePtr(span.cache.page_ptr(position / PAGE_TOKENS));
            destinations.extend((span.position..span.end()).map(|position| (position, page(position))));
        }
        let (rows, shape, kernels) = (q.rows, self.kv_shape, self.kernels);
        assert_eq!(self.rope.spec(), rope, "`Cpu::open` made the table of another `RopeSpec`");
        let rope = &self.rope;
        let (q_out, k_out): (TensorWriter<'_>, TensorWriter<'_>) = (q.writer(), k.writer());
        each_row(&mut self.pool, rows, &|row| {
            let (position, PagePtr(page)) = destinations[row];
            let (cos, sin) = rope.at(position);
            // SAFETY: the shapes were checked above. Each row is one task, which alone writes the row's position in the cache. `begin`
            // made the page writable.
            unsafe {
                for head in 0..heads {
                    let query = q_out.slice((row * heads + head) * head_dim, head_dim);
                    normalize(kernels, query, attention.q_norm.as_ref());
                    (kernels.rotate)(query, cos, sin, scale);
                }
                for head in 0..kv_heads {
                    let key = k_out.slice((row * kv_heads + head) * head_dim, head_dim);
                    normalize(kernels, key, attention.k_norm.as_ref());
                    (kernels.rotate)(key, cos, sin, 1.0);
                    let value = &v.row(row)[head * head_dim..(head + 1) * head_dim];
                    (kernels.append)(page, shape, layer, head, position, key, value);
                }
            }
        });
    }
}

/// Normalizes one head in place.
///
/// # Safety
/// This CPU has the kernels' instruction set; the norm's weight is as long as the head, a multiple of 8.
unsafe fn normalize(kernels: &Kernels, head: &mut [f32], norm: Option<&Norm>) {
    let Some(Norm { weight, epsilon }) = norm else { return };
    let mut x = [0f32; HEAD_DIM_MAX];
    let x = &mut x[..head.len()];
    x.copy_from_slice(head);
    // SAFETY: guaranteed by the caller; `x` is as long as `head`.
    unsafe { (kernels.norm)(x, weight, *epsilon, head) }
}

/// A pointer to a KV page that threads share.
#[derive(Clone, Copy)]
struct PagePtr(*mut u8);
// SAFETY: within one operation, threads write disjoint positions of the cache.
unsafe impl Sync for PagePtr {}
