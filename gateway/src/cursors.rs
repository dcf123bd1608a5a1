//! Stores devices' cursors behind the sessions' backs: the latest of each device, a bounded number at a time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures::StreamExt;
use herald_proto::EventId;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::log::EventLog;

/// Where sessions leave their cursors. Clones share it.
#[derive(Clone)]
pub struct Cursors {
    /// By key; bounded by the number of devices that were connected since the last flush.
    waiting: Arc<Mutex<HashMap<String, EventId>>>,
    arrived: Arc<Notify>,
}

/// Cursors stored at the same time.
const AT_ONCE: usize = 64;

impl Cursors {
    /// Nothing to store yet.
    #[allow(clippy::new_without_default)] // a default would hide that it needs a flusher
    pub fn new() -> Self {
        Self { waiting: Arc::default(), arrived: Arc::default() }
    }

    /// Leaves a cursor. A later one of the same device replaces it.
    pub fn store(&self, key: String, cursor: EventId) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = waiting.entry(key).or_insert(cursor);
        *latest = cursor.max(*latest);
        drop(waiting);
        self.arrived.notify_one();
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
            let batch =
                std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            futures::stream::iter(batch)
                .for_each_concurrent(AT_ONCE, async |(key, cursor)| {
                    if let Err(error) = log.store_cursor(&key, cursor).await {
                        tracing::warn!(%error, "a cursor was not stored: its device will get events again");
                    }
                })
                .await;
            if is_last {
                return;
            }
        }
    }
}
