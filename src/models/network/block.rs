//! The weights of a decoder as a tree, and the visitor that listing and loading share.

use super::spec::{AttentionSpec, MlpSpec};
use crate::models::Result;

/// One layer of a decoder (a transformer block). `L` is the type of a linear projection and `N` that of a norm: a spec, or
/// weights on a backend.
pub struct Block<L, N> {
    pub attention: Attention<N>,
    pub mlp: MlpSpec,
    pub attention_norm: N,
    /// Three matrices: q, k, v.
    pub qkv: L,
    pub attn_output: L,
    pub mlp_norm: N,
    /// Two matrices: gate, up.
    pub gate_up: L,
    pub down: L,
}

/// Shape and QK norms of one layer's attention. The projections are in `Block`.
pub struct Attention<N> {
    pub spec: AttentionSpec,
    /// Norms over each head of q and k, applied before RoPE.
    pub q_norm: Option<N>,
    pub k_norm: Option<N>,
}

/// All weights of a decoder, with `L` and `N` as in `Block`.
pub struct Weights<L, N> {
    pub embedding: L,
    pub blocks: Vec<Block<L, N>>,
    /// The norm before the output head.
    pub final_norm: N,
    /// `None`: tied to the embedding.
    pub lm_head: Option<L>,
}

/// Weight matrices that multiply the same input, of `columns` values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearSpec {
    pub columns: usize,
    pub matrices: Vec<MatrixSpec>,
}

/// One weight matrix, `[rows, columns]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatrixSpec {
    /// The tensor's name without `.weight`.
    pub name: String,
    pub rows: usize,
    /// The name of the bias tensor, which has one value per row.
    pub bias_name: Option<String>,
    /// The head size, if each head's rows are in interleaved RoPE order and must be reordered (`deinterleave_rope_rows`).
    pub interleaved_head_dim: Option<usize>,
}

/// The weight of a norm, a vector of `length` values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NormWeightSpec {
    pub name: String,
    pub length: usize,
}

/// Handles each weight of a visit.
pub(super) trait Visitor {
    type Linear;
    type Norm;
    fn linear(&mut self, spec: LinearSpec) -> Result<Self::Linear>;
    fn norm(&mut self, spec: NormWeightSpec) -> Result<Self::Norm>;
}

impl Weights<LinearSpec, NormWeightSpec> {
    /// Replaces each spec by the visitor's result.
    ///
    /// # Errors
    /// The first error of the visitor.
    pub(super) fn visit<V: Visitor>(self, visitor: &mut V) -> Result<Weights<V::Linear, V::Norm>> {
        Ok(Weights {
            embedding: visitor.linear(self.embedding)?,
            blocks: self.blocks.into_iter().map(|block| block.visit(visitor)).collect::<Result<_>>()?,
            final_norm: visitor.norm(self.final_norm)?,
            lm_head: self.lm_head.map(|head| visitor.linear(head)).transpose()?,
        })
    }
}

impl Block<LinearSpec, NormWeightSpec> {
    fn visit<V: Visitor>(self, visitor: &mut V) -> Result<Block<V::Linear, V::Norm>> {
        Ok(Block {
            attention: Attention {
                spec: self.attention.spec,
                q_norm: self.attention.q_norm.map(|norm| visitor.norm(norm)).transpose()?,
                k_norm: self.attention.k_norm.map(|norm| visitor.norm(norm)).transpose()?,
            },
            mlp: self.mlp,
            attention_norm: visitor.norm(self.attention_norm)?,
            qkv: visitor.linear(self.qkv)?,
            attn_output: visitor.linear(self.attn_output)?,
            mlp_norm: visitor.norm(self.mlp_norm)?,
            gate_up: visitor.linear(self.gate_up)?,
            down: visitor.linear(self.down)?,
        })
    }
}
