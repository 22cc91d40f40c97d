//! The attention of one layer, divided among threads: rotate, append to the caches, attend.

use super::super::buffer::Buffer;
use super::super::kernels::Kernels;
use super::super::kernels::attention::{HEAD_DIM_MAX, QueryTile, TILE_ROWS, partial_len};
use super::super::kv_cache::{KvShape, PAGE_TOKENS};
use super::super::tensor::{Tensor, TensorWriter};
use super::super::{Cpu, Norm, Scratch, Step, each_row, supported};
use super::linear::IDEMPOTENT_ROWS_MAX;
use crate::models::backend::Span;
use crate::models::network::{Attention, AttentionSpec};
use std::sync::Arc;

/// Up to `TILE_ROWS` consecutive rows of one span.
struct RowTile {
    span: usize,
    /// The first row, counted over the whole step.
    row: usize,
    rows: usize,
    /// Position of the first row.
    position: usize,
}

/// The input of one layer's attention, shared with the threads.
struct AttentionInput {
    q: Arc<Vec<f32>>,
    /// The KV pages of every span.
    pages: Arc<Vec<Vec<Arc<Buffer>>>>,
    tiles: Vec<RowTile>,
    shape: KvShape,
    layer: usize,
    heads: usize,
    kernels: &'static Kernels,
}

impl AttentionInput {
    /// Query heads per KV head.
    fn group(&self) -> usize {
        self.heads / self.shape.kv_heads
    }

    /// Index of the first query of a tile and KV head, in `q` and in the result.
    fn start(&self, tile: &RowTile, kv_head: usize) -> usize {
        (tile.row * self.heads + kv_head * self.group()) * self.shape.head_dim
    }

    fn query_tile(&self, tile: &RowTile, kv_head: usize) -> QueryTile<'_> {
        QueryTile {
            pages: &self.pages[tile.span],
            shape: self.shape,
            layer: self.layer,
            kv_head,
            group: self.group(),
            position: tile.position,
            rows: tile.rows,
            q: &self.q[self.start(tile, kv_head)..],
            q_stride: self.heads * self.shape.head_dim,
        }
    }
}

/// One task of split-KV attention: a tile's queries of one KV head against one KV page.
struct PageTask {
    tile: usize,
    kv_head: usize,
    page: usize,
}

impl Cpu {
    /// Rotates and appends the new keys and values of one layer, then attends: `[rows, heads * head_dim]`.
    pub(in super::super) fn attention(
        &mut self,
        [mut q, mut k, v]: [Tensor; 3],
        of: &Attention<Norm>,
        layer: usize,
        step: &Step,
        spans: &mut [Span<'_, Cpu>],
    ) -> Tensor {
        let AttentionSpec { heads, kv_heads, head_dim, .. } = of.spec;
        let (shape, pages) = (self.kv_shape, &step.pages);
        supported(&of.spec).expect("`open` accepts no other attention");
        let rows = spans.iter().map(Span::rows).sum();
        assert_eq!((kv_heads, head_dim), (shape.kv_heads, shape.head_dim), "the block's heads are those of the caches");
        assert!(layer < shape.layers, "layer {layer} is not in the caches");
        assert_eq!((q.rows, q.width), (rows, heads * head_dim), "q has a row for each token and its heads side by side");
        for tensor in [&k, &v] {
            assert_eq!((tensor.rows, tensor.width), (rows, kv_heads * head_dim), "k and v have a row for each token");
        }
        assert_eq!(pages.len(), spans.len(), "the step was begun with these spans");
        for (span, pages) in spans.iter().zip(pages.iter()) {
            assert!(span.cache.shape == shape && span.cache.holds(span.end(), pages), "the step was begun with this span");
        }
        assert_eq!(step.next_layer.replace(layer + 1), layer, "each layer attends once in a step, in order");
        self.append(&mut q, &mut k, &v, of, layer, spans);

        let mut tiles = Vec::new();
        let mut first = 0;
        for (index, span) in spans.iter().enumerate() {
            let rows = span.rows();
            let tile = |i| RowTile { span: index, row: first + i, rows: TILE_ROWS.min(rows - i), position: span.position + i };
            tiles.extend((0..rows).step_by(TILE_ROWS).map(tile));
            first += rows;
        }
        let kernels = self.kernels;
        let input = Arc::new(AttentionInput { q: q.data.clone(), pages: pages.clone(), tiles, shape, layer, heads, kernels });
        let mut y = self.tensors.alloc(rows, heads * head_dim);
        if rows <= IDEMPOTENT_ROWS_MAX {
            self.attend_by_pages(input, &mut y)
        } else {
            self.attend_by_tiles(&input, &mut y)
        }
        y
    }

    /// Split-KV attention, for few rows: each KV page is a task of its own, because the KV heads alone are too few tasks for all
    /// threads. The partial results are combined at the end.
    fn attend_by_pages(&mut self, input: Arc<AttentionInput>, y: &mut Tensor) {
        let (heads, shape, group, kernels) = (input.heads, input.shape, input.group(), input.kernels);
        let partial_len = partial_len(shape.head_dim);
        // `kv_pages`: the number of pages that each row attends to.
        let (mut tasks, mut kv_pages) = (Vec::new(), Vec::new());
        for (index, tile) in input.tiles.iter().enumerate() {
            kv_pages.extend((1..=tile.rows).map(|rows| QueryTile { rows, ..input.query_tile(tile, 0) }.kv_pages()));
            let pages = input.query_tile(tile, 0).kv_pages();
            let task = |kv_head| (0..pages).map(move |page| PageTask { tile: index, kv_head, page });
            tasks.extend((0..shape.kv_heads).flat_map(task));
        }
        // `[row][head][page][partial_len]`. The number of pages is rounded up, so that the allocator can reuse the buffer while
        // sequences grow. Partial results of pages after a row's last one are unspecified values, and are not combined.
        let pages = input.pages.iter().map(Vec::len).max().unwrap_or(0).next_power_of_two();
        let mut partials = self.tensors.alloc(y.rows, heads * pages * partial_len);
        let (out, count, tasks) = (partials.writer(), tasks.len(), Arc::new(tasks));
        let (shared_input, shared_tasks) = (input.clone(), tasks.clone());
        let compute = move |task: usize, scratch: &mut Scratch| {
            let PageTask { tile, kv_head, page } = shared_tasks[task];
            let tile = shared_input.query_tile(&shared_input.tiles[tile], kv_head);
            scratch.out.resize(tile.queries() * partial_len, 0.0);
            // SAFETY: the kernels run on this processor; all keys and values were appended by an earlier operation.
            unsafe { (kernels.attend_page)(&tile, page, &mut scratch.attention, &mut scratch.out) }
        };
        self.pool.run_idempotent(count, Box::new(compute), &|task, scratch| {
            let PageTask { tile, kv_head, page } = tasks[task];
            let row_tile = &input.tiles[tile];
            let tile = input.query_tile(row_tile, kv_head);
            for query in tile.first_visible(page)..tile.queries() {
                let (row, head) = (row_tile.row + query / group, kv_head * group + query % group);
                // SAFETY: this partial result is this task's, which is committed once.
                let to = unsafe { out.slice(((row * heads + head) * pages + page) * partial_len, partial_len) };
                to.copy_from_slice(&scratch.out[query * partial_len..][..partial_len]);
            }
        });
        let (rows, out) = (y.rows, y.writer());
        each_row(&mut self.pool, rows, &|row| {
            for head in 0..heads {
                let partials = &partials.row(row)[head * pages * partial_len..][..kv_pages[row] * partial_len];
                // SAFETY: the kernels run on this processor; each row is one task's.
                unsafe { (kernels.combine)(partials, out.slice((row * heads + head) * shape.head_dim, shape.head_dim)) }
            }
        });
    }

    /// For many rows: each tile of rows and KV head is a task.
    fn attend_by_tiles(&mut self, input: &AttentionInput, y: &mut Tensor) {
        let (kv_heads, stride, out) = (input.shape.kv_heads, y.width, y.writer());
        self.pool.run(input.tiles.len() * kv_heads, &|task, scratch| {
            let (tile, kv_head) = (&input.tiles[task / kv_heads], task % kv_heads);
            // SAFETY: the kernels run on this processor; all keys and values were appended by an earlier operation; the heads of
            // these rows are this task's.
            unsafe {
                let out = out.pointer(input.start(tile, kv_head));
                (input.kernels.attend)(&input.query_tile(tile, kv_head), &mut scratch.attention, out, stride);
            }
        });
    }

    /// Normalizes and rotates queries and keys, and writes keys and values to the caches.
    fn append(&mut self, q: &mut Tensor, k: &mut Tensor, v: &Tensor, of: &Attention<Norm>, layer: usize, spans: &[Span<'_, Cpu>]) {
        let AttentionSpec { heads, kv_heads, head_dim, scale, rope, .. } = of.spec;
        for norm in [&of.q_norm, &of.k_norm].into_iter().flatten() {
            assert_eq!(norm.weight.len(), head_dim, "a norm of q or k is as long as a head");
        }
        // Each row's position, and the page that holds it.
        let mut places: Vec<(usize, PagePtr)> = Vec::new();
        for span in spans {
            let page = |position| PagePtr(span.cache.page_ptr(position / PAGE_TOKENS));
            places.extend((span.position..span.end()).map(|position| (position, page(position))));
        }
        let (rows, shape, kernels) = (q.rows, self.kv_shape, self.kernels);
        assert_eq!(self.rope.spec(), rope, "`open` made the table of another rotation");
        let rope = &self.rope;
        let (q_out, k_out): (TensorWriter<'_>, TensorWriter<'_>) = (q.writer(), k.writer());
        each_row(&mut self.pool, rows, &|row| {
            let (position, PagePtr(page)) = places[row];
            let (cos, sin) = rope.at(position);
            // SAFETY: the shapes were checked above; each row is one task's, and its position in the cache, which `begin`
            // made writable, is this row's.
            unsafe {
                for head in 0..heads {
                    let query = q_out.slice((row * heads + head) * head_dim, head_dim);
                    normalize(kernels, query, of.q_norm.as_ref());
                    (kernels.rotate)(query, cos, sin, scale);
                }
                for head in 0..kv_heads {
                    let key = k_out.slice((row * kv_heads + head) * head_dim, head_dim);
                    normalize(kernels, key, of.k_norm.as_ref());
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
/// The kernels run on this processor; the norm's weight is as long as the head, a multiple of 8.
unsafe fn normalize(kernels: &Kernels, head: &mut [f32], norm: Option<&Norm>) {
    let Some(Norm { weight, epsilon }) = norm else { return };
    let mut x = [0f32; HEAD_DIM_MAX];
    let x = &mut x[..head.len()];
    x.copy_from_slice(head);
    // SAFETY: the caller's, and `x` is as long as `head`.
    unsafe { (kernels.norm)(x, weight, *epsilon, head) }
}

/// The memory of a KV page.
#[derive(Clone, Copy)]
struct PagePtr(*mut u8);
// SAFETY: within one operation, threads write disjoint positions.
unsafe impl Sync for PagePtr {}
