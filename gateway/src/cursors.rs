//! Stores devices' cursors behind the sessions' backs: the latest of each device, a bounded number at a time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::StreamExt;
use herald_proto::EventId;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::log::EventLog;

/// Where sessions leave their cursors. Clones share it.
#[derive(Clone)]
pub struct Cursors {
    left: Arc<Mutex<Left>>,
    arrived: Arc<Notify>,
    /// The last round that is over.
    done: watch::Sender<u64>,
}

#[derive(Default)]
struct Left {
    /// By key; bounded by the number of devices that were connected since the last round.
    waiting: HashMap<String, EventId>,
    /// What this round stores.
    under_way: HashMap<String, EventId>,
    /// The round that takes what is waiting.
    next_round: u64,
}

/// Cursors stored at the same time.
const AT_ONCE: usize = 16;

impl Cursors {
    /// Nothing to store yet.
    #[allow(clippy::new_without_default)] // a default would hide that it needs a flusher
    pub fn new() -> Self {
        let left = Left { next_round: 1, ..Left::default() };
        Self {
            left: Arc::new(Mutex::new(left)),
            arrived: Arc::default(),
            done: watch::Sender::new(0),
        }
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        // Every change is one statement: whole, whoever panicked while holding the lock.
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a cursor. A later one of the same device replaces it.
    pub fn store(&self, key: String, cursor: EventId) {
        let mut left = self.left();
        let latest = left.waiting.entry(key).or_insert(cursor);
        *latest = cursor.max(*latest);
        drop(left);
        self.arrived.notify_one();
    }

    /// The cursor that was left under this key and may not be stored yet: a device that comes back at once has acked it.
    pub fn latest(&self, key: &str) -> Option<EventId> {
        let left = self.left();
        left.waiting.get(key).or_else(|| left.under_way.get(key)).copied()
    }

    /// Waits until all that was left before has been stored, or could not be.
    pub async fn stored(&self) {
        let round = {
            let left = self.left();
            if left.waiting.is_empty() { left.next_round - 1 } else { left.next_round }
        };
        // The sender is this very value: it can't be gone.
        let _ = self.done.subscribe().wait_for(|done| *done >= round).await;
    }

    /// Stores what is left here until `stop`, and then what is still there. A cursor that can't be stored means that its
    /// device gets some events twice.
    pub async fn flush_until(&self, log: EventLog, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = self.arrived.notified() => {}
                () = stop.cancelled() => {}
            }
            // Asked before the cursors are taken: what is left after it is asked is taken.
            let is_last = stop.is_cancelled();
            let (batch, round) = {
                let mut left = self.left();
                left.next_round += 1;
                left.under_way = std::mem::take(&mut left.waiting);
                (left.under_way.clone(), left.next_round - 1)
            };
            futures::stream::iter(batch)
                .for_each_concurrent(AT_ONCE, async |(key, cursor)| {
                    if let Err(error) = log.store_cursor(&key, cursor).await {
                        tracing::warn!(%error, "a cursor was not stored: its device will get events again");
                    }
                })
                .await;
            self.left().under_way = HashMap::new();
            self.done.send_replace(round);
            if is_last {
                return;
            }
        }
    }
}
