//! GGUF files built byte by byte: valid ones must load correctly, and invalid ones must be refused safely.

mod fuzz_seeds;
mod ggml_types;
mod gguf_vs_safetensors;
mod gguf_writer;
mod mutations;
mod reference_decoder;
mod refusals;
mod tokenizers;

use souffleur::models::backend::cpu::Cpu;
use souffleur::models::backend::{Backend, Span};
use souffleur::models::network::{Decoder, DecoderSpec};
use souffleur::models::weights::{Files, Tensors};
use souffleur::models::{Activations, CpuSettings};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system allocator; records the largest allocation of each thread.
struct RecordingAllocator;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is the system allocator's; a thread's own cell needs no memory.
unsafe impl GlobalAlloc for RecordingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: the caller's layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `memory` is from `alloc`, which is the system's.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: RecordingAllocator = RecordingAllocator;

/// The largest single allocation made by `work`, in bytes.
fn largest_allocation(work: impl FnOnce()) -> usize {
    LARGEST.with(|largest| largest.set(0));
    work();
    LARGEST.with(Cell::get)
}

/// The logits after each token, with f32 activations.
fn logits(files: &Files, tokens: &[u32]) -> Vec<Vec<f32>> {
    let spec = DecoderSpec::parse(files).expect("a spec");
    let backend = Cpu::open(&spec, &CpuSettings { threads: 1, activations: Activations::F32 }).expect("a backend");
    let mut decoder = Decoder::load(spec, &Tensors::open(files).expect("tensors"), backend, &mut |_, _| {}).expect("a network");
    let mut cache = decoder.backend.cache();
    let rows: Vec<usize> = (0..tokens.len()).collect();
    let tensor = decoder.step(&mut [Span::ids(tokens, 0, &mut cache)], &rows);
    decoder.backend.to_host(&tensor).expect("this backend does not fail")
}

/// xorshift64: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 11) as usize % end
    }

    /// A number in -1..1.
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
