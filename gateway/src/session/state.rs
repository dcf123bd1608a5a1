//! The rules of a session, pure: what comes in is told by its methods, what has to happen is a list of [`Output`]s, and
//! time is passed in. No socket, no clock, no broker.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use herald_proto::{
    CloseCode, Error, EventId, RequestId, UserId,
    frame::{Answer, ClientFrame, Event, EventBody, Refusal, Request, Response, to_text, with_id},
};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::{bucket::Bucket, window::Window};
use crate::config::Limits;

/// What a session has to do next.
#[derive(Debug, PartialEq)]
pub enum Output {
    /// Send this frame to the client.
    Send(Utf8Bytes),
    /// Send a WebSocket ping.
    Ping,
    /// Publish a request.
    Publish {
        /// The client's id of it.
        id: RequestId,
        /// The sender's clock, in milliseconds since the Unix epoch.
        sent_at: i64,
        /// What is asked.
        request: Request,
    },
    /// Tell a peer that the user is writing.
    Typing(UserId),
    /// The user says that it goes offline.
    Offline,
    /// Read up to `limit` events from the log, from `after` on.
    Fetch {
        /// The last event the session has.
        after: EventId,
        /// How many there is room for.
        limit: usize,
    },
    /// Store the cursor.
    StoreCursor(EventId),
    /// End the session.
    Close(CloseCode, String),
}

/// What was read from the log.
#[derive(Debug)]
pub struct Fetched {
    /// The events after the one asked from: id and body without `id` and `prev`.
    pub events: Vec<(EventId, bytes::Bytes)>,
    /// Whether there are more.
    pub more: bool,
    /// Set if the log no longer reaches back to the event asked from: the place from which it was read instead.
    pub resync: Option<EventId>,
}

/// A session's state.
#[derive(Debug)]
pub struct State {
    user: UserId,
    limits: Limits,
    window: Window,
    bucket: Bucket,
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
    open: VecDeque<(Instant, RequestId)>,
    typing: HashMap<UserId, Instant>,
    heard_at: Instant,
    pinged_at: Option<Instant>,
    stored_cursor: EventId,
    cursor_due: Option<Instant>,
    expires_at: Option<Instant>,
    binary_frames: u32,
    refused_in_a_row: u32,
    draining: bool,
}

/// Milliseconds after which a client may try a request again.
const RETRY_AFTER: u64 = 1000;
/// Binary frames that are answered before they count as abuse.
const BINARY_FRAMES: u32 = 3;
/// Refused frames in a row that end a session.
const REFUSED_IN_A_ROW: u32 = 1000;
/// One `typing` a chat in this time is passed on.
const TYPING_INTERVAL: Duration = Duration::from_secs(1);
/// Chats whose last `typing` is remembered.
const TYPING_CHATS: usize = 32;

impl State {
    /// A session whose device has acked everything up to `cursor`; `expires_at` is when its token does.
    pub fn new(
        user: UserId,
        limits: Limits,
        cursor: EventId,
        expires_at: Option<Instant>,
        now: Instant,
    ) -> Self {
        Self {
            user,
            window: Window::new(cursor, limits.window, limits.window_bytes),
            bucket: Bucket::new(limits.rate, limits.burst, now),
            limits,
            tail: cursor,
            last_event: cursor,
            seen: cursor,
            fetching: false,
            behind: true,
            open: VecDeque::new(),
            typing: HashMap::new(),
            heard_at: now,
            pinged_at: None,
            stored_cursor: cursor,
            cursor_due: None,
            expires_at,
            binary_frames: 0,
            refused_in_a_row: 0,
            draining: false,
        }
    }

    /// The session begins: first of all it reads its log.
    pub fn start(&mut self, out: &mut Vec<Output>) {
        self.fetch_if_due(out);
    }

    /// The client has sent a text.
    pub fn text(&mut self, text: &str, clock: i64, now: Instant, out: &mut Vec<Output>) {
        self.heard(now);
        let frame = ClientFrame::parse(text);
        // Taking what was sent is what the service waits for: it costs nothing.
        let is_free = matches!(frame, Ok(ClientFrame::Ack(id)) if self.window.holds(id));
        if !is_free && let Err(retry_after) = self.bucket.take(now) {
            self.refuse(&frame, Error::rate_limited(retry_after), clock, out);
            return;
        }
        self.refused_in_a_row = 0;
        if text.len() > self.limits.max_frame_bytes {
            answer(id_of(&frame), clock, too_large(self.limits.max_frame_bytes), out);
            return;
        }
        match frame {
            Ok(ClientFrame::Request { id, timestamp, request }) => {
                self.request(id, timestamp, request, clock, now, out);
            }
            Ok(ClientFrame::Ack(id)) => self.ack(id, clock, now, out),
            Ok(ClientFrame::Typing(typing)) => self.typing(typing.chat_id, now, out),
            Ok(ClientFrame::Offline) => out.push(Output::Offline),
            Ok(ClientFrame::UnknownEvent) => {}
            Err(Refusal { id, error }) => {
                answer(id.as_ref().map(text_of), clock, Answer::Failed(error), out);
            }
        }
    }

    /// The client has sent a binary frame, which this protocol does not have.
    pub fn binary(&mut self, clock: i64, now: Instant, out: &mut Vec<Output>) {
        self.heard(now);
        self.binary_frames += 1;
        if self.binary_frames > BINARY_FRAMES {
            out.push(Output::Close(
                CloseCode::Abuse,
                "binary frames are not part of the protocol".into(),
            ));
        } else {
            answer(
                None,
                clock,
                Answer::Failed(Error::bad_request("frames are JSON text, not binary")),
                out,
            );
        }
    }

    /// The client shows that it lives.
    pub fn heard(&mut self, now: Instant) {
        self.heard_at = now;
        self.pinged_at = None;
    }

    fn refuse(
        &mut self,
        frame: &Result<ClientFrame, Refusal>,
        error: Error,
        clock: i64,
        out: &mut Vec<Output>,
    ) {
        self.refused_in_a_row += 1;
        if self.refused_in_a_row > REFUSED_IN_A_ROW {
            out.push(Output::Close(CloseCode::RateLimited, "over the rate limit for long".into()));
        } else if !is_event(frame) {
            answer(id_of(frame), clock, Answer::Failed(error), out);
        }
    }

    fn request(
        &mut self,
        id: RequestId,
        sent_at: i64,
        request: Request,
        clock: i64,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let error = if *request.peer() == self.user {
            Error::bad_request("payload.chatId: there is no chat with oneself")
        } else if self.open.iter().any(|(_, open)| *open == id) {
            Error::bad_request("id: a request with this id is open")
        } else if self.draining {
            Error::unavailable("this gateway is restarting", RETRY_AFTER)
        } else if self.open.len() >= self.limits.max_open_requests {
            Error::rate_limited(RETRY_AFTER)
        } else {
            self.open.push_back((now + self.limits.request_timeout, id.clone()));
            out.push(Output::Publish { id, sent_at, request });
            return;
        };
        answer(Some(text_of(&id)), clock, Answer::Failed(error), out);
    }

    fn ack(&mut self, id: EventId, clock: i64, now: Instant, out: &mut Vec<Output>) {
        if self.window.ack(id) && self.cursor_due.is_none() {
            self.cursor_due = Some(now + self.limits.cursor_interval);
        }
        answer(Some(id.to_string()), clock, Answer::Done, out);
        self.fetch_if_due(out);
    }

    fn typing(&mut self, peer: UserId, now: Instant, out: &mut Vec<Output>) {
        if peer == self.user {
            return;
        }
        self.typing.retain(|_, at| now.saturating_duration_since(*at) < TYPING_INTERVAL);
        if self.typing.len() >= TYPING_CHATS || self.typing.contains_key(&peer) {
            return;
        }
        self.typing.insert(peer.clone(), now);
        out.push(Output::Typing(peer));
    }

    /// A request was answered. An answer that nobody waits for any more is dropped: its client was told to ask again.
    pub fn reply(&mut self, id: &str, frame: Utf8Bytes, out: &mut Vec<Output>) {
        if let Some(index) = self.open.iter().position(|(_, open)| open.as_str() == id) {
            self.open.remove(index);
            out.push(Output::Send(frame));
            self.close_if_drained(out);
        }
    }

    /// An open request could not be published.
    pub fn not_published(&mut self, id: &RequestId, clock: i64, out: &mut Vec<Output>) {
        if let Some(index) = self.open.iter().position(|(_, open)| open == id) {
            self.open.remove(index);
            let error = Error::unavailable("the service can't take the request now", RETRY_AFTER);
            answer(Some(text_of(id)), clock, Answer::Failed(error), out);
            self.close_if_drained(out);
        }
    }

    /// An event has come into the log.
    pub fn live(
        &mut self,
        id: EventId,
        prev: EventId,
        body: &[u8],
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        if id <= self.tail {
            return;
        }
        self.seen = self.seen.max(id);
        // It directly follows what was sent if the event before it lies at or below the tail.
        if self.behind || self.fetching || prev > self.tail || self.window.room() == 0 {
            self.behind = true;
            self.fetch_if_due(out);
        } else {
            self.last_event = prev;
            self.deliver(id, body, now, out);
        }
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
            self.store_cursor(out);
        }
        for (id, body) in fetched.events {
            if id > self.tail {
                self.deliver(id, &body, now, out);
            }
        }
        self.behind = fetched.more || self.seen > self.tail;
        self.fetch_if_due(out);
    }

    /// Reading the log has failed; it is tried again with the next tick.
    pub fn not_fetched(&mut self) {
        self.fetching = false;
        self.behind = true;
    }

    fn deliver(&mut self, id: EventId, body: &[u8], now: Instant, out: &mut Vec<Output>) {
        let frame =
            std::str::from_utf8(body).ok().and_then(|body| with_id(body, id, self.last_event));
        self.tail = id;
        self.last_event = id;
        self.seen = self.seen.max(id);
        let Some(frame) = frame else {
            // Only a worker writes to the log, and it writes JSON: whoever else did meant no client.
            tracing::error!(
                event.id = id.0,
                "an event in the log is not a JSON object, it is left out"
            );
            return;
        };
        let frame = Utf8Bytes::from(frame);
        self.window.push(id, frame.clone(), now);
        out.push(Output::Send(frame));
    }

    fn fetch_if_due(&mut self, out: &mut Vec<Output>) {
        if self.behind && !self.fetching && self.window.is_half_free() {
            self.fetching = true;
            self.behind = false;
            out.push(Output::Fetch { after: self.tail, limit: self.window.room() });
        }
    }

    /// The gateway is stopping: open requests are finished, then the session ends.
    pub fn drain(&mut self, out: &mut Vec<Output>) {
        self.draining = true;
        self.close_if_drained(out);
    }

    fn close_if_drained(&self, out: &mut Vec<Output>) {
        if self.draining && self.open.is_empty() {
            out.push(Output::Close(CloseCode::ServiceRestart, String::new()));
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, clock: i64, now: Instant, out: &mut Vec<Output>) {
        if self.expires_at.is_some_and(|at| at <= now) {
            out.push(Output::Close(CloseCode::Unauthenticated, "the token has expired".into()));
            return;
        }
        if now.saturating_duration_since(self.heard_at) >= self.limits.idle_timeout {
            out.push(Output::Close(CloseCode::Idle, "no sign of life".into()));
            return;
        }
        if self.ping_due().is_some_and(|at| at <= now) {
            self.pinged_at = Some(now);
            out.push(Output::Ping);
        }
        while let Some((_, id)) = self.open.pop_front_if(|(deadline, _)| *deadline <= now) {
            let error = Error::unavailable("the request was not answered in time", RETRY_AFTER);
            answer(Some(text_of(&id)), clock, Answer::Failed(error), out);
            self.close_if_drained(out);
        }
        out.extend(self.window.take_due(now, self.limits.ack_wait).into_iter().map(Output::Send));
        if self.cursor_due.is_some_and(|at| at <= now) {
            self.store_cursor(out);
        }
        self.fetch_if_due(out);
    }

    /// Stores the cursor if it has moved since it was stored.
    pub fn store_cursor(&mut self, out: &mut Vec<Output>) {
        self.cursor_due = None;
        if self.window.cursor() > self.stored_cursor {
            self.stored_cursor = self.window.cursor();
            out.push(Output::StoreCursor(self.stored_cursor));
        }
    }

    fn ping_due(&self) -> Option<Instant> {
        self.pinged_at.is_none().then_some(self.heard_at + self.limits.ping_interval)
    }

    /// When [`tick`](Self::tick) has something to do.
    pub fn next_tick(&self, now: Instant) -> Instant {
        let retry = (self.behind && !self.fetching && self.window.is_half_free())
            .then_some(now + Duration::from_secs(1));
        [
            Some(self.heard_at + self.limits.idle_timeout),
            self.ping_due(),
            self.expires_at,
            self.open.front().map(|(deadline, _)| *deadline),
            self.window.next_due(self.limits.ack_wait),
            self.cursor_due,
            retry,
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(now + self.limits.ping_interval)
    }
}

fn answer(id: Option<String>, clock: i64, answer: Answer, out: &mut Vec<Output>) {
    match to_text(&Response { id, timestamp: clock, answer }) {
        Ok(text) => out.push(Output::Send(text.into())),
        Err(error) => tracing::error!(%error, "a response can't be written"),
    }
}

fn too_large(limit: usize) -> Answer {
    Answer::Failed(Error::too_large(limit))
}

/// Events are never answered.
fn is_event(frame: &Result<ClientFrame, Refusal>) -> bool {
    use ClientFrame::{Offline, Typing, UnknownEvent};
    matches!(frame, Ok(Typing(_) | Offline | UnknownEvent))
}

/// The id under which a frame is answered, if it can be read.
fn id_of(frame: &Result<ClientFrame, Refusal>) -> Option<String> {
    match frame {
        Ok(ClientFrame::Request { id, .. }) => Some(text_of(id)),
        Ok(ClientFrame::Ack(id)) => Some(id.to_string()),
        Ok(_) => None,
        Err(refusal) => refusal.id.as_ref().map(text_of),
    }
}

fn text_of(id: &RequestId) -> String {
    id.as_str().to_owned()
}

#[cfg(test)]
mod tests;
