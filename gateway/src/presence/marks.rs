//! The marks that removed keys leave in the bucket, as far as this gateway has removed them: whoever comes back while its
//! mark stays is written after it, and nothing has to be read for that.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use herald_proto::UserId;
use tokio::time::Instant;

/// Known marks, bounded.
#[derive(Default)]
pub struct Marks {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Each mark's revision, and when it was left.
    marks: HashMap<UserId, (u64, Instant)>,
    /// When marks were left, and whose: the oldest first. Some may be gone or left anew since.
    left: VecDeque<(Instant, UserId)>,
}

/// How long the mark of a removed key stays in the bucket, for gateways to compare revisions.
pub const TTL: Duration = Duration::from_secs(60);
/// The most that are kept.
const MOST: usize = 100_000;
/// How many of the oldest may be dropped when one is added: no one waits for a thousand.
const DROPPED: usize = 4;

impl Marks {
    fn known(&self) -> MutexGuard<'_, Known> {
        // Whatever is missing is only read from the broker, whoever panicked while holding the lock.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A user's key was removed, which left a mark of this revision.
    pub fn insert(&self, user: UserId, revision: u64) {
        let (now, mut known) = (Instant::now(), self.known());
        for _ in 0..DROPPED {
            let is_full = known.left.len() >= MOST;
            let oldest = known.left.pop_front_if(|(at, _)| is_full || at.elapsed() >= TTL);
            let Some((left_at, user)) = oldest else { break };
            if known.marks.get(&user).is_some_and(|(_, at)| *at == left_at) {
                known.marks.remove(&user);
            }
        }
        known.left.push_back((now, user.clone()));
        known.marks.insert(user, (revision, now));
    }

    /// The revision of a user's mark, if it is known and stays; it is about to be replaced.
    pub fn take(&self, user: &UserId) -> Option<u64> {
        let (revision, left_at) = self.known().marks.remove(user)?;
        (left_at.elapsed() < TTL).then_some(revision)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn user(name: impl ToString) -> UserId {
        UserId::new(name.to_string()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_mark_is_known_once_and_for_as_long_as_it_stays() {
        let marks = Marks::default();
        marks.insert(user("a"), 1);
        marks.insert(user("b"), 2);
        assert_eq!(marks.take(&user("a")), Some(1));
        assert_eq!(marks.take(&user("a")), None);
        advance(TTL).await;
        assert_eq!(marks.take(&user("b")), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_are_dropped_in_time_and_those_left_anew_are_not() {
        let marks = Marks::default();
        for number in 0..MOST {
            marks.insert(user(number), 1);
        }
        advance(TTL / 2).await;
        marks.take(&user(1));
        marks.insert(user(1), 2);
        assert!(marks.known().left.len() <= MOST && marks.known().marks.len() <= MOST);
        advance(TTL / 2).await;
        for number in 0..MOST / 2 {
            marks.insert(user(format!("later-{number}")), 3);
        }
        assert_eq!(marks.take(&user(1)), Some(2), "left anew");
        assert!(marks.known().marks.len() <= MOST / 2 + 1, "those before have gone");
    }
}
