//! Which sessions this gateway has, and the live taps that feed them: one subscription for each connected user.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_nats::{Client, HeaderMap, Message, Subscriber};
use futures::StreamExt;
use herald_proto::{
    CloseCode, DeviceId, EventId, UserId, header, subject, telemetry,
    wire::{Replies, Signal},
};
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_util::sync::CancellationToken;

use crate::{
    error::Error,
    inbox::{Delivery, Inbox},
    metrics::Origin,
};

/// The sessions of a gateway. Clones share them.
#[derive(Clone)]
pub struct Registry {
    client: Client,
    gateway: Arc<str>,
    sessions: Arc<Mutex<Sessions>>,
    max_sessions: usize,
}

#[derive(Default)]
struct Sessions {
    next_id: u64,
    by_id: HashMap<u64, Arc<Inbox>>,
    by_user: HashMap<UserId, User>,
}

struct User {
    sessions: Vec<Session>,
    tap: CancellationToken,
}

#[derive(Clone)]
struct Session {
    id: u64,
    device: DeviceId,
    opened_at: i64,
    inbox: Arc<Inbox>,
}

/// A session's place in the registry; dropping it gives the place up.
pub struct Seat {
    registry: Registry,
    user: UserId,
    /// The session's id on this gateway.
    pub id: u64,
    /// What is left for the session.
    pub inbox: Arc<Inbox>,
}

/// Events and frames that may wait for a session. Past it the session reads them from its log.
const INBOX: usize = 256;

impl Registry {
    /// An empty registry.
    pub fn new(client: Client, gateway: Arc<str>, max_sessions: usize) -> Self {
        // Ids of an earlier process must not be taken for ours.
        let sessions = Sessions { next_id: fastrand::u64(1..1 << 40), ..Sessions::default() };
        Self { client, gateway, sessions: Arc::new(Mutex::new(sessions)), max_sessions }
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        // The maps are consistent between calls, whoever panicked while holding them.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many sessions there are.
    pub fn len(&self) -> usize {
        self.sessions().by_id.len()
    }

    /// Whether there is no session.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The users with a session.
    pub fn users(&self) -> Vec<UserId> {
        self.sessions().by_user.keys().cloned().collect()
    }

    /// Takes a seat for a session opened at `now` (milliseconds since the Unix epoch). When it returns, the user's live
    /// tap is under way on the connection: what is asked of the broker from now on is asked after it.
    ///
    /// # Errors
    /// [`Error::Full`], or if the subscription can't be made.
    pub async fn join(&self, user: &UserId, device: &DeviceId, now: i64) -> Result<Seat, Error> {
        // Before the entry is there for others to see, the subscription is on its way: whoever finds the entry may
        // read the log at once.
        let has_tap = self.sessions().by_user.contains_key(user);
        let messages = if has_tap { None } else { Some(self.subscribe(user).await?) };
        if let Some(seat) = self.sit_down(user, device, now, messages)? {
            return Ok(seat);
        }
        // The user's last session left just now, and its tap with it.
        let messages = self.subscribe(user).await?;
        self.sit_down(user, device, now, Some(messages))?.ok_or(Error::Full)
    }

    async fn subscribe(&self, user: &UserId) -> Result<Subscriber, Error> {
        let messages = self.client.subscribe(subject::live(user)).await;
        messages.map_err(Error::broker("subscribe to a user's events"))
    }

    /// Enters a session; `messages` become the user's tap unless there is one. `None` if there is none at all.
    fn sit_down(
        &self,
        user: &UserId,
        device: &DeviceId,
        now: i64,
        messages: Option<Subscriber>,
    ) -> Result<Option<Seat>, Error> {
        let mut sessions = self.sessions();
        if sessions.by_id.len() >= self.max_sessions {
            return Err(Error::Full);
        }
        let (id, inbox) = (sessions.next_id, Arc::new(Inbox::new(INBOX)));
        let session = Session { id, device: device.clone(), opened_at: now, inbox: inbox.clone() };
        match (sessions.by_user.get_mut(user), messages) {
            (Some(entry), _) => entry.sessions.push(session),
            (None, Some(messages)) => {
                let tap = CancellationToken::new();
                tokio::spawn(self.clone().tap(user.clone(), messages, tap.clone()));
                sessions.by_user.insert(user.clone(), User { sessions: vec![session], tap });
            }
            (None, None) => return Ok(None),
        }
        sessions.next_id += 1;
        sessions.by_id.insert(id, inbox.clone());
        Ok(Some(Seat { registry: self.clone(), user: user.clone(), id, inbox }))
    }

    async fn tap(self, user: UserId, mut messages: Subscriber, stop: CancellationToken) {
        loop {
            let message = tokio::select! {
                () = stop.cancelled() => return,
                message = messages.next() => message,
            };
            let Some(message) = message else { return };
            self.deliver(&user, message);
        }
    }

    fn deliver(&self, user: &UserId, message: Message) {
        let sequence = message.headers.as_ref().and_then(|headers| {
            let id = header::number(headers, async_nats::header::NATS_SEQUENCE)?;
            Some((
                EventId(id),
                EventId(header::number(headers, async_nats::header::NATS_LAST_SEQUENCE)?),
            ))
        });
        if let Some((id, prev)) = sequence {
            let _entered = delivery_span(id, message.headers.as_ref()).entered();
            let origin = message.headers.as_ref().map(Origin::of).unwrap_or_default();
            self.to_user(user, |_| {
                Some(Delivery::Live { id, prev, body: message.payload.clone(), origin })
            });
            return;
        }
        match serde_json::from_slice::<Signal>(&message.payload) {
            Ok(Signal::Frame(frame)) => {
                let frame = Utf8Bytes::from(String::from(Box::<str>::from(frame)));
                self.to_user(user, |_| Some(Delivery::Frame(frame.clone())));
            }
            Ok(Signal::Opened { device, at, gateway, session }) => self.to_user(user, |own| {
                let other = (at, gateway.as_str(), session);
                let is_older = (own.opened_at, &*self.gateway, own.id) < other;
                (own.device == device && is_older).then_some(Delivery::Close(
                    CloseCode::Replaced,
                    "a newer session of this device",
                ))
            }),
            Err(error) => tracing::warn!(%error, "a signal is not readable"),
        }
    }

    fn to_user(&self, user: &UserId, delivery: impl Fn(&Session) -> Option<Delivery>) {
        if let Some(entry) = self.sessions().by_user.get(user) {
            for session in &entry.sessions {
                if let Some(delivery) = delivery(session) {
                    session.inbox.push(delivery);
                }
            }
        }
    }

    /// Tells a user's sessions where its log ends.
    pub fn tail(&self, user: &UserId, last: EventId) {
        self.to_user(user, |_| Some(Delivery::Tail(last)));
    }

    /// Hands workers' answers to the sessions that wait for them.
    pub fn replies(&self, message: &Message) {
        let Ok(Replies(replies)) = serde_json::from_slice(&message.payload) else {
            tracing::error!("a worker's replies are not readable");
            return;
        };
        let sessions = self.sessions();
        for reply in replies {
            if let Some(inbox) = sessions.by_id.get(&reply.session) {
                let frame = Utf8Bytes::from(reply.frame.get());
                inbox.push(Delivery::Reply { id: reply.id.into_owned(), frame });
            }
        }
    }
}

/// The span of an event's delivery, if what caused the event is traced.
fn delivery_span(id: EventId, headers: Option<&HeaderMap>) -> tracing::Span {
    if headers.is_none_or(|headers| headers.get(header::TRACEPARENT).is_none()) {
        return tracing::Span::none();
    }
    let span = tracing::info_span!(
        "deliver event",
        otel.kind = "consumer",
        messaging.system = "nats",
        messaging.operation.name = "deliver",
        event.id = id.0,
    );
    telemetry::set_parent(&span, headers);
    span
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut sessions = self.registry.sessions();
        sessions.by_id.remove(&self.id);
        if let Some(entry) = sessions.by_user.get_mut(&self.user) {
            entry.sessions.retain(|session| session.id != self.id);
            if entry.sessions.is_empty() {
                entry.tap.cancel();
                sessions.by_user.remove(&self.user);
            }
        }
    }
}
