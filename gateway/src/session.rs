//! One client's session: a task that owns the socket, the ack window and the cursor. Its rules are in [`state`]; here
//! is what they act on.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt, future::OptionFuture};
use herald_proto::{
    CloseCode, DeviceId, UserId,
    clock::now_ms,
    frame::{Event, EventBody},
    link::Link,
    metrics::Part,
    payload::Typing,
    subject,
    telemetry::Sampler,
    wire::Signal,
};
use serde_json::value::to_raw_value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
    time::timeout,
};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::Limits,
    cursors::Cursors,
    door::Door,
    error::Error,
    inbox::{Delivery, Inbox},
    log::EventLog,
    metrics::{Close, Metrics, Stage},
    presence::Presence,
    publisher::Publisher,
    registry::{Registry, Seat},
    spans::Source,
    waiting::{Share, Waiting},
};

mod act;
mod begin;
pub mod bucket;
pub mod feed;
pub mod output;
pub mod socket;
pub mod state;
pub mod traces;
pub mod window;

use act::Step;
pub use begin::begin;
pub use output::Output;
pub use socket::Socket;
pub use state::State;
pub use traces::Traces;

/// What all sessions of a gateway share.
pub struct Shared {
    /// The gateway's name.
    pub gateway: Arc<str>,
    /// What a client may do.
    pub limits: Arc<Limits>,
    /// The connection, for signals.
    pub client: async_nats::Client,
    /// The logs.
    pub log: EventLog,
    /// Where cursors are stored.
    pub cursors: Cursors,
    /// Where requests go.
    pub publisher: Arc<Publisher>,
    /// Which requests are traced.
    pub sampler: Sampler,
    /// How fast clients come and go.
    pub door: Arc<Door>,
    /// How many requests wait for their answers.
    pub waiting: Waiting,
    /// Where sessions are found.
    pub registry: Registry,
    /// The connection for requests, replies and live events.
    pub tap: Arc<Link>,
    /// Who is told that users come and go.
    pub presence: Presence,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the gateway drains.
    pub drain: CancellationToken,
    /// Cancelled when the gateway can't wait any longer for open requests.
    pub cut: CancellationToken,
    /// The sessions' tasks, to be waited for.
    pub tasks: TaskTracker,
}

/// Who a client is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The user.
    pub user: UserId,
    /// The device.
    pub device: DeviceId,
    /// When the client's token expires, if it does.
    pub expires_at: Option<Instant>,
}

/// A session under way.
struct Session<S> {
    shared: Arc<Shared>,
    identity: Identity,
    socket: Socket<S>,
    seat: Seat,
    state: State,
    traces: Traces,
    waiting: Share,
    /// Its part of all events that are not acked.
    unacked: Part,
    /// It among the connections of its state.
    counted: Part,
    is_present: bool,
}

/// The most messages of a client that are taken before they are answered.
const AT_A_TIME: usize = 16;
/// How long a closing session waits for its cursor to be stored.
const CURSOR_PATIENCE: Duration = Duration::from_secs(2);

impl Shared {
    async fn typing(&self, user: UserId, peer: &UserId) {
        let event = Event::new(now_ms(), EventBody::Typing(Typing { chat_id: user }));
        if let Ok(frame) = to_raw_value(&event) {
            self.signal(peer, &Signal::Frame(frame)).await;
        }
    }

    async fn signal(&self, user: &UserId, signal: &Signal) {
        let Ok(body) = serde_json::to_vec(signal) else { return };
        if let Err(error) = self.client.publish(subject::live(user), body.into()).await {
            tracing::debug!(%error, "a signal was lost");
        }
    }
}

type Closing = Option<(CloseCode, String)>;

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    async fn run(mut self: Box<Self>) {
        let closing = self.serve().await;
        // Boxed, so that a session that lives does not keep room for its end.
        Box::pin(self.end(closing)).await;
    }

    /// Returns how the session has to be closed; `None` if the client is gone.
    async fn serve(&mut self) -> Closing {
        let mut out = Vec::new();
        let mut fetching = OptionFuture::from(None);
        let inbox = self.seat.inbox.clone();
        let (mut draining, mut cut) = (
            pin!(self.shared.drain.clone().cancelled_owned()),
            pin!(self.shared.cut.clone().cancelled_owned()),
        );
        let mut is_draining = false;
        let mut ending = None;
        let mut alarm = pin!(tokio::time::sleep_until(self.state.next_tick().into()));
        self.state.start(&mut out);
        loop {
            // Boxed while there is something to do, so that an idle session does not keep room for it.
            let steps =
                if out.is_empty() { Vec::new() } else { Box::pin(self.perform(&mut out)).await? };
            for step in steps {
                match step {
                    Step::Fetch { after, limit, goes_on } => {
                        let (log, user) = (self.shared.log.clone(), self.identity.user.clone());
                        // A task of its own: a read that has its turn must go on while this session writes to
                        // a client that does not read, for others wait for theirs.
                        let (mut answer, answered) = oneshot::channel();
                        tokio::spawn(async move {
                            let gone = answer.closed();
                            let fetched = log.fetch(&user, after, limit, goes_on, gone).await;
                            // Nobody may wait for it any more.
                            let _ = answer.send(fetched);
                        });
                        fetching = Some(answered).into();
                    }
                    Step::Close(code, reason) => return Some((code, reason)),
                }
            }
            if let Some(closing) = ending {
                return closing;
            }
            self.waiting.set(self.state.open_requests());
            self.unacked.set(self.state.unacked());
            let (next_tick, listens_at) = (self.state.next_tick(), self.state.listens_at());
            let listens = listens_at <= now();
            // A deadline that has moved further away is left: ticking early does nothing.
            let wake_at = if listens { next_tick } else { next_tick.min(listens_at) }.into();
            if wake_at < alarm.deadline() {
                alarm.as_mut().reset(wake_at);
            }
            tokio::select! {
                first = self.socket.next(), if listens => ending = self.messages(first, &mut out),
                () = inbox.arrived() => {
                    if let Some(close) = self.deliveries(&inbox, &mut out) {
                        return Some(close);
                    }
                }
                Some(fetched) = &mut fetching => {
                    fetching = None.into();
                    match fetched.unwrap_or(Err(Error::Silent("read a log"))) {
                        Ok(mut fetched) => {
                            for (id, parent) in std::mem::take(&mut fetched.traces) {
                                self.traces.heard(id, parent, Source::Log);
                            }
                            fetched.since(self.seat.opened_at);
                            self.state.fetched(fetched, now_ms(), now(), &mut out);
                        }
                        Err(error) => {
                            tracing::warn!(%error, "a log can't be read, trying again");
                            self.state.not_fetched(now());
                        }
                    }
                }
                () = &mut alarm => {
                    self.state.tick(now_ms(), now(), &mut out);
                    self.traces.overdue(&out);
                    alarm.as_mut().reset(self.state.next_tick().into());
                }
                () = &mut draining, if !is_draining => {
                    is_draining = true;
                    self.state.drain(&mut out);
                }
                () = &mut cut => return Some((CloseCode::ServiceRestart, String::new())),
            }
        }
    }

    /// Takes a client's message and those that have come with it: one write answers all. Returns how the session has to be
    /// closed, once what they ask for is done, if that was the last.
    fn messages(
        &mut self,
        first: Result<Message, Closing>,
        out: &mut Vec<Output>,
    ) -> Option<Closing> {
        let mut next = first;
        for count in 1.. {
            let message = match next {
                Ok(message) => message,
                Err(closing) => return Some(closing),
            };
            if self.message(message, out).is_none() {
                return Some(None);
            }
            // What can't be published makes room again: until then no more is refused for want of it.
            let is_full = self.state.open_requests() >= self.shared.limits.max_open_requests;
            if count == AT_A_TIME || is_full || self.state.listens_at() > now() {
                break;
            }
            next = self.socket.next().now_or_never()?;
        }
        None
    }

    /// Takes a client's message; `None` if it was its last.
    fn message(&mut self, message: Message, out: &mut Vec<Output>) -> Option<()> {
        let now = now();
        match message {
            Message::Text(text) => {
                self.traces.received(&text);
                self.state.text(&text, now_ms(), now, out);
            }
            Message::Binary(_) => self.state.binary(now_ms(), now, out),
            // A raw frame is never what a read returns.
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => self.state.heard(now),
            Message::Close(_) => return None,
        }
        Some(())
    }

    fn deliveries(&mut self, inbox: &Inbox, out: &mut Vec<Output>) -> Closing {
        for delivery in inbox.take() {
            match delivery {
                Delivery::Reply { id, frame } => self.state.reply(&id, frame, now(), out),
                Delivery::Unconfirmed(id) => self.state.not_published(&id, now_ms(), out),
                Delivery::Live { id, prev, body, origin } => {
                    self.state.live(id, prev, &body, origin, now(), out);
                }
                Delivery::Traced(id, parent) => self.traces.heard(id, parent, Source::Live),
                Delivery::Tail(id) => self.state.tail(id, out),
                Delivery::Frame(frame) => self.state.passed_on(frame, out),
                Delivery::Close(code, reason) => return Some((code, reason.to_owned())),
            }
        }
        None
    }

    async fn end(mut self: Box<Self>, closing: Closing) {
        let shared = self.shared.clone();
        // Before it waits for anything: a device that is back sooner must not get again what it has acked.
        self.store_last_cursor();
        let Some((code, mut reason)) = closing else {
            shared.door.ends.next().await;
            drop(self.leave(Close::Gone));
            return;
        };
        let (socket, _counted) = self.leave(code.into());
        if code == CloseCode::ServiceRestart {
            reason = shared.door.come_back(shared.registry.len());
        }
        // Wherever the device comes back at once, what it has acked must not come again.
        if timeout(CURSOR_PATIENCE, shared.cursors.stored()).await.is_err() {
            tracing::warn!("a cursor takes long to be stored: its device may get events again");
        }
        tracing::debug!(herald.close_code = code.code(), %reason, "a session is closed");
        socket.close(code, &reason).await;
    }

    fn store_last_cursor(&mut self) {
        let mut out = Vec::new();
        self.state.store_cursor(&mut out);
        for output in out {
            if let Output::StoreCursor(cursor) = output {
                self.store_cursor(cursor);
            }
        }
    }

    /// Gives up everything but the socket, and its place among the connections.
    fn leave(mut self, why: Close) -> (Socket<S>, Part) {
        self.shared.metrics.closed.inc(why);
        self.counted = self.shared.metrics.connections.one(Stage::Closing);
        if self.is_present {
            self.shared.presence.lost(&self.identity.user);
        }
        (self.socket, self.counted)
    }
}

/// The runtime's clock, which a test can pause.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
