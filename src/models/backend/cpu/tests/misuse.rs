//! Arguments of the wrong shape: every operation must panic before it touches memory.

use super::super::{Cpu, Linear, Norm, Step, Tensor};
use crate::models::backend::{Backend, LinearPart, SampleRequest, Span};
use crate::models::network::{Activation, Attention, DecoderSpec, NormSpec};
use crate::models::sampler::Sampler;
use crate::models::weights::{Files, FloatType, Matrix};
use crate::models::{CpuSettings, ModelSource, Sampling};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

fn backend() -> (DecoderSpec, Cpu) {
    let assets = ModelSource::Folder(concat!(env!("CARGO_MANIFEST_DIR"), "/assets").into());
    let spec = DecoderSpec::parse(&Files::open(&assets, None).unwrap()).unwrap();
    let cpu = Cpu::open(&spec, &CpuSettings { threads: 1, ..CpuSettings::default() }).unwrap();
    (spec, cpu)
}

fn part(rows: usize, columns: usize, bias: Option<usize>) -> LinearPart<'static> {
    let weight = Matrix::Plain { rows, columns, element: FloatType::F32, data: vec![0; rows * columns * 4].into() };
    LinearPart { weight, bias: bias.map(|length| vec![0.0; length]) }
}

fn linear(cpu: &mut Cpu, rows: usize, columns: usize) -> Linear {
    cpu.linear(vec![part(rows, columns, None)]).unwrap()
}

fn tensor(cpu: &mut Cpu, rows: usize, width: usize) -> Tensor {
    let table = linear(cpu, 8, width);
    let (ids, mut cache) = (vec![0; rows], cpu.cache());
    cpu.embed(&table, &[Span::ids(&ids, 0, &mut cache)])
}

fn norm(cpu: &mut Cpu, length: usize) -> Norm {
    cpu.norm_weight(vec![1.0; length], NormSpec { epsilon: 1e-6 }).unwrap()
}

#[track_caller]
fn check_panics<T>(operation: impl FnOnce() -> T) {
    assert!(catch_unwind(AssertUnwindSafe(operation)).is_err(), "it accepts the wrong shape");
}

#[test]
fn elementwise_operations_check_their_shapes() {
    let (_, mut cpu) = backend();
    let (one, many) = (tensor(&mut cpu, 1, 64), tensor(&mut cpu, 100_000, 64));
    check_panics(|| cpu.add(one, many));
    let (narrow, wide) = (tensor(&mut cpu, 4, 32), tensor(&mut cpu, 4, 4096));
    check_panics(|| cpu.add(narrow, wide));
    let (gate, up) = (tensor(&mut cpu, 1, 64), tensor(&mut cpu, 100_000, 64));
    check_panics(|| cpu.gate(gate, up, Activation::Silu));
    let (gate, up) = (tensor(&mut cpu, 1, 64), tensor(&mut cpu, 1, 64));
    check_panics(|| cpu.gate(gate, up, Activation::GeluTanh));
    let x = tensor(&mut cpu, 4, 4096);
    for length in [0, 32, 4104] {
        let weight = norm(&mut cpu, length);
        check_panics(|| cpu.norm(&x, &weight));
    }
    check_panics(|| cpu.select(x, &[4]));
    // 36 outputs are not whole vectors.
    let (x, odd) = (tensor(&mut cpu, 1, 32), linear(&mut cpu, 36, 32));
    let [y] = cpu.project(&x, &odd);
    let weight = norm(&mut cpu, 36);
    check_panics(|| cpu.norm(&y, &weight));
    let [z] = cpu.project(&x, &odd);
    check_panics(|| cpu.add(y, z));
}

#[test]
fn projections_check_their_inputs_and_parts() {
    let (_, mut cpu) = backend();
    let (x, weight) = (tensor(&mut cpu, 2, 32), linear(&mut cpu, 16, 4096));
    check_panics(|| cpu.project::<1>(&x, &weight));
    let weight = linear(&mut cpu, 16, 32);
    check_panics(|| cpu.project::<2>(&x, &weight));
    check_panics(|| cpu.linear(vec![part(16, 32, None), part(16, 64, None)]));
    check_panics(|| cpu.linear(vec![part(16, 32, Some(8))]));
    assert!(cpu.linear(vec![part(12, 32, Some(12))]).is_err());
    let mut cache = cpu.cache();
    check_panics(|| cpu.embed(&weight, &[Span::ids(&[16], 0, &mut cache)]));
    let two = cpu.linear(vec![part(16, 32, None), part(16, 32, None)]).unwrap();
    check_panics(|| cpu.embed(&two, &[Span::ids(&[0], 0, &mut cache)]));
}

#[test]
fn attention_checks_tensors_layer_and_spans() {
    let (spec, mut cpu) = backend();
    let (queries, keys) = (spec.attention.heads * spec.attention.head_dim, spec.attention.kv_heads * spec.attention.head_dim);
    let attention = || Attention { spec: spec.attention.clone(), q_norm: None, k_norm: None };
    let mut attend = |[q, k, v]: [(usize, usize); 3], layer: usize, attention: &Attention<Norm>| {
        let qkv = [q, k, v].map(|(rows, width)| tensor(&mut cpu, rows, width));
        let mut cache = cpu.cache();
        let mut spans = [Span::ids(&[1, 2], 0, &mut cache)];
        let step = cpu.begin(&mut spans);
        catch_unwind(AssertUnwindSafe(|| cpu.attend(qkv, attention, layer, &step, &mut spans))).is_ok()
    };
    let right = [(2, queries), (2, keys), (2, keys)];
    assert!(attend(right, 0, &attention()));
    for wrong in [
        [(1, queries), right[1], right[2]],
        [(2, queries + 32), right[1], right[2]],
        [right[0], (2, 32), right[2]],
        [right[0], right[1], (1, keys)],
    ] {
        assert!(!attend(wrong, 0, &attention()), "{wrong:?}");
    }
    assert!(!attend(right, spec.layers, &attention()));
    let mut more_heads = attention();
    more_heads.spec.heads *= 2;
    assert!(!attend(right, 0, &more_heads));
    let mut windowed = attention();
    windowed.spec.window = Some(8);
    assert!(!attend(right, 0, &windowed));
    let short_norm = Attention { k_norm: Some(norm(&mut backend().1, 8)), ..attention() };
    assert!(!attend(right, 0, &short_norm));

    // A step that was begun with other spans.
    let (mut one, mut other) = (cpu.cache(), cpu.cache());
    let step = cpu.begin(&mut [Span::ids(&[1, 2], 0, &mut one)]);
    let qkv = |cpu: &mut Cpu| right.map(|(rows, width)| tensor(cpu, rows, width));
    let (a, b) = (qkv(&mut cpu), qkv(&mut cpu));
    check_panics(|| cpu.attend(a, &attention(), 0, &step, &mut [Span::ids(&[1, 2], 0, &mut other)]));
    cpu.truncate(&mut one, 1);
    check_panics(|| cpu.attend(b, &attention(), 0, &step, &mut [Span::ids(&[1, 2], 0, &mut one)]));
    // A layer that attends twice, or out of order.
    let mut cache = cpu.cache();
    let mut spans = [Span::ids(&[1, 2], 0, &mut cache)];
    let step = cpu.begin(&mut spans);
    let [a, b, c] = [(); 3].map(|()| qkv(&mut cpu));
    check_panics(|| cpu.attend(a, &attention(), 1, &step, &mut spans));
    let step = Step { next_layer: Cell::new(0), ..step };
    cpu.attend(b, &attention(), 0, &step, &mut spans);
    check_panics(|| cpu.attend(c, &attention(), 0, &step, &mut spans));
    // A span that does not continue its cache.
    check_panics(|| cpu.begin(&mut [Span::ids(&[1], 7, &mut other)]));
}

#[test]
fn a_network_that_the_kernels_cannot_compute_is_unsupported() {
    let (spec, _) = backend();
    let open = |change: &dyn Fn(&mut DecoderSpec)| {
        let mut changed = spec.clone();
        change(&mut changed);
        Cpu::open(&changed, &CpuSettings::default()).map(|_| ())
    };
    assert_eq!(open(&|_| ()), Ok(()));
    assert!(open(&|spec| spec.layers = 1 << 46).is_err());
    assert!(open(&|spec| spec.attention.window = Some(4096)).is_err());
    assert!(open(&|spec| spec.attention.softcap = Some(50.0)).is_err());
    assert!(open(&|spec| spec.attention.head_dim = 24).is_err());
    assert!(open(&|spec| spec.mlp.activation = Activation::GeluTanh).is_err());
}

#[test]
fn a_cache_of_another_network_and_too_many_samplers_are_refused() {
    let (spec, mut cpu) = backend();
    let mut small = Cpu::open(&DecoderSpec { layers: 1, ..spec }, &CpuSettings { threads: 1, ..CpuSettings::default() }).unwrap();
    let mut cache = small.cache();
    check_panics(|| cpu.begin(&mut [Span::ids(&[1], 0, &mut cache)]));
    let logits = tensor(&mut cpu, 1, 64);
    let mut samplers = [0, 1].map(|seed| Sampler::new(Sampling { seed, ..Sampling::default() }, None));
    let mut requests: Vec<SampleRequest<'_, Cpu>> =
        samplers.iter_mut().map(|sampler| SampleRequest { sampler, tokens: &[], unread: None }).collect();
    check_panics(|| cpu.sample(logits, &mut requests));
}
