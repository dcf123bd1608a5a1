//! So many a second, and no more: without a lock, and without a clock of its own.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bounds how often something is done.
#[derive(Debug)]
pub struct Budget {
    per_second: u32,
    /// The second, in the upper half, and how often it was done in it.
    spent: AtomicU64,
}

impl Budget {
    /// At most that many a second.
    pub const fn new(per_second: u32) -> Self {
        Self { per_second, spent: AtomicU64::new(0) }
    }

    /// Whether it may be done once more in this second (of any clock).
    pub fn take(&self, second: u64) -> bool {
        let second = second << 32;
        let next = |spent: u64| {
            let count = if spent & !u64::from(u32::MAX) == second {
                spent & u64::from(u32::MAX)
            } else {
                0
            };
            (count < u64::from(self.per_second)).then_some(second | (count + 1))
        };
        self.spent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_has_its_own() {
        let budget = Budget::new(2);
        let taken = [7, 7, 7, 8, 8, 8, 7].map(|second| budget.take(second));
        assert_eq!(taken, [true, true, false, true, true, false, true]);
        assert!(!Budget::new(0).take(1));
    }
}
