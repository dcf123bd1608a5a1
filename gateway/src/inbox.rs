//! What the rest of the gateway leaves for a session, bounded: a session that does not keep up loses no event, it only
//! learns that it has to read its log again.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use herald_proto::{CloseCode, EventId, RequestId, telemetry::Traceparent};
use tokio::sync::Notify;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::metrics::{EventPath, Metrics, Origin};

/// Something for a session.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// A worker's answer to one of its requests.
    Reply {
        /// The client's id of the request.
        id: String,
        /// The response frame.
        frame: Utf8Bytes,
    },
    /// The broker did not confirm one of its requests.
    Unconfirmed(RequestId),
    /// An event, as it comes into the user's log.
    Live {
        /// Its id.
        id: EventId,
        /// The id of the user's event before it.
        prev: EventId,
        /// The event without `id` and `prev`.
        body: Arc<[u8]>,
        /// Where it comes from.
        origin: Origin,
    },
    /// The event that comes next is part of a trace.
    Traced(EventId, Traceparent),
    /// The id of the user's last event, as found by a sweep.
    Tail(EventId),
    /// A frame to be passed on as it is, or dropped: typing, presence.
    Frame(Utf8Bytes),
    /// The session has to end.
    Close(CloseCode, &'static str),
}

/// What was read from the log.
#[derive(Debug, Default)]
pub struct Fetched {
    /// The events after the one asked from: id, body without `id` and `prev`, and where it comes from.
    pub events: Vec<(EventId, bytes::Bytes, Origin)>,
    /// Those of them that are part of a trace.
    pub traces: Vec<(EventId, Traceparent)>,
    /// Whether there are more.
    pub more: bool,
    /// Whether the event asked from is in the log.
    pub is_there: bool,
    /// Set if the log no longer reaches back to the event asked from: the place from which it was read instead.
    pub resync: Option<EventId>,
}

impl Fetched {
    /// Forgets where events come from that are older than `opened_at`, in milliseconds since the Unix epoch: how long they
    /// took would tell how long the device was away.
    pub fn since(&mut self, opened_at: i64) {
        for (_, _, origin) in &mut self.events {
            if origin.at < opened_at {
                *origin = Origin::default();
            }
        }
    }
}

/// A session's bounded queue of deliveries.
#[derive(Debug)]
pub struct Inbox {
    state: Mutex<State>,
    arrived: Notify,
    /// How many events and frames wait at most. Replies are bounded by the session's open requests.
    capacity: usize,
    /// Where it is counted what was dropped.
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Delivery>,
    /// The highest event id that did not fit.
    missed: Option<EventId>,
}

impl Inbox {
    /// An empty inbox.
    pub fn new(capacity: usize, metrics: Arc<Metrics>) -> Self {
        Self { state: Mutex::default(), arrived: Notify::new(), capacity, metrics }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The queue is whole after every statement, whoever panicked while holding it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves something. Never waits: an event that does not fit is remembered as missed, a frame is dropped.
    pub fn push(&self, delivery: Delivery) {
        let mut state = self.state();
        let is_full = state.queue.len() >= self.capacity;
        match delivery {
            Delivery::Live { id, .. } | Delivery::Tail(id) if is_full => {
                state.missed = state.missed.max(Some(id));
            }
            Delivery::Frame(frame) if is_full => self.metrics.event(&frame, EventPath::Dropped),
            Delivery::Traced(..) if is_full => {}
            other => state.queue.push_back(other),
        }
        drop(state);
        self.arrived.notify_one();
    }

    /// Waits until there is something, unless there already is.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Takes everything, oldest first. What was missed comes last, as a [`Delivery::Tail`].
    pub fn take(&self) -> VecDeque<Delivery> {
        let mut state = self.state();
        let mut all = std::mem::take(&mut state.queue);
        all.extend(state.missed.take().map(Delivery::Tail));
        all
    }
}

#[cfg(test)]
mod tests {
    use herald_proto::metrics::Counter;

    use super::*;
    use crate::metrics::EventKind;

    fn live(id: u64) -> Delivery {
        let origin = Origin::default();
        Delivery::Live { id: EventId(id), prev: EventId(id - 1), body: Arc::default(), origin }
    }

    #[test]
    fn a_full_inbox_drops_bodies_but_remembers_that_there_is_more() {
        let metrics = Arc::new(Metrics::default());
        let inbox = Inbox::new(2, metrics.clone());
        for id in 1..=5 {
            inbox.push(live(id));
        }
        let typing = r#"{"type":"event","timestamp":1,"eventType":"typing","payload":{}}"#;
        inbox.push(Delivery::Frame(typing.into()));
        let dropped = metrics.events.get(EventKind::Typing, EventPath::Dropped);
        assert_eq!(dropped.map(Counter::get), Some(1), "a frame that is in no log is counted");
        inbox.push(Delivery::Reply { id: "1".into(), frame: "answer".into() });
        let all = inbox.take();
        assert_eq!(all.len(), 4);
        assert!(matches!(all[2], Delivery::Reply { .. }));
        assert!(matches!(all[3], Delivery::Tail(EventId(5))));
        assert!(inbox.take().is_empty());
    }
}
