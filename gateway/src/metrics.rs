//! What a gateway counts and measures. Every handle is resolved once, here: a session pays an atomic add.

use std::time::Duration;

use herald_proto::{
    CloseCode,
    clock::now_ms,
    frame::{self, ClientFrame, Refusal},
    header,
    metrics::{
        BATCH, By, By2, Counter, Gauge, Histogram, LATENCY, Label, ROUND_TRIP, Registry,
        RequestKind, TraceId,
    },
    telemetry::Traceparent,
};

herald_proto::labels! {
    /// What a client sends.
    pub enum FrameKind = "kind" {
        /// A request.
        New = "new",
        /// A request.
        Dlvrd = "dlvrd",
        /// A request.
        Read = "read",
        /// A request.
        Delete = "delete",
        /// An ack.
        Ack = "ack",
        /// An event.
        Typing = "typing",
        /// An event.
        Offline = "offline",
        /// An event that this service does not know.
        Unknown = "unknown",
        /// A text that is no frame.
        Invalid = "invalid",
        /// A binary frame.
        Binary = "binary",
    }

    /// What becomes of it.
    pub enum FrameOutcome = "outcome" {
        /// It is acted on.
        Accepted = "accepted",
        /// The session sends too fast.
        RateLimited = "rate_limited",
        /// It is over the size limit.
        TooLarge = "too_large",
        /// It is answered with an error at once.
        Refused = "refused",
    }

    /// How a request that was accepted ends.
    pub enum RequestOutcome = "outcome" {
        /// With a worker's answer.
        Answered = "answered",
        /// Without an answer in time.
        TimedOut = "timed_out",
        /// There was no place for it, or the broker was away, or did not confirm it.
        NotPublished = "not_published",
    }

    /// What an event tells.
    pub enum EventKind = "kind" {
        /// A message has come.
        New = "new",
        /// The peer has received.
        Dlvrd = "dlvrd",
        /// The peer has read.
        Read = "read",
        /// The peer has taken a message back.
        Delete = "delete",
        /// The peer is writing.
        Typing = "typing",
        /// A contact has come online.
        Online = "online",
        /// A contact has gone offline.
        Offline = "offline",
        /// The log no longer reaches back to where the device was.
        Resync = "resync",
        /// Of another version of this service.
        Unknown = "unknown",
    }

    /// Why an event is sent to a device, or is not.
    pub enum EventPath = "path" {
        /// It has just come.
        Live = "live",
        /// The device catches up from its log.
        Log = "log",
        /// It was sent and not acked in time.
        Again = "again",
        /// It is in no log, and the device does not keep up: it is not sent.
        Dropped = "dropped",
    }

    /// How reading a log ended.
    pub enum CatchUp = "outcome" {
        /// The device goes on where it was.
        Read = "read",
        /// The log no longer reaches back to where it was.
        Resync = "resync",
        /// It is tried again.
        Failed = "failed",
    }

    /// What becomes of a `typing`.
    pub enum TypingOutcome = "outcome" {
        /// It is passed on.
        Forwarded = "forwarded",
        /// It came too soon after the last one, or in too many chats.
        Dropped = "dropped",
    }

    /// How far a connection is.
    pub enum Stage = "state" {
        /// It is no session yet.
        Handshake = "handshake",
        /// Its place and cursor are looked up.
        Opening = "opening",
        /// It serves its client.
        Open = "open",
        /// It says goodbye.
        Closing = "closing",
    }

    /// Whether a client is let in.
    pub enum Login = "outcome" {
        /// It has a session.
        Accepted = "accepted",
        /// It is not who it says.
        Unauthenticated = "unauthenticated",
        /// Too many come at once, or the gateway is full or drains, or the broker is away.
        TryAgain = "try_again",
    }

    /// How a session ends.
    pub enum Close = "code" {
        /// The client went, or its connection broke.
        Gone = "gone",
        /// By the close code of that number.
        ServiceRestart = "1012",
        /// Likewise.
        TryAgainLater = "1013",
        /// Likewise.
        Abuse = "4400",
        /// Likewise.
        Unauthenticated = "4401",
        /// Likewise.
        Idle = "4408",
        /// Likewise.
        Replaced = "4409",
        /// Likewise.
        TooLarge = "4413",
        /// Likewise.
        RateLimited = "4429",
    }

    /// How publishing to `FRAMES` ended.
    pub enum Publishing = "outcome" {
        /// The broker has it.
        Confirmed = "confirmed",
        /// The broker did not say so.
        Failed = "failed",
    }

    /// What contacts are told.
    pub enum Presence = "change" {
        /// A user came.
        Online = "online",
        /// A user went.
        Offline = "offline",
    }
}

/// A gateway's metrics.
#[derive(Debug)]
pub struct Metrics {
    /// Connections there are.
    pub connections: By<Stage, Gauge>,
    /// Clients that came.
    pub logins: By<Login, Counter>,
    /// Sessions that ended.
    pub closed: By<Close, Counter>,
    /// Clients' frames.
    pub frames: By2<FrameKind, FrameOutcome, Counter>,
    /// Requests that ended.
    pub requests: By2<RequestKind, RequestOutcome, Counter>,
    /// From a request's coming to its answer's going out.
    pub response: By<RequestKind, Histogram>,
    /// From a request's coming, here or at another gateway, to its event's going out.
    pub delivery: Histogram,
    /// From a request's coming to the ack of its event.
    pub ack: Histogram,
    /// Events sent to devices.
    pub events: By2<EventKind, EventPath, Counter>,
    /// Events in the windows of all sessions.
    pub unacked: Gauge,
    /// Reads of logs.
    pub catch_ups: By<CatchUp, Counter>,
    /// What typing comes to.
    pub typing: By<TypingOutcome, Counter>,
    /// Publishing to `FRAMES`.
    pub publishes: By<Publishing, Counter>,
    /// How long the broker takes to confirm.
    pub publish: Histogram,
    /// How many requests go in one message.
    pub bundle: Histogram,
    /// What contacts are told.
    pub presence: By<Presence, Counter>,
}

impl Metrics {
    /// A gateway's metrics, in `registry` from now on.
    pub fn new(registry: &mut Registry) -> Self {
        Self {
            connections: registry.gauges(
                "herald_gateway_connections",
                "Connections by their state; those that are open are sessions.",
            ),
            logins: registry.counters(
                "herald_gateway_logins",
                "Clients that finished their handshake, by whether they were let in.",
            ),
            closed: registry.counters(
                "herald_gateway_sessions_closed",
                "Sessions that ended, by close code; gone if the client went by itself.",
            ),
            frames: registry.counters2(
                "herald_gateway_frames",
                "Frames that clients sent, by what they are and what became of them.",
            ),
            requests: registry.counters2(
                "herald_gateway_requests",
                "Requests that were accepted and have ended, by how.",
            ),
            response: registry.histograms(
                "herald_gateway_response_duration_seconds",
                "From a request's coming to its answer's going out.",
                LATENCY,
            ),
            delivery: registry.histogram(
                "herald_gateway_delivery_duration_seconds",
                "From a request's coming to its gateway, to its event's going out to a device that is connected and keeps up.",
                LATENCY,
            ),
            ack: registry.histogram(
                "herald_gateway_ack_duration_seconds",
                "From a request's coming to its gateway, to the ack of its event by such a device.",
                LATENCY,
            ),
            events: registry.counters2(
                "herald_gateway_events",
                "Events sent to devices: live, from the log (log), or again because they were not acked (again); and those without a log that were dropped, for the device does not keep up (dropped).",
            ),
            unacked: registry.gauge(
                "herald_gateway_unacked_events",
                "Events in the windows of all sessions: sent and not acked.",
            ),
            catch_ups: registry.counters("herald_gateway_catch_ups", "Reads of users' logs."),
            typing: registry.counters(
                "herald_gateway_typing",
                "Typing events that were passed on, or dropped because there were too many.",
            ),
            publishes: registry.counters(
                "herald_gateway_publishes",
                "Messages to FRAMES, by whether the broker confirmed them.",
            ),
            publish: registry.histogram(
                "herald_gateway_publish_duration_seconds",
                "How long the broker took to confirm a message to FRAMES, or not to.",
                ROUND_TRIP,
            ),
            bundle: registry.histogram(
                "herald_gateway_publish_requests",
                "How many requests went in one message to FRAMES.",
                BATCH,
            ),
            presence: registry.counters(
                "herald_gateway_presence_changes",
                "Users of whom this gateway told that they came or went.",
            ),
        }
    }

    /// A request was answered.
    pub fn answered(&self, kind: RequestKind, after: Duration, trace: Option<TraceId>) {
        self.requests.inc(kind, RequestOutcome::Answered);
        self.response.observe(kind, after, trace);
    }

    /// An event goes out, or does not.
    pub fn event(&self, frame: &str, path: EventPath) {
        self.events.inc(EventKind::of(frame), path);
    }

    /// An event has gone out live.
    pub fn delivered(&self, origin: &Origin) {
        if let Some(age) = origin.age(now_ms()) {
            self.delivery.observe(age, origin.trace);
        }
    }

    /// An event was acked.
    pub fn acked(&self, origin: &Origin, now: i64) {
        if let Some(age) = origin.age(now) {
            self.ack.observe(age, origin.trace);
        }
    }
}

impl Default for Metrics {
    /// Metrics that nobody reads.
    fn default() -> Self {
        Self::new(&mut Registry::new())
    }
}

/// Where an event comes from.
#[derive(Debug, Clone, Copy, Default)]
pub struct Origin {
    /// When the request behind it came to its gateway, in milliseconds since the Unix epoch; 0 if that is not known.
    pub at: i64,
    /// Its trace, if it has one.
    pub trace: Option<TraceId>,
}

impl Origin {
    /// What an event's message id and trace context say.
    pub fn of(message_id: Option<&str>, parent: Option<Traceparent>) -> Self {
        let at = message_id.and_then(header::received_at).unwrap_or(0);
        Self { at, trace: parent.map(|parent| TraceId::from_bytes(parent.trace_id())) }
    }

    /// How long ago that was; gateways' clocks may differ, but nothing takes less than no time.
    fn age(&self, now: i64) -> Option<Duration> {
        (self.at > 0).then(|| Duration::from_millis(u64::try_from(now - self.at).unwrap_or(0)))
    }
}

impl EventKind {
    /// What an event's frame tells.
    pub fn of(frame: &str) -> Self {
        let kind = frame::event_type(frame);
        Self::ALL.iter().copied().find(|known| kind == Some(known.text())).unwrap_or(Self::Unknown)
    }
}

impl From<&Result<ClientFrame, Refusal>> for FrameKind {
    fn from(frame: &Result<ClientFrame, Refusal>) -> Self {
        match frame {
            Ok(ClientFrame::Request { request, .. }) => match RequestKind::from(request) {
                RequestKind::New => Self::New,
                RequestKind::Dlvrd => Self::Dlvrd,
                RequestKind::Read => Self::Read,
                RequestKind::Delete => Self::Delete,
            },
            Ok(ClientFrame::Ack(_)) => Self::Ack,
            Ok(ClientFrame::Typing(_)) => Self::Typing,
            Ok(ClientFrame::Offline) => Self::Offline,
            Ok(ClientFrame::UnknownEvent) => Self::Unknown,
            Err(_) => Self::Invalid,
        }
    }
}

impl From<CloseCode> for Close {
    fn from(code: CloseCode) -> Self {
        match code {
            CloseCode::ServiceRestart => Self::ServiceRestart,
            CloseCode::TryAgainLater => Self::TryAgainLater,
            CloseCode::Abuse => Self::Abuse,
            CloseCode::Unauthenticated => Self::Unauthenticated,
            CloseCode::Idle => Self::Idle,
            CloseCode::Replaced => Self::Replaced,
            CloseCode::TooLarge => Self::TooLarge,
            CloseCode::RateLimited => Self::RateLimited,
        }
    }
}
