//! Which sessions this gateway has, and whom workers' replies are for, and what comes through the live taps: one for each
//! connected user.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use herald_proto::{
    CloseCode, DeviceId, EventId, UserId, header,
    link::{
        Link, Receive, command,
        protocol::{self, Message},
    },
    subject,
    telemetry::Traceparent,
    wire::{Replies, Signal},
};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::{
    error::Error,
    inbox::{Delivery, Inbox},
    metrics::{Metrics, Origin},
};

/// The sessions of a gateway. Clones share them.
#[derive(Clone)]
pub struct Registry {
    tap: Arc<Link>,
    gateway: Arc<str>,
    sessions: Arc<Mutex<Sessions>>,
    max_sessions: usize,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Sessions {
    next_id: u64,
    by_id: HashMap<u64, Arc<Inbox>>,
    by_user: HashMap<UserId, User>,
    /// Whose a tap is.
    by_tap: HashMap<u64, UserId>,
    /// Whose tap was opened of late.
    newcomers: Vec<UserId>,
}

struct User {
    tap: u64,
    sessions: Vec<Session>,
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
    /// When it was opened, in milliseconds since the Unix epoch.
    pub opened_at: i64,
    /// What is left for the session.
    pub inbox: Arc<Inbox>,
}

/// The number of the subscription to replies; taps have others.
const REPLIES: u64 = 0;
/// Events and frames that may wait for a session. Past it the session reads them from its log.
const INBOX: usize = 256;

impl Registry {
    /// An empty registry.
    pub fn new(
        tap: Arc<Link>,
        gateway: Arc<str>,
        max_sessions: usize,
        metrics: Arc<Metrics>,
    ) -> Self {
        // Ids of an earlier process must not be taken for ours.
        let sessions = Sessions { next_id: fastrand::u64(1..1 << 40), ..Sessions::default() };
        Self { tap, gateway, sessions: Arc::new(Mutex::new(sessions)), max_sessions, metrics }
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

    /// The users whose taps were opened since this was asked last.
    pub fn newcomers(&self) -> Vec<UserId> {
        std::mem::take(&mut self.sessions().newcomers)
    }

    /// Takes a seat for a session opened at `now` (milliseconds since the Unix epoch). When it returns, the user's live
    /// tap is open: what is asked of the broker from now on is asked after it.
    ///
    /// # Errors
    /// [`Error::Full`], or if the tap can't be opened.
    pub async fn join(&self, user: &UserId, device: &DeviceId, now: i64) -> Result<Seat, Error> {
        let seat = self.sit_down(user, device, now)?;
        // Even if the user had a tap before: it may have been asked for just now.
        self.tap.confirmed().await?;
        Ok(seat)
    }

    fn sit_down(&self, user: &UserId, device: &DeviceId, now: i64) -> Result<Seat, Error> {
        let mut sessions = self.sessions();
        if sessions.by_id.len() >= self.max_sessions {
            return Err(Error::Full);
        }
        let (id, inbox) = (sessions.next_id, Arc::new(Inbox::new(INBOX, self.metrics.clone())));
        sessions.next_id += 1;
        let session = Session { id, device: device.clone(), opened_at: now, inbox: inbox.clone() };
        if let Some(entry) = sessions.by_user.get_mut(user) {
            entry.sessions.push(session);
        } else {
            // A tap is named after its user's first session.
            self.tap.subscribe(id, &subject::live(user));
            sessions.by_tap.insert(id, user.clone());
            sessions.newcomers.push(user.clone());
            sessions.by_user.insert(user.clone(), User { tap: id, sessions: vec![session] });
        }
        sessions.by_id.insert(id, inbox.clone());
        Ok(Seat { registry: self.clone(), user: user.clone(), id, opened_at: now, inbox })
    }

    /// Takes what has come through a tap.
    fn deliver(&self, tap: u64, headers: &str, payload: &[u8]) {
        let (mut id, mut prev, mut message_id, mut parent) = (None, None, None, None);
        for (name, value) in protocol::fields(headers) {
            match name {
                "Nats-Sequence" => id = value.parse().ok().map(EventId),
                "Nats-Last-Sequence" => prev = value.parse().ok().map(EventId),
                header::MESSAGE_ID => message_id = Some(value),
                header::TRACEPARENT => parent = value.parse::<Traceparent>().ok(),
                _ => {}
            }
        }
        if let (Some(id), Some(prev)) = (id, prev) {
            if let Some(parent) = parent {
                self.to_tap(tap, |_| Some(Delivery::Traced(id, parent)));
            }
            let origin = Origin::of(message_id, parent);
            // Copied: the connection's buffer must not be kept for as long as a session takes.
            let body: Arc<[u8]> = payload.into();
            self.to_tap(tap, |_| Some(Delivery::Live { id, prev, body: body.clone(), origin }));
            return;
        }
        match serde_json::from_slice::<Signal>(payload) {
            Ok(Signal::Frame(frame)) => {
                let frame = Utf8Bytes::from(String::from(Box::<str>::from(frame)));
                self.to_tap(tap, |_| Some(Delivery::Frame(frame.clone())));
            }
            Ok(Signal::Opened { device, at, gateway, session }) => self.to_tap(tap, |own| {
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

    fn to_tap(&self, tap: u64, delivery: impl Fn(&Session) -> Option<Delivery>) {
        let sessions = self.sessions();
        let user = sessions.by_tap.get(&tap).and_then(|user| sessions.by_user.get(user));
        user.into_iter().for_each(|user| user.leave(&delivery));
    }

    fn to_user(&self, user: &UserId, delivery: impl Fn(&Session) -> Option<Delivery>) {
        self.sessions().by_user.get(user).into_iter().for_each(|user| user.leave(&delivery));
    }

    /// Tells a user's sessions where its log ends.
    pub fn tail(&self, user: &UserId, last: EventId) {
        self.to_user(user, |_| Some(Delivery::Tail(last)));
    }

    /// Hands workers' answers to the sessions that wait for them.
    fn replies(&self, payload: &[u8]) {
        let Ok(Replies(replies)) = serde_json::from_slice::<Replies<'_>>(payload) else {
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

/// Workers' replies, and live taps: one subscription for each user.
impl Receive for Registry {
    fn subscribe(&self, commands: &mut Vec<u8>) {
        command::subscribe(commands, REPLIES, &subject::reply(&self.gateway));
        for (tap, user) in &self.sessions().by_tap {
            command::subscribe(commands, *tap, &subject::live(user));
        }
    }

    fn receive(&self, message: &Message<'_>) {
        match message.sid {
            REPLIES => self.replies(message.payload),
            tap => self.deliver(tap, message.headers, message.payload),
        }
    }

    fn lost(&self) {
        // Events that come meanwhile are found by the sweep; who waits for a reply asks again when it is overdue.
    }
}

impl User {
    fn leave(&self, delivery: &impl Fn(&Session) -> Option<Delivery>) {
        for session in &self.sessions {
            if let Some(delivery) = delivery(session) {
                session.inbox.push(delivery);
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut sessions = self.registry.sessions();
        sessions.by_id.remove(&self.id);
        if let Some(entry) = sessions.by_user.get_mut(&self.user) {
            entry.sessions.retain(|session| session.id != self.id);
            if entry.sessions.is_empty() {
                let tap = entry.tap;
                sessions.by_user.remove(&self.user);
                sessions.by_tap.remove(&tap);
                self.registry.tap.unsubscribe(tap);
            }
        }
    }
}
