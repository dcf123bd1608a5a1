//! The rules of a session, pure: what comes in is told by its methods, what has to happen is a list of [`Output`]s, and
//! time is passed in. No socket, no clock, no broker.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use herald_proto::{
    CloseCode, Error, EventId, RequestId, UserId,
    frame::{Answer, ClientFrame, Refusal, Request},
    metrics::{RequestKind, TraceId},
    telemetry::Traceparent,
};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::{bucket::Bucket, feed::Feed, output::Output};
use crate::{
    config::Limits,
    inbox::Fetched,
    log::Place,
    metrics::{
        CatchUp, EventPath, FrameKind, FrameOutcome, Metrics, Origin, RequestOutcome, TypingOutcome,
    },
};

mod answer;

use answer::{answer, fail, id_of, is_event, text_of, too_large};

/// A session's state.
#[derive(Debug)]
pub struct State {
    user: UserId,
    limits: Arc<Limits>,
    metrics: Arc<Metrics>,
    feed: Feed,
    bucket: Bucket,
    open: VecDeque<Open>,
    typing: HashMap<UserId, Instant>,
    heard_at: Instant,
    pinged_at: Option<Instant>,
    stored_cursor: EventId,
    cursor_due: Option<Instant>,
    expires_at: Option<Instant>,
    binary_frames: u32,
    /// How many more frames were refused than taken, of late.
    excess: u32,
    /// From when on the client is listened to.
    listens_at: Instant,
    draining: bool,
}

/// A request that waits for its answer.
#[derive(Debug)]
struct Open {
    id: RequestId,
    kind: RequestKind,
    deadline: Instant,
    trace: Option<TraceId>,
}

/// Milliseconds after which a client may try a request again.
const RETRY_AFTER: u64 = 1000;
/// Binary frames that are answered before they count as abuse.
const BINARY_FRAMES: u32 = 3;
/// An excess of refused frames that ends a session.
const MAX_EXCESS: u32 = 1000;
/// How long a client is not listened to after a refused frame: telling a flood that it is too much must not cost what it
/// asks for.
const REFUSAL_PAUSE: Duration = Duration::from_millis(1);
/// One `typing` a chat in this time is passed on.
const TYPING_INTERVAL: Duration = Duration::from_secs(1);
/// Chats whose last `typing` is remembered.
const TYPING_CHATS: usize = 32;

impl State {
    /// A session of a device whose log goes on at `place`; `expires_at` is when its token does.
    pub fn new(
        user: UserId,
        limits: Arc<Limits>,
        metrics: Arc<Metrics>,
        place: Place,
        expires_at: Option<Instant>,
        now: Instant,
    ) -> Self {
        Self {
            user,
            feed: Feed::new(place, limits.window, limits.window_bytes),
            bucket: Bucket::new(limits.rate, limits.burst, now),
            limits,
            metrics,
            open: VecDeque::new(),
            typing: HashMap::new(),
            heard_at: now,
            pinged_at: None,
            stored_cursor: place.cursor,
            cursor_due: None,
            expires_at,
            binary_frames: 0,
            excess: 0,
            listens_at: now,
            draining: false,
        }
    }

    /// The session begins: first of all it reads its log, if something may wait there.
    pub fn start(&mut self, out: &mut Vec<Output>) {
        self.feed.start(out);
    }

    /// The client has sent a text.
    pub fn text(&mut self, text: &str, clock: i64, now: Instant, out: &mut Vec<Output>) {
        self.heard(now);
        let frame = ClientFrame::parse(text);
        let kind = FrameKind::from(&frame);
        // Taking what was sent is what the service waits for: it costs nothing.
        let is_free = matches!(frame, Ok(ClientFrame::Ack(id)) if self.feed.holds(id));
        if !is_free && let Err(retry_after) = self.bucket.take(now) {
            self.metrics.frames.inc(kind, FrameOutcome::RateLimited);
            self.listens_at = now + REFUSAL_PAUSE;
            self.refuse(&frame, Error::rate_limited(retry_after), clock, out);
            return;
        }
        self.excess = self.excess.saturating_sub(1);
        if text.len() > self.limits.max_frame_bytes {
            self.metrics.frames.inc(kind, FrameOutcome::TooLarge);
            answer(id_of(&frame), clock, too_large(self.limits.max_frame_bytes), out);
            return;
        }
        let mut outcome = FrameOutcome::Accepted;
        match frame {
            Ok(ClientFrame::Request { id, timestamp, traceparent, request }) => {
                outcome = self.request(id, (timestamp, traceparent), request, clock, now, out);
            }
            Ok(ClientFrame::Ack(id)) => self.ack(id, clock, now, out),
            Ok(ClientFrame::Typing(typing)) => self.typing(typing.chat_id, now, out),
            Ok(ClientFrame::Offline) => out.push(Output::Offline),
            Ok(ClientFrame::UnknownEvent) => {}
            Err(Refusal { id, error }) => {
                outcome = FrameOutcome::Refused;
                answer(id.as_ref().map(text_of), clock, Answer::Failed(error), out);
            }
        }
        self.metrics.frames.inc(kind, outcome);
    }

    /// The client has sent a binary frame, which this protocol does not have.
    pub fn binary(&mut self, clock: i64, now: Instant, out: &mut Vec<Output>) {
        self.heard(now);
        self.metrics.frames.inc(FrameKind::Binary, FrameOutcome::Refused);
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
        self.excess += 1;
        if self.excess > MAX_EXCESS {
            out.push(Output::Close(CloseCode::RateLimited, "over the rate limit for long".into()));
        } else if !is_event(frame) {
            answer(id_of(frame), clock, Answer::Failed(error), out);
        }
    }

    fn request(
        &mut self,
        id: RequestId,
        (sent_at, traceparent): (i64, Option<Traceparent>),
        request: Request,
        clock: i64,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> FrameOutcome {
        let error = if *request.peer() == self.user {
            Error::bad_request("payload.chatId: there is no chat with oneself")
        } else if self.open.iter().any(|open| open.id == id) {
            Error::bad_request("id: a request with this id is open")
        } else if self.draining {
            Error::unavailable("this gateway is restarting", RETRY_AFTER)
        } else if self.open.len() >= self.limits.max_open_requests {
            Error::rate_limited(RETRY_AFTER)
        } else {
            let (kind, deadline) = (RequestKind::from(&request), now + self.limits.request_timeout);
            self.open.push_back(Open { id: id.clone(), kind, deadline, trace: None });
            out.push(Output::Publish { id, sent_at, traceparent, request });
            return FrameOutcome::Accepted;
        };
        answer(Some(text_of(&id)), clock, Answer::Failed(error), out);
        FrameOutcome::Refused
    }

    fn ack(&mut self, id: EventId, clock: i64, now: Instant, out: &mut Vec<Output>) {
        answer(Some(id.to_string()), clock, Answer::Done, out);
        if let Some(origin) = self.feed.origin(id) {
            self.metrics.acked(&origin, clock);
        }
        if self.feed.ack(id, out) && self.cursor_due.is_none() {
            self.cursor_due = Some(now + self.limits.cursor_interval);
        }
    }

    fn typing(&mut self, peer: UserId, now: Instant, out: &mut Vec<Output>) {
        if peer == self.user {
            return;
        }
        self.typing.retain(|_, at| now.saturating_duration_since(*at) < TYPING_INTERVAL);
        if self.typing.len() >= TYPING_CHATS || self.typing.contains_key(&peer) {
            self.metrics.typing.inc(TypingOutcome::Dropped);
            return;
        }
        self.metrics.typing.inc(TypingOutcome::Forwarded);
        self.typing.insert(peer.clone(), now);
        out.push(Output::Typing(peer));
    }

    /// A request was answered. An answer that nobody waits for any more is dropped: its client was told to ask again.
    pub fn reply(&mut self, id: &str, frame: Utf8Bytes, now: Instant, out: &mut Vec<Output>) {
        let index = self.open.iter().position(|open| open.id.as_str() == id);
        if let Some(open) = index.and_then(|index| self.open.remove(index)) {
            let left = open.deadline.saturating_duration_since(now);
            let after = self.limits.request_timeout.saturating_sub(left);
            self.metrics.answered(open.kind, after, open.trace);
            out.push(Output::Answer(open.id, frame));
            self.close_if_drained(out);
        }
    }

    /// An open request could not be published.
    pub fn not_published(&mut self, id: &RequestId, clock: i64, out: &mut Vec<Output>) {
        let index = self.open.iter().position(|open| open.id == *id);
        if let Some(open) = index.and_then(|index| self.open.remove(index)) {
            self.metrics.requests.inc(open.kind, RequestOutcome::NotPublished);
            let error = Error::unavailable("the service can't take the request now", RETRY_AFTER);
            fail(open.id, clock, error, out);
            self.close_if_drained(out);
        }
    }

    /// An open request is traced.
    pub fn traced(&mut self, id: &RequestId, trace: TraceId) {
        // It was opened just now.
        if let Some(open) = self.open.iter_mut().rev().find(|open| open.id == *id) {
            open.trace = Some(trace);
        }
    }

    /// How many events were sent and not acked.
    pub fn unacked(&self) -> usize {
        self.feed.unacked()
    }

    /// How many requests wait for their answers.
    pub fn open_requests(&self) -> usize {
        self.open.len()
    }

    /// An event has come into the log.
    pub fn live(
        &mut self,
        id: EventId,
        prev: EventId,
        body: &[u8],
        origin: Origin,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        if self.feed.live(id, prev, body, origin, now, out) {
            self.count(EventPath::Live, out.last());
            self.metrics.delivered(&origin);
        }
    }

    /// An event that is in no log is passed on.
    pub fn passed_on(&self, frame: Utf8Bytes, out: &mut Vec<Output>) {
        self.metrics.event(&frame, EventPath::Live);
        out.push(Output::Send(frame));
    }

    /// Counts the events among these outputs, none of which is an answer.
    fn count<'a>(&self, path: EventPath, outputs: impl IntoIterator<Item = &'a Output>) {
        for output in outputs {
            if let Output::Send(frame) = output {
                self.metrics.event(frame, path);
            }
        }
    }

    /// A sweep has found the user's last event.
    pub fn tail(&mut self, id: EventId, out: &mut Vec<Output>) {
        self.feed.tail(id, out);
    }

    /// The log was read.
    pub fn fetched(&mut self, fetched: Fetched, clock: i64, now: Instant, out: &mut Vec<Output>) {
        let is_resync = fetched.resync.is_some();
        // What came in while the session was open, and was not heard live.
        fetched.events.iter().for_each(|(_, _, origin)| self.metrics.delivered(origin));
        let before = out.len();
        self.feed.fetched(fetched, clock, now, out);
        self.count(EventPath::Log, out.iter().skip(before));
        self.metrics.catch_ups.inc(if is_resync { CatchUp::Resync } else { CatchUp::Read });
        if is_resync {
            self.store_cursor(out);
        }
    }

    /// Reading the log has failed; it is tried again after a while.
    pub fn not_fetched(&mut self, now: Instant) {
        self.metrics.catch_ups.inc(CatchUp::Failed);
        self.feed.not_fetched(now);
    }

    /// The gateway is stopping: open requests are finished, then the session ends.
    pub fn drain(&mut self, out: &mut Vec<Output>) {
        self.draining = true;
        self.close_if_drained(out);
    }

    fn close_if_drained(&self, out: &mut Vec<Output>) -> bool {
        let is_drained = self.draining && self.open.is_empty();
        if is_drained {
            out.push(Output::Close(CloseCode::ServiceRestart, String::new()));
        }
        is_drained
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
        while let Some(Open { id, kind, .. }) = self.open.pop_front_if(|open| open.deadline <= now)
        {
            self.metrics.requests.inc(kind, RequestOutcome::TimedOut);
            let error = Error::unavailable("the request was not answered in time", RETRY_AFTER);
            fail(id, clock, error, out);
        }
        if self.close_if_drained(out) {
            return;
        }
        let before = out.len();
        self.feed.tick(now, self.limits.ack_wait, out);
        self.count(EventPath::Again, out.iter().skip(before));
        if self.cursor_due.is_some_and(|at| at <= now) {
            self.store_cursor(out);
        }
    }

    /// Stores the cursor if it has moved since it was stored.
    pub fn store_cursor(&mut self, out: &mut Vec<Output>) {
        self.cursor_due = None;
        if self.feed.cursor() > self.stored_cursor {
            self.stored_cursor = self.feed.cursor();
            out.push(Output::StoreCursor(self.stored_cursor));
        }
    }

    fn ping_due(&self) -> Option<Instant> {
        self.pinged_at.is_none().then_some(self.heard_at + self.limits.ping_interval)
    }

    /// From when on the client may be listened to.
    pub fn listens_at(&self) -> Instant {
        self.listens_at
    }

    /// When [`tick`](Self::tick) has something to do. Does not depend on when it is asked: what comes in more often than
    /// that puts nothing off.
    pub fn next_tick(&self) -> Instant {
        [
            self.ping_due(),
            self.expires_at,
            self.open.front().map(|open| open.deadline),
            self.feed.next_tick(self.limits.ack_wait),
            self.cursor_due,
        ]
        .into_iter()
        .flatten()
        .fold(self.heard_at + self.limits.idle_timeout, Instant::min)
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
