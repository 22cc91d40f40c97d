//! The one decoder that runs every `DecoderSpec`.

use super::block::{LinearSpec, MatrixSpec, NormWeightSpec, Visitor, Weights};
#[cfg(test)]
use super::parameters::ParameterList;
use super::spec::DecoderSpec;
use crate::failpoints::{self, Point};
use crate::models::backend::{Backend, LinearPart, Span};
use crate::models::weights::{Parameter, Tensors};
use crate::models::{Error, Result};

/// A network with its weights on a backend.
pub struct Decoder<B: Backend> {
    pub backend: B,
    pub spec: DecoderSpec,
    weights: Weights<B::Linear, B::Norm>,
}

impl<B: Backend> Decoder<B> {
    /// Bytes that the loaded parameters take.
    pub fn weight_bytes(spec: &DecoderSpec, tensors: &Tensors<'_>) -> Result<u64> {
        let parameters = spec.parameters();
        tensors.expect(&parameters)?;
        let bytes = |parameter: &Parameter| match parameter {
            Parameter::Vector { length, .. } => Ok(length * size_of::<f32>()),
            Parameter::Matrix { name, rows, columns } => {
                Ok(B::weight_bytes(&tensors.matrix(name, *rows, *columns, spec.quantization(name))?))
            }
        };
        parameters.iter().map(|parameter| bytes(parameter).map(|bytes| bytes as u64)).sum()
    }

    /// Loads every parameter. `progress` is called with the number of parameters loaded and their total.
    ///
    /// # Errors
    /// `Weights` if the tensors are not exactly the spec's parameters; `ModelFile` for a tensor of another shape or type.
    pub fn load(spec: DecoderSpec, tensors: &Tensors<'_>, backend: B, progress: &mut dyn FnMut(u64, u64)) -> Result<Self> {
        let parameters = spec.parameters();
        tensors.expect(&parameters)?;
        let total = parameters.iter().map(Parameter::elements).sum();
        let mut loader = Loader { spec: &spec, tensors, backend, done: 0, total, progress };
        let weights = spec.weights().visit(&mut loader)?;
        let backend = loader.backend;
        Ok(Self { backend, spec, weights })
    }

    /// A decoder whose weights mean nothing to its backend.
    #[cfg(test)]
    pub(crate) fn without_weights(spec: DecoderSpec, backend: B) -> Self
    where
        B: Backend<Linear = (), Norm = ()>,
    {
        let weights = spec.weights().visit(&mut ParameterList::default()).expect("nothing is loaded");
        Self { backend, spec, weights }
    }

    /// Computes every span's new tokens. Returns the logits of the given rows, `[rows.len(), vocab_size]`.
    pub fn step(&mut self, spans: &mut [Span<'_, B>], rows: &[usize]) -> B::Tensor {
        let (backend, weights) = (&mut self.backend, &self.weights);
        let step = backend.begin(spans);
        let mut x = backend.embed(&weights.embedding, spans);
        for (layer, block) in weights.blocks.iter().enumerate() {
            let normed = backend.norm(&x, &block.attention_norm);
            let qkv = backend.project(&normed, &block.qkv);
            let attended = backend.attend(qkv, &block.attention, layer, &step, spans);
            let [y] = backend.project(&attended, &block.attn_output);
            x = backend.add(x, y);

            let normed = backend.norm(&x, &block.mlp_norm);
            let [gate, up] = backend.project(&normed, &block.gate_up);
            let hidden = backend.gate(gate, up, block.mlp.activation);
            let [y] = backend.project(&hidden, &block.down);
            x = backend.add(x, y);
        }
        let selected = backend.select(x, rows);
        let normed = backend.norm(&selected, &weights.final_norm);
        let [logits] = backend.project(&normed, weights.lm_head.as_ref().unwrap_or(&weights.embedding));
        logits
    }
}

struct Loader<'a, B> {
    spec: &'a DecoderSpec,
    tensors: &'a Tensors<'a>,
    backend: B,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl<B: Backend> Loader<'_, B> {
    fn vector(&mut self, name: &str, length: usize) -> Result<Vec<f32>> {
        let vector = self.tensors.vector(name, length)?;
        self.report(length as u64);
        Ok(vector)
    }

    fn report(&mut self, parameters: u64) {
        self.done += parameters;
        (self.progress)(self.done, self.total);
    }
}

impl<B: Backend> Visitor for Loader<'_, B> {
    type Linear = B::Linear;
    type Norm = B::Norm;

    fn linear(&mut self, LinearSpec { columns, matrices }: LinearSpec) -> Result<B::Linear> {
        let mut loaded = Vec::with_capacity(matrices.len());
        for MatrixSpec { name, rows, bias_name, interleaved_head_dim } in &matrices {
            failpoints::check(Point::LoadPack, None).map_err(|fault| self.tensors.error(name, fault))?;
            let weight = self.tensors.matrix(name, *rows, columns, self.spec.quantization(name))?;
            let weight = match interleaved_head_dim {
                Some(head_dim) => weight.deinterleave_rope_rows(*head_dim),
                None => weight,
            };
            let bias = bias_name.as_ref().map(|name| self.vector(name, *rows)).transpose()?;
            loaded.push(LinearPart { weight, bias });
        }
        let linear = self.backend.linear(loaded).map_err(|error| match error {
            // The error names the first matrix: only the number of inputs can be unsupported, and all matrices have the same.
            Error::Unsupported(reason) => self.tensors.error(&format!("{}.weight", matrices[0].name), reason),
            other => other,
        })?;
        for MatrixSpec { name, rows, .. } in &matrices {
            self.tensors.release_pages(name);
            self.report((rows * columns) as u64);
        }
        Ok(linear)
    }

    fn norm(&mut self, NormWeightSpec { name, length }: NormWeightSpec) -> Result<B::Norm> {
        let weight = self.vector(&name, length)?;
        self.backend.norm_weight(weight, self.spec.norm)
    }
}
