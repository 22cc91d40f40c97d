//! Upper bounds and checks of the sizes that a model's files state.

use super::spec::{AttentionSpec, RopeSpec};

/// Upper bounds of sizes in a file: a larger one is a mistake or an attack. The largest open models stay well below.
pub(super) const HIDDEN_SIZE_MAX: usize = 1 << 16;
pub(super) const INTERMEDIATE_SIZE_MAX: usize = 1 << 18;
pub(super) const LAYERS_MAX: usize = 1024;
pub(super) const HEADS_MAX: usize = 1024;
pub(super) const HEAD_DIM_MAX: usize = 1024;
pub(super) const VOCAB_SIZE_MAX: usize = 1 << 21;
pub(super) const CONTEXT_LENGTH_MAX: usize = 1 << 24;

/// Reads the shape of attention that most networks have.
pub(super) fn attention(heads: usize, kv_heads: usize, head_dim: usize, theta: f32) -> std::result::Result<AttentionSpec, String> {
    if !heads.is_multiple_of(kv_heads) {
        return Err(format!("{heads} heads cannot be divided evenly among {kv_heads} key-value heads"));
    }
    if head_dim == 0 {
        return Err(format!("{heads} heads are more than hidden_size has room for"));
    }
    if !head_dim.is_multiple_of(2) {
        return Err(format!("heads of {head_dim} dimensions cannot be rotated in pairs"));
    }
    let (scale, rope) = (1.0 / (head_dim as f32).sqrt(), Some(RopeSpec { theta }));
    Ok(AttentionSpec { heads, kv_heads, head_dim, scale, rope, window: None, softcap: None })
}
