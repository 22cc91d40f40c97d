//! The weights that a spec's network consists of, by name and shape.

use super::block::{Attention, Block, LinearSpec, MatrixSpec, NormWeightSpec, Visitor, Weights};
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
    pub(super) fn weights(&self) -> Weights<LinearSpec, NormWeightSpec> {
        Weights {
            embedding: linear(self.hidden_size, vec![matrix(self.names.embedding.into(), self.vocab_size)]),
            blocks: (0..self.layers).map(|index| self.block(index)).collect(),
            final_norm: self.norm_weight(self.names.norm.into()),
            lm_head: (!self.tied).then(|| linear(self.hidden_size, vec![matrix(self.names.lm_head.into(), self.vocab_size)])),
        }
    }

    fn block(&self, index: usize) -> Block<LinearSpec, NormWeightSpec> {
        let n = &self.names;
        let at = |name: &str| format!("{}.{index}.{name}", n.layers);
        let AttentionSpec { heads, kv_heads, head_dim, .. } = self.attention;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let bias_name = |index: usize| n.qkv_bias.map(|names| at(names[index]));
        let interleaved_head_dim = self.rope_interleaved.then_some(head_dim);
        let qkv = vec![
            MatrixSpec { name: at(n.qkv[0]), rows: q, bias_name: bias_name(0), interleaved_head_dim },
            MatrixSpec { name: at(n.qkv[1]), rows: kv, bias_name: bias_name(1), interleaved_head_dim },
            MatrixSpec { name: at(n.qkv[2]), rows: kv, bias_name: bias_name(2), interleaved_head_dim: None },
        ];
        let intermediate = self.mlp.intermediate_size;
        Block {
            attention: Attention { spec: self.attention.clone(), q_norm: None, k_norm: None },
            mlp: self.mlp.clone(),
            attention_norm: self.norm_weight(at(n.attention_norm)),
            qkv: linear(self.hidden_size, qkv),
            attn_output: linear(q, vec![matrix(at(n.attn_output), self.hidden_size)]),
            mlp_norm: self.norm_weight(at(n.mlp_norm)),
            gate_up: linear(self.hidden_size, vec![matrix(at(n.gate), intermediate), matrix(at(n.up), intermediate)]),
            down: linear(intermediate, vec![matrix(at(n.down), self.hidden_size)]),
        }
    }

    fn norm_weight(&self, name: String) -> NormWeightSpec {
        NormWeightSpec { name, length: self.hidden_size }
    }
}

fn linear(columns: usize, matrices: Vec<MatrixSpec>) -> LinearSpec {
    LinearSpec { columns, matrices }
}

fn matrix(name: String, rows: usize) -> MatrixSpec {
    MatrixSpec { name, rows, bias_name: None, interleaved_head_dim: None }
}

/// Lists the weights that it visits.
#[derive(Default)]
pub(super) struct ParameterList(Vec<Parameter>);

impl Visitor for ParameterList {
    type Linear = ();
    type Norm = ();

    fn linear(&mut self, LinearSpec { columns, matrices }: LinearSpec) -> Result<()> {
        for MatrixSpec { name, rows, bias_name, .. } in matrices {
            self.0.push(Parameter::Matrix { name, rows, columns });
            self.0.extend(bias_name.map(|name| Parameter::Vector { name, length: rows }));
        }
        Ok(())
    }

    fn norm(&mut self, NormWeightSpec { name, length }: NormWeightSpec) -> Result<()> {
        self.0.push(Parameter::Vector { name, length });
        Ok(())
    }
}
