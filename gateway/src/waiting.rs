//! How many requests of all sessions wait for their answers, bounded: when workers or the database can't keep up, what
//! they have not done yet must not grow with the number of clients.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// The count. Clones share it.
#[derive(Debug, Clone)]
pub struct Waiting {
    count: Arc<AtomicUsize>,
    most: usize,
}

/// One session's part of it; dropping it gives it back.
#[derive(Debug)]
pub struct Share {
    waiting: Waiting,
    own: usize,
}

impl Waiting {
    /// Nothing waits yet.
    pub fn new(most: usize) -> Self {
        Self { count: Arc::default(), most }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A new session's part.
    pub fn share(&self) -> Share {
        Share { waiting: self.clone(), own: 0 }
    }
}

impl Share {
    /// The session has this many requests waiting now; returns whether that is too much for all together.
    pub fn set(&mut self, own: usize) -> bool {
        // Only this session changes its own part, and adding wraps: the sum is right whatever the others do meanwhile.
        let change = own.wrapping_sub(self.own);
        let before = self.waiting.count.fetch_add(change, Ordering::Relaxed);
        self.own = own;
        before.wrapping_add(change) > self.waiting.most
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_all_shares_is_bounded_and_a_share_that_is_gone_counts_no_more() {
        let waiting = Waiting::new(5);
        let (mut one, mut other) = (waiting.share(), waiting.share());
        assert!(!one.set(3));
        assert!(!other.set(2));
        assert!(other.set(3));
        assert!(!one.set(2));
        assert!(other.set(4));
        drop(one);
        assert!(!other.set(5));
        drop(other);
        assert_eq!(waiting.count.load(Ordering::Relaxed), 0);
    }
}
