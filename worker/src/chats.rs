//! The chats this worker has worked on lately, as they are stored: while no other worker can have changed them, nothing
//! needs to be looked up for their next frames.
//!
//! Whether one can have is known for sure only at the commit, by the fence. So a chat is taken out while a batch works
//! on it, and put back when the batch is committed, under the tenure in which its partition was learned.

use std::num::NonZeroUsize;

use foldhash::fast::RandomState;
use herald_proto::Chat;
use lru::LruCache;

use crate::{store::Recent, unread::Ledger};

/// A chat as it is stored.
#[derive(Debug, Clone)]
pub struct Remembered {
    /// Its row.
    pub row: i64,
    /// Its counters.
    pub ledger: Ledger,
    /// Its last messages, oldest first.
    pub recent: Vec<Recent>,
}

/// Chats by their members; the one that was not used for longest goes first.
pub struct Chats(LruCache<Chat, (u64, Remembered), RandomState>);

impl Chats {
    /// Room for that many chats.
    pub fn new(capacity: NonZeroUsize) -> Self {
        Self(LruCache::with_hasher(capacity, RandomState::default()))
    }

    /// Takes a chat out, if it was put in during this tenure.
    pub fn take(&mut self, chat: &Chat, tenure: u64) -> Option<Remembered> {
        let (of, remembered) = self.0.pop(chat)?;
        (of == tenure).then_some(remembered)
    }

    /// Puts a chat in as it is stored now.
    pub fn put(&mut self, chat: Chat, tenure: u64, remembered: Remembered) {
        self.0.put(chat, (tenure, remembered));
    }
}

#[cfg(test)]
mod tests {
    use herald_proto::UserId;

    use super::*;

    fn chat(peer: &str) -> Chat {
        Chat::between(&UserId::new("me").unwrap(), &UserId::new(peer).unwrap()).unwrap()
    }

    fn remembered(row: i64) -> Remembered {
        Remembered { row, ledger: Ledger::default(), recent: Vec::new() }
    }

    #[test]
    fn what_was_learned_in_another_tenure_is_forgotten() {
        let mut chats = Chats::new(NonZeroUsize::MIN);
        chats.put(chat("a"), 1, remembered(7));
        assert!(chats.take(&chat("a"), 2).is_none());
        chats.put(chat("a"), 2, remembered(7));
        assert_eq!(chats.take(&chat("a"), 2).unwrap().row, 7);
        assert!(chats.take(&chat("a"), 2).is_none(), "taken out is out");
    }

    #[test]
    fn the_number_of_chats_is_bounded() {
        let mut chats = Chats::new(NonZeroUsize::new(2).unwrap());
        for (row, peer) in (0..).zip(["a", "b", "c"]) {
            chats.put(chat(peer), 1, remembered(row));
        }
        assert!(chats.take(&chat("a"), 1).is_none());
        assert!(chats.take(&chat("c"), 1).is_some());
    }
}
