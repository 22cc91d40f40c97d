//! Reuse of computed keys and values: a new sequence starts from the longest cached prefix.

use super::{Batch, Running};
use crate::models::backend::Backend;
use crate::models::cache::common_prefix_len;

impl<B: Backend> Batch<B> {
    /// A cache with the longest prefix of `tokens` that any cache holds, and the prefix's length. The last token is left
    /// out: its logits have to be computed.
    pub(super) fn cached_prefix(&mut self, tokens: &[u32]) -> (B::Cache, usize) {
        let backend = &mut self.decoder.backend;
        let wanted = &tokens[..tokens.len() - 1];
        let ended = self.prefix_cache.longest_prefix(wanted);
        let shared = |r: &Running<B::Cache>| common_prefix_len(r.sequence.computed_tokens(), wanted);
        let running = self.running.iter().map(|r| (r, shared(r))).max_by_key(|(_, shared)| *shared);
        if let Some((origin, shared)) = running
            && shared > ended.map_or(0, |(_, shared)| shared)
        {
            return (backend.fork(&origin.sequence.cache, shared), shared);
        }
        let Some((index, shared)) = ended else { return (backend.cache(), 0) };
        // Take the entry if most of it is reused. Otherwise another sequence may continue from the rest of it.
        if shared * 2 >= self.prefix_cache.get(index).tokens.len() {
            let mut entry = self.prefix_cache.take(index);
            backend.truncate(&mut entry.cache, shared);
            (entry.cache, shared)
        } else {
            (backend.fork(&self.prefix_cache.get(index).cache, shared), shared)
        }
    }
}
