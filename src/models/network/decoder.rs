//! The one decoder that runs every `DecoderSpec`.

use super::DecoderSpec;
use crate::failpoints::{self, Point};
use crate::models::backend::{Backend, Norm, Span};
use crate::models::weights::{Matrix, Parameter, Tensors};
use crate::models::{Error, Result};

struct Layer<B: Backend> {
    attention_norm: Norm<B>,
    qkv: [B::Matrix; 3],
    qkv_bias: Option<[B::Vector; 3]>,
    output: B::Matrix,
    mlp_norm: Norm<B>,
    gate: B::Matrix,
    up: B::Matrix,
    down: B::Matrix,
}

/// A network with its weights on a backend.
pub struct Decoder<B: Backend> {
    pub backend: B,
    pub spec: DecoderSpec,
    embedding: B::Matrix,
    layers: Vec<Layer<B>>,
    norm: Norm<B>,
    /// `None`: tied to the embedding.
    head: Option<B::Matrix>,
}

impl<B: Backend> Decoder<B> {
    /// Bytes that the loaded parameters take.
    pub fn weight_bytes(spec: &DecoderSpec, tensors: &Tensors<'_>) -> Result<u64> {
        let parameters = spec.parameters();
        tensors.expect(&parameters)?;
        let bytes = |parameter: &Parameter| match parameter {
            Parameter::Vector { length, .. } => Ok(length * size_of::<f32>()),
            Parameter::Matrix { base, rows, columns } => {
                Ok(B::matrix_bytes(&tensors.matrix(base, *rows, *columns, spec.quantization(base))?))
            }
        };
        parameters.iter().map(|parameter| bytes(parameter).map(|bytes| bytes as u64)).sum()
    }

    /// Loads every parameter; `progress` hears parameters done and in all.
    pub fn load(spec: DecoderSpec, tensors: &Tensors<'_>, backend: B, progress: &mut dyn FnMut(u64, u64)) -> Result<Self> {
        let parameters = spec.parameters();
        tensors.expect(&parameters)?;
        let total = parameters.iter().map(Parameter::elements).sum();
        let mut load = Load { spec: &spec, tensors, backend, done: 0, total, progress };
        let names = spec.names.clone();
        let embedding = load.matrix(names.embedding.into(), spec.vocab_size, spec.hidden_size)?;
        let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let mut layers = Vec::with_capacity(spec.layers);
        for index in 0..spec.layers {
            let at = |name: &str| spec.layer_name(index, name);
            layers.push(Layer {
                attention_norm: load.norm(at(names.attention_norm))?,
                qkv: [
                    load.rotated(at(names.qkv[0]), q)?,
                    load.rotated(at(names.qkv[1]), kv)?,
                    load.matrix(at(names.qkv[2]), kv, spec.hidden_size)?,
                ],
                qkv_bias: match names.qkv_bias {
                    Some([q_bias, k_bias, v_bias]) => {
                        Some([load.vector(at(q_bias), q)?, load.vector(at(k_bias), kv)?, load.vector(at(v_bias), kv)?])
                    }
                    None => None,
                },
                output: load.matrix(at(names.attn_output), spec.hidden_size, q)?,
                mlp_norm: load.norm(at(names.mlp_norm))?,
                gate: load.matrix(at(names.gate), spec.intermediate_size, spec.hidden_size)?,
                up: load.matrix(at(names.up), spec.intermediate_size, spec.hidden_size)?,
                down: load.matrix(at(names.down), spec.hidden_size, spec.intermediate_size)?,
            });
        }
        let norm = load.norm(names.norm.into())?;
        let head = if spec.tied { None } else { Some(load.matrix(names.lm_head.into(), spec.vocab_size, spec.hidden_size)?) };
        let backend = load.backend;
        Ok(Self { backend, embedding, layers, norm, head, spec })
    }

    /// Runs every span's new tokens and returns the logits of the chosen rows, `[rows.len(), vocabulary]`.
    pub fn step(&mut self, spans: &mut [Span<'_, B::Cache>], rows: &[usize]) -> B::Tensor {
        let backend = &mut self.backend;
        let mut x = backend.embed(&self.embedding, spans);
        for (index, layer) in self.layers.iter().enumerate() {
            let normed = backend.norm(&x, &layer.attention_norm);
            let [q, k, v] = &layer.qkv;
            let mut qkv: [B::Tensor; 3] = backend.project(&normed, &[q, k, v]).try_into().ok().expect("three in, three out");
            if let Some([q, k, v]) = &layer.qkv_bias {
                let [x, y, z] = qkv;
                qkv = [backend.bias(x, q), backend.bias(y, k), backend.bias(z, v)];
            }
            let attended = backend.attend(qkv, index, &self.spec, spans);
            let y = one(backend.project(&attended, &[&layer.output]));
            x = backend.add(x, y);

            let normed = backend.norm(&x, &layer.mlp_norm);
            let [gate, up] = backend.project(&normed, &[&layer.gate, &layer.up]).try_into().ok().expect("two in, two out");
            let hidden = backend.gate(gate, up);
            let y = one(backend.project(&hidden, &[&layer.down]));
            x = backend.add(x, y);
        }
        let chosen = backend.select(x, rows);
        let normed = backend.norm(&chosen, &self.norm);
        one(backend.project(&normed, &[self.head.as_ref().unwrap_or(&self.embedding)]))
    }
}

fn one<T>(mut list: Vec<T>) -> T {
    list.pop().expect("one in, one out")
}

struct Load<'a, B> {
    spec: &'a DecoderSpec,
    tensors: &'a Tensors<'a>,
    backend: B,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl<B: Backend> Load<'_, B> {
    fn matrix(&mut self, base: String, rows: usize, columns: usize) -> Result<B::Matrix> {
        let matrix = self.tensors.matrix(&base, rows, columns, self.spec.quantization(&base))?;
        self.pack(base, matrix)
    }

    /// A projection to q or k, whose rows the decoder rotates by halves of a head.
    fn rotated(&mut self, base: String, rows: usize) -> Result<B::Matrix> {
        let matrix = self.tensors.matrix(&base, rows, self.spec.hidden_size, self.spec.quantization(&base))?;
        let matrix = if self.spec.rope_interleaved { matrix.deinterleave_rope_rows(self.spec.head_dim) } else { matrix };
        self.pack(base, matrix)
    }

    fn pack(&mut self, base: String, matrix: Matrix<'_>) -> Result<B::Matrix> {
        let (rows, columns) = matrix.shape();
        failpoints::check(Point::LoadPack, None).map_err(|fault| self.tensors.error(&base, fault))?;
        let weight = self.backend.matrix(&matrix).map_err(|e| match e {
            Error::Unsupported(reason) => self.tensors.error(&format!("{base}.weight"), reason),
            other => other,
        })?;
        self.tensors.release_pages(&base);
        self.report((rows * columns) as u64);
        Ok(weight)
    }

    fn norm(&mut self, name: String) -> Result<Norm<B>> {
        Ok(Norm { weight: self.vector(name, self.spec.hidden_size)?, epsilon: self.spec.norm_epsilon })
    }

    fn vector(&mut self, name: String, length: usize) -> Result<B::Vector> {
        let vector = self.tensors.vector(&name, length)?;
        self.report(length as u64);
        self.backend.vector(vector)
    }

    fn report(&mut self, parameters: u64) {
        self.done += parameters;
        (self.progress)(self.done, self.total);
    }
}
