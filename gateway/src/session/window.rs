//! The ack window of a session, pure: which events were sent and not acked, in id order, bounded by count and bytes.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use herald_proto::EventId;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::metrics::Origin;

/// Events sent to a device and not yet acked.
#[derive(Debug)]
pub struct Window {
    entries: VecDeque<Entry>,
    bytes: usize,
    max_entries: usize,
    max_bytes: usize,
    cursor: EventId,
}

#[derive(Debug)]
struct Entry {
    id: EventId,
    frame: Utf8Bytes,
    sent_at: Instant,
    origin: Origin,
    acked: bool,
}

impl Window {
    /// An empty window; `cursor` is the id up to which the device has acked everything.
    pub fn new(cursor: EventId, max_entries: usize, max_bytes: usize) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, max_entries, max_bytes, cursor }
    }

    /// The id up to which the device has acked everything.
    pub fn cursor(&self) -> EventId {
        self.cursor
    }

    /// How many more events fit; 0 also when the bytes are used up. A single event fits whatever its size.
    pub fn room(&self) -> usize {
        if self.bytes >= self.max_bytes {
            0
        } else {
            self.max_entries.saturating_sub(self.entries.len())
        }
    }

    /// Whether at least half of the window is free: the time to fetch more, a good many at once.
    pub fn is_half_free(&self) -> bool {
        self.room() * 2 >= self.max_entries
    }

    /// Whether everything sent was acked.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes an event that is being sent. Ids must increase.
    pub fn push(&mut self, id: EventId, frame: Utf8Bytes, origin: Origin, now: Instant) {
        debug_assert!(
            id > self.entries.back().map_or(self.cursor, |last| last.id),
            "ids must increase"
        );
        self.bytes += frame.len();
        self.entries.push_back(Entry { id, frame, sent_at: now, origin, acked: false });
    }

    /// How many events it holds.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the event was sent and not acked.
    pub fn holds(&self, id: EventId) -> bool {
        self.origin(id).is_some()
    }

    /// Where an event comes from that was sent and not acked.
    pub fn origin(&self, id: EventId) -> Option<Origin> {
        let index = self.entries.binary_search_by_key(&id, |entry| entry.id).ok()?;
        self.entries.get(index).filter(|entry| !entry.acked).map(|entry| entry.origin)
    }

    /// Marks an event as acked; returns whether the cursor moved. Unknown and old ids change nothing.
    pub fn ack(&mut self, id: EventId) -> bool {
        let Ok(index) = self.entries.binary_search_by_key(&id, |entry| entry.id) else {
            return false;
        };
        if let Some(entry) = self.entries.get_mut(index) {
            entry.acked = true;
        }
        let before = self.cursor;
        while let Some(first) = self.entries.pop_front_if(|first| first.acked) {
            self.bytes = self.bytes.saturating_sub(first.frame.len());
            self.cursor = first.id;
        }
        self.cursor != before
    }

    /// The unacked events that were last sent `wait` or longer ago, in order; they count as sent now.
    pub fn take_due(&mut self, now: Instant, wait: Duration) -> Vec<Utf8Bytes> {
        let due = |entry: &&mut Entry| {
            !entry.acked && now.saturating_duration_since(entry.sent_at) >= wait
        };
        self.entries
            .iter_mut()
            .filter(due)
            .map(|entry| {
                entry.sent_at = now;
                entry.frame.clone()
            })
            .collect()
    }

    /// When the next unacked event is due, if there is one.
    pub fn next_due(&self, wait: Duration) -> Option<Instant> {
        self.entries.iter().filter(|entry| !entry.acked).map(|entry| entry.sent_at + wait).min()
    }

    /// Forgets everything below `cursor`: the log no longer has it.
    pub fn reset(&mut self, cursor: EventId) {
        self.entries.clear();
        self.bytes = 0;
        self.cursor = cursor;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(id: u64) -> Utf8Bytes {
        format!("event {id}").into()
    }

    #[test]
    fn bytes_are_bounded_but_one_event_always_fits() {
        let now = Instant::now();
        let mut window = Window::new(EventId(0), 8, 10);
        assert!(window.room() > 0);
        window.push(EventId(1), "x".repeat(50).into(), Origin::default(), now);
        assert_eq!(window.room(), 0);
        assert!(window.ack(EventId(1)));
        assert_eq!(window.room(), 8);
    }

    proptest! {
        #[test]
        fn what_is_not_acked_is_sent_again_in_order_and_the_cursor_never_passes_it(
            gaps in prop::collection::vec(1..5_u64, 1..40),
            acks in prop::collection::vec(0..200_u64, 0..60),
        ) {
            let (start, wait) = (Instant::now(), Duration::from_secs(1));
            let mut window = Window::new(EventId(3), 64, 1 << 20);
            let mut ids = Vec::new();
            let mut next = 3;
            for gap in gaps {
                next += gap;
                ids.push(next);
                window.push(EventId(next), frame(next), Origin::default(), start);
            }
            let mut acked = std::collections::HashSet::new();
            for ack in acks {
                window.ack(EventId(ack));
                acked.insert(ack);
                let open: Vec<u64> = ids.iter().copied().filter(|id| !acked.contains(id)).collect();
                if let Some(first) = open.first() {
                    prop_assert!(window.cursor() < EventId(*first));
                } else {
                    prop_assert_eq!(window.cursor(), EventId(next));
                    prop_assert!(window.is_empty());
                }
            }
            let open: Vec<Utf8Bytes> = ids.iter().filter(|id| !acked.contains(id)).map(|id| frame(*id)).collect();
            prop_assert_eq!(window.take_due(start + wait, wait), open);
            prop_assert!(window.take_due(start + wait, wait).is_empty());
        }
    }
}
