//! The prefix cache: KV caches of finished sequences, kept for later prompts within a byte budget.

use std::collections::VecDeque;

/// The KV cache of a finished sequence.
pub struct CacheEntry<C> {
    /// The tokens whose keys and values are in `cache`.
    pub tokens: Vec<u32>,
    pub cache: C,
    pub bytes: usize,
}

/// Entries from the oldest to the newest; the oldest is evicted first.
pub struct PrefixCache<C> {
    entries: VecDeque<CacheEntry<C>>,
    budget: usize,
    bytes: usize,
}

impl<C> PrefixCache<C> {
    /// `budget` is in bytes; 0 disables the cache.
    pub fn new(budget: usize) -> Self {
        Self { entries: VecDeque::new(), budget, bytes: 0 }
    }

    /// The index of the entry that shares the longest prefix with the prompt, and the prefix's length in tokens.
    pub fn longest_prefix(&self, prompt: &[u32]) -> Option<(usize, usize)> {
        let shared = self.entries.iter().enumerate().map(|(index, entry)| (index, common_prefix_len(&entry.tokens, prompt)));
        shared.filter(|(_, shared)| *shared > 0).max_by_key(|(_, shared)| *shared)
    }

    pub fn get(&self, index: usize) -> &CacheEntry<C> {
        &self.entries[index]
    }

    pub fn take(&mut self, index: usize) -> CacheEntry<C> {
        let entry = self.entries.remove(index).expect("an index from `longest_prefix`");
        self.bytes -= entry.bytes;
        entry
    }

    /// Replaces the entries that are prefixes of the new one, then evicts the oldest until the budget is met.
    /// An entry larger than the budget is dropped.
    pub fn insert(&mut self, new: CacheEntry<C>) {
        if new.bytes > self.budget || new.tokens.is_empty() {
            return;
        }
        self.entries.retain(|old| !new.tokens.starts_with(&old.tokens));
        self.entries.push_back(new);
        self.bytes = self.entries.iter().map(|entry| entry.bytes).sum();
        while self.bytes > self.budget {
            self.take(0);
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Tokens of the longest common prefix.
pub fn common_prefix_len(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(budget: usize, entries: &[&[u32]]) -> PrefixCache<()> {
        let mut cache = PrefixCache::new(budget);
        entries.iter().for_each(|tokens| cache.insert(CacheEntry { tokens: tokens.to_vec(), cache: (), bytes: 10 }));
        cache
    }

    #[test]
    fn finds_the_longest_common_prefix() {
        let cache = cache(100, &[&[1, 2, 9], &[1, 2, 3, 4], &[7]]);
        assert_eq!(cache.longest_prefix(&[1, 2, 3, 5]), Some((1, 3)));
        assert_eq!(cache.longest_prefix(&[8]), None);
    }

    #[test]
    fn the_oldest_entry_is_evicted_first() {
        let cache = cache(20, &[&[1], &[2], &[3]]);
        assert_eq!((cache.len(), cache.bytes()), (2, 20));
        assert_eq!(cache.longest_prefix(&[1]), None);
    }

    #[test]
    fn a_longer_sequence_replaces_its_own_prefix() {
        assert_eq!(cache(100, &[&[1, 2], &[3], &[1, 2, 3]]).len(), 2);
    }

    #[test]
    fn a_budget_of_zero_keeps_no_entry() {
        assert!(cache(0, &[&[1]]).is_empty());
    }
}
