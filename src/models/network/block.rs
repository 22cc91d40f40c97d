//! One walk over a network's weights, which listing, sizing and loading share.

use super::spec::{AttentionSpec, MlpSpec};
use crate::models::Result;

/// One layer of a decoder. `L` and `N` are what stands for a linear projection and for a norm: their specs, or their
/// weights on a backend.
pub struct Block<L, N> {
    pub attention: Attention<N>,
    pub mlp: MlpSpec,
    pub attention_norm: N,
    /// Three parts: q, k, v.
    pub qkv: L,
    pub attn_output: L,
    pub mlp_norm: N,
    /// Two parts: gate, up.
    pub gate_up: L,
    pub down: L,
}

/// The attention of one layer.
pub struct Attention<N> {
    pub spec: AttentionSpec,
    /// Norms over each head of q and k, before rotation.
    pub q_norm: Option<N>,
    pub k_norm: Option<N>,
}

/// A whole decoder, in the same way.
pub struct Weights<L, N> {
    pub embedding: L,
    pub blocks: Vec<Block<L, N>>,
    pub norm: N,
    /// `None`: tied to the embedding.
    pub lm_head: Option<L>,
}

/// Several weight matrices over one input of `columns`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearSpec {
    pub columns: usize,
    pub parts: Vec<PartSpec>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartSpec {
    /// The tensor's name without `.weight`.
    pub base: String,
    pub rows: usize,
    /// Name of the bias, one value per row.
    pub bias: Option<String>,
    /// The rows of each head of this many rows must be deinterleaved for rotation.
    pub deinterleave: Option<usize>,
}

/// A norm's weight, of `length` values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NormWeight {
    pub name: String,
    pub length: usize,
}

/// What is done with each weight on a walk.
pub(super) trait Visitor {
    type Linear;
    type Norm;
    fn linear(&mut self, spec: LinearSpec) -> Result<Self::Linear>;
    fn norm(&mut self, spec: NormWeight) -> Result<Self::Norm>;
}

impl Weights<LinearSpec, NormWeight> {
    pub(super) fn visit<V: Visitor>(self, visitor: &mut V) -> Result<Weights<V::Linear, V::Norm>> {
        Ok(Weights {
            embedding: visitor.linear(self.embedding)?,
            blocks: self.blocks.into_iter().map(|block| block.visit(visitor)).collect::<Result<_>>()?,
            norm: visitor.norm(self.norm)?,
            lm_head: self.lm_head.map(|head| visitor.linear(head)).transpose()?,
        })
    }
}

impl Block<LinearSpec, NormWeight> {
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
