//! The weights that a spec's network consists of, by name and shape.

use super::block::{Attention, Block, LinearSpec, NormWeight, PartSpec, Visitor, Weights};
use super::spec::{AttentionSpec, DecoderSpec};
use crate::models::Result;
use crate::models::weights::Parameter;

impl DecoderSpec {
    /// Every weight of the network by name and shape.
    pub fn parameters(&self) -> Vec<Parameter> {
        let mut list = ParameterList::default();
        self.weights().visit(&mut list).expect("listing a weight can't fail");
        list.0
    }

    pub fn parameter_count(&self) -> u64 {
        self.parameters().iter().map(Parameter::elements).sum()
    }

    /// The specs of all weights.
    pub(super) fn weights(&self) -> Weights<LinearSpec, NormWeight> {
        Weights {
            embedding: linear(self.hidden_size, vec![part(self.names.embedding.into(), self.vocab_size)]),
            blocks: (0..self.layers).map(|index| self.block(index)).collect(),
            norm: self.norm_weight(self.names.norm.into()),
            lm_head: (!self.tied).then(|| linear(self.hidden_size, vec![part(self.names.lm_head.into(), self.vocab_size)])),
        }
    }

    fn block(&self, index: usize) -> Block<LinearSpec, NormWeight> {
        let n = &self.names;
        let at = |name: &str| format!("{}.{index}.{name}", n.layers);
        let AttentionSpec { heads, kv_heads, head_dim, .. } = self.attention;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let bias = |index: usize| n.qkv_bias.map(|names| at(names[index]));
        let deinterleave = self.rope_interleaved.then_some(head_dim);
        let qkv = vec![
            PartSpec { base: at(n.qkv[0]), rows: q, bias: bias(0), deinterleave },
            PartSpec { base: at(n.qkv[1]), rows: kv, bias: bias(1), deinterleave },
            PartSpec { base: at(n.qkv[2]), rows: kv, bias: bias(2), deinterleave: None },
        ];
        let intermediate = self.mlp.intermediate_size;
        Block {
            attention: Attention { spec: self.attention.clone(), q_norm: None, k_norm: None },
            mlp: self.mlp.clone(),
            attention_norm: self.norm_weight(at(n.attention_norm)),
            qkv: linear(self.hidden_size, qkv),
            attn_output: linear(q, vec![part(at(n.attn_output), self.hidden_size)]),
            mlp_norm: self.norm_weight(at(n.mlp_norm)),
            gate_up: linear(self.hidden_size, vec![part(at(n.gate), intermediate), part(at(n.up), intermediate)]),
            down: linear(intermediate, vec![part(at(n.down), self.hidden_size)]),
        }
    }

    fn norm_weight(&self, name: String) -> NormWeight {
        NormWeight { name, length: self.hidden_size }
    }
}

fn linear(columns: usize, parts: Vec<PartSpec>) -> LinearSpec {
    LinearSpec { columns, parts }
}

fn part(base: String, rows: usize) -> PartSpec {
    PartSpec { base, rows, bias: None, deinterleave: None }
}

/// Lists the weights that it visits.
#[derive(Default)]
pub(super) struct ParameterList(Vec<Parameter>);

impl Visitor for ParameterList {
    type Linear = ();
    type Norm = ();

    fn linear(&mut self, LinearSpec { columns, parts }: LinearSpec) -> Result<()> {
        for PartSpec { base, rows, bias, .. } in parts {
            self.0.push(Parameter::Matrix { base, rows, columns });
            self.0.extend(bias.map(|name| Parameter::Vector { name, length: rows }));
        }
        Ok(())
    }

    fn norm(&mut self, NormWeight { name, length }: NormWeight) -> Result<()> {
        self.0.push(Parameter::Vector { name, length });
        Ok(())
    }
}
