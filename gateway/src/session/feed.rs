//! Which events a device gets next, pure: live ones while nothing is missing before them, the log's otherwise, never
//! more unacked than the window holds.

use std::time::{Duration, Instant};

use herald_proto::{
    EventId,
    frame::{Event, EventBody, to_text, with_id},
};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::{output::Output, window::Window};
use crate::{inbox::Fetched, log::Place, metrics::Origin};

/// A device's place in its user's log.
#[derive(Debug)]
pub struct Feed {
    window: Window,
    /// The last event in the window; everything up to it was sent.
    tail: EventId,
    /// The user's last event up to `tail`: what the next one names as `prev`.
    last_event: EventId,
    /// The highest event known to be in the log.
    seen: EventId,
    /// Whether a read of the log is under way.
    fetching: bool,
    /// Whether the log may hold events after `tail` that were not offered live.
    behind: bool,
    /// Whether the last read has left something in the log.
    goes_on: bool,
    /// When the log is read again, after a read has failed: not before, whatever comes in meanwhile, and not later.
    retry_at: Option<Instant>,
}

/// How long to wait before a log that could not be read is read again.
const RETRY: Duration = Duration::from_secs(1);

/// How long to wait before a log is read again that does not yet hold what was heard of.
const LAG: Duration = Duration::from_millis(50);

impl Feed {
    /// A device whose log goes on at `place`.
    pub fn new(place: Place, window: usize, window_bytes: usize) -> Self {
        let Place { cursor, begins_after } = place;
        Self {
            window: Window::new(cursor, window, window_bytes),
            tail: cursor,
            last_event: begins_after.unwrap_or(cursor),
            seen: cursor,
            fetching: false,
            behind: begins_after.is_none(),
            goes_on: false,
            retry_at: None,
        }
    }

    /// First of all the log is read, unless nothing can wait there.
    pub fn start(&mut self, out: &mut Vec<Output>) {
        self.fetch_if_due(out);
    }

    /// The id up to which the device has acked everything.
    pub fn cursor(&self) -> EventId {
        self.window.cursor()
    }

    /// Whether the event was sent and not acked.
    pub fn holds(&self, id: EventId) -> bool {
        self.window.holds(id)
    }

    /// Where an event comes from that was sent and not acked.
    pub fn origin(&self, id: EventId) -> Option<Origin> {
        self.window.origin(id)
    }

    /// How many events were sent and not acked.
    pub fn unacked(&self) -> usize {
        self.window.len()
    }

    /// The device has taken an event; returns whether the cursor moved.
    pub fn ack(&mut self, id: EventId, out: &mut Vec<Output>) -> bool {
        let has_moved = self.window.ack(id);
        self.fetch_if_due(out);
        has_moved
    }

    /// An event has come into the log; returns whether it is sent at once.
    pub fn live(
        &mut self,
        id: EventId,
        prev: EventId,
        body: &[u8],
        origin: Origin,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> bool {
        if id <= self.tail {
            return false;
        }
        self.seen = self.seen.max(id);
        // It directly follows what was sent if the event before it is the last one that was. If the log holds nothing
        // after an earlier one, it has lost what was sent, and may have lost more: reading it will show.
        let follows = prev <= self.tail && prev >= self.last_event;
        if self.behind || self.fetching || !follows || self.window.room() == 0 {
            self.behind = true;
            self.fetch_if_due(out);
            return false;
        }
        self.last_event = prev;
        self.deliver(id, body, origin, now, out)
    }

    /// A sweep has found the user's last event.
    pub fn tail(&mut self, id: EventId, out: &mut Vec<Output>) {
        if id > self.tail {
            self.seen = self.seen.max(id);
            self.behind = true;
            self.fetch_if_due(out);
        }
    }

    /// The log was read.
    pub fn fetched(&mut self, fetched: Fetched, clock: i64, now: Instant, out: &mut Vec<Output>) {
        self.fetching = false;
        if let Some(place) = fetched.resync {
            if let Ok(frame) = to_text(&Event::new(clock, EventBody::Resync)) {
                out.push(Output::Send(frame.into()));
            }
            self.window.reset(place);
            self.tail = place;
            self.last_event = EventId::NONE;
        } else if !fetched.is_there {
            // A new device's place: the user had no event before it.
            self.last_event = EventId::NONE;
        }
        let is_empty = fetched.events.is_empty();
        for (id, body, origin) in fetched.events {
            if id > self.tail {
                self.deliver(id, &body, origin, now, out);
            }
        }
        self.goes_on = fetched.more;
        self.behind = fetched.more || self.seen > self.tail;
        if self.behind && is_empty {
            // A replica that lags has answered.
            self.retry_at = Some(now + LAG);
        }
        self.fetch_if_due(out);
    }

    /// Reading the log has failed.
    pub fn not_fetched(&mut self, now: Instant) {
        self.fetching = false;
        self.behind = true;
        self.retry_at = Some(now + RETRY);
    }

    /// Sends again what was not acked for `ack_wait`, and reads a log again that could not be read.
    pub fn tick(&mut self, now: Instant, ack_wait: Duration, out: &mut Vec<Output>) {
        out.extend(self.window.take_due(now, ack_wait).into_iter().map(Output::Send));
        self.retry_at = self.retry_at.filter(|at| *at > now);
        self.fetch_if_due(out);
    }

    /// When [`tick`](Self::tick) has something to do.
    pub fn next_tick(&self, ack_wait: Duration) -> Option<Instant> {
        [self.window.next_due(ack_wait), self.retry_at].into_iter().flatten().min()
    }

    /// Returns whether it is an event.
    fn deliver(
        &mut self,
        id: EventId,
        body: &[u8],
        origin: Origin,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> bool {
        let text = std::str::from_utf8(body).ok();
        let frame = text.and_then(|body| with_id(body, id, self.last_event));
        self.tail = id;
        self.last_event = id;
        self.seen = self.seen.max(id);
        let Some(frame) = frame.map(Utf8Bytes::from) else {
            // Only a worker writes to the log, and it writes JSON: whoever else did meant no client.
            tracing::error!(
                event.id = id.0,
                "an event in the log is not a JSON object, it is left out"
            );
            return false;
        };
        self.window.push(id, frame.clone(), origin, now);
        out.push(Output::Send(frame));
        true
    }

    fn is_fetch_due(&self) -> bool {
        self.behind && !self.fetching && self.retry_at.is_none() && self.window.is_half_free()
    }

    fn fetch_if_due(&mut self, out: &mut Vec<Output>) {
        if self.is_fetch_due() {
            self.fetching = true;
            self.behind = false;
            let (after, limit, goes_on) = (self.tail, self.window.room(), self.goes_on);
            out.push(Output::Fetch { after, limit, goes_on });
        }
    }
}
