//! Caches of sequences that ended or were cancelled, within a byte budget: "free" means "in here, evictable".

use std::collections::VecDeque;

/// What a new prompt may go on from.
pub struct CacheEntry<C> {
    pub tokens: Vec<u32>,
    pub cache: C,
    pub bytes: usize,
}

/// The oldest first.
pub struct PrefixCache<C> {
    kept: VecDeque<CacheEntry<C>>,
    budget: usize,
    bytes: usize,
}

impl<C> PrefixCache<C> {
    /// A budget of 0 keeps nothing.
    pub fn new(budget: usize) -> Self {
        Self { kept: VecDeque::new(), budget, bytes: 0 }
    }

    /// The entry that shares the most first tokens with the prompt, and how many.
    pub fn longest_prefix(&self, prompt: &[u32]) -> Option<(usize, usize)> {
        let shared = self.kept.iter().enumerate().map(|(index, kept)| (index, common_prefix_len(&kept.tokens, prompt)));
        shared.filter(|(_, shared)| *shared > 0).max_by_key(|(_, shared)| *shared)
    }

    pub fn get(&self, index: usize) -> &CacheEntry<C> {
        &self.kept[index]
    }

    pub fn take(&mut self, index: usize) -> CacheEntry<C> {
        let kept = self.kept.remove(index).expect("an index that `longest_prefix` gave");
        self.bytes -= kept.bytes;
        kept
    }

    /// Keeps the cache, in place of those it goes on from, and drops the oldest beyond the budget.
    pub fn insert(&mut self, new: CacheEntry<C>) {
        if new.bytes > self.budget || new.tokens.is_empty() {
            return;
        }
        self.kept.retain(|old| !new.tokens.starts_with(&old.tokens));
        self.kept.push_back(new);
        self.bytes = self.kept.iter().map(|kept| kept.bytes).sum();
        while self.bytes > self.budget {
            self.take(0);
        }
    }

    pub fn len(&self) -> usize {
        self.kept.len()
    }

    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Length of the common beginning.
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
    fn finds_the_longest_common_beginning() {
        let cache = cache(100, &[&[1, 2, 9], &[1, 2, 3, 4], &[7]]);
        assert_eq!(cache.longest_prefix(&[1, 2, 3, 5]), Some((1, 3)));
        assert_eq!(cache.longest_prefix(&[8]), None);
    }

    #[test]
    fn the_oldest_goes_first() {
        let cache = cache(20, &[&[1], &[2], &[3]]);
        assert_eq!((cache.len(), cache.bytes()), (2, 20));
        assert_eq!(cache.longest_prefix(&[1]), None);
    }

    #[test]
    fn a_longer_text_replaces_what_it_goes_on_from() {
        assert_eq!(cache(100, &[&[1, 2], &[3], &[1, 2, 3]]).len(), 2);
    }

    #[test]
    fn no_budget_keeps_nothing() {
        assert!(cache(0, &[&[1]]).is_empty());
    }
}
