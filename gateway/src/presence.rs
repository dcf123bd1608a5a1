//! Who is online, told to those who share a chat.
//!
//! A user is online while the bucket `SESSIONS` has a key `<user>.<gateway>`: each gateway writes and removes its own,
//! and the revisions decide who tells the contacts, so each change is told once. A gateway keeps one lease in `LEASES`;
//! when that runs out, any other gateway removes the dead one's keys in its stead.
//!
//! Sessions only count; a task compares what is with what was announced, and tries again until both agree.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_nats::jetstream::{Context, kv};
use futures::StreamExt;
use herald_proto::{
    UserId,
    clock::now_ms,
    frame::{Event, EventBody},
    payload, subject,
    wire::Signal,
};
use serde_json::value::to_raw_value;
use tokio::{sync::Notify, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{contacts::Contacts, error::Error, leases::Leases, log::EventLog};

/// Where sessions tell that they come and go. Clones share it.
#[derive(Clone)]
pub struct Presence {
    users: Arc<Mutex<Users>>,
    changed: Arc<Notify>,
    grace: Duration,
}

#[derive(Default)]
struct Users {
    local: HashMap<UserId, Local>,
    /// Whose announcement may have to change.
    changed: HashSet<UserId>,
}

#[derive(Default)]
struct Local {
    sessions: usize,
    /// The revision of the user's key, while it is announced as online.
    announced: Option<u64>,
    /// When the user counts as offline.
    leaves_at: Option<Instant>,
}

/// What has to be done about a user.
enum Due {
    Announce,
    Withdraw(u64),
    Forget,
    Nothing,
}

impl Presence {
    /// Nobody is here yet.
    pub fn new(grace: Duration) -> Self {
        Self { users: Arc::default(), changed: Arc::default(), grace }
    }

    fn users(&self) -> MutexGuard<'_, Users> {
        // Every change is a few assignments: whole, whoever panicked while holding the lock.
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session of the user has opened.
    pub fn opened(&self, user: &UserId) {
        let mut users = self.users();
        let local = users.local.entry(user.clone()).or_default();
        local.sessions += 1;
        local.leaves_at = None;
        if local.announced.is_none() {
            users.changed.insert(user.clone());
            self.changed.notify_one();
        }
    }

    /// A session of the user was lost: if it was the last, the user is offline after the grace.
    pub fn lost(&self, user: &UserId) {
        self.closed(user, self.grace);
    }

    /// The user says in one of its sessions that it goes offline: if it was the last, that is so at once.
    pub fn said_offline(&self, user: &UserId) {
        self.closed(user, Duration::ZERO);
    }

    fn closed(&self, user: &UserId, grace: Duration) {
        let mut users = self.users();
        let Some(local) = users.local.get_mut(user) else { return };
        local.sessions = local.sessions.saturating_sub(1);
        if local.sessions == 0 {
            local.leaves_at = Some(Instant::now() + grace);
            users.changed.insert(user.clone());
            self.changed.notify_one();
        }
    }

    fn due(&self, user: &UserId) -> Due {
        let mut users = self.users();
        let Some(local) = users.local.get_mut(user) else { return Due::Nothing };
        match (local.sessions, local.announced) {
            (1.., None) => Due::Announce,
            (0, None) => Due::Forget,
            (0, Some(revision)) if local.leaves_at.is_some_and(|at| at <= Instant::now()) => {
                Due::Withdraw(revision)
            }
            _ => Due::Nothing,
        }
    }

    /// Those whose announcement may have to change now.
    fn take_changed(&self) -> Vec<UserId> {
        let mut users = self.users();
        let now = Instant::now();
        let mut ready = Vec::new();
        let Users { local, changed, .. } = &mut *users;
        changed.retain(|user| {
            let waits = local.get(user).is_some_and(|local| {
                local.sessions == 0
                    && local.announced.is_some()
                    && local.leaves_at.is_some_and(|at| at > now)
            });
            if !waits {
                ready.push(user.clone());
            }
            waits
        });
        ready
    }

    fn announced(&self, user: &UserId, revision: Option<u64>) {
        let mut users = self.users();
        if let Some(local) = users.local.get_mut(user) {
            local.announced = revision;
            if (local.sessions > 0) != revision.is_some() {
                users.changed.insert(user.clone());
            }
        }
    }

    fn again(&self, user: UserId) {
        self.users().changed.insert(user);
    }

    fn forget(&self, user: &UserId) {
        let mut users = self.users();
        if users
            .local
            .get(user)
            .is_some_and(|local| local.sessions == 0 && local.announced.is_none())
        {
            users.local.remove(user);
        }
    }

    /// Everyone has to be announced again: peers have taken this gateway for dead.
    fn announce_all(&self) {
        let mut users = self.users();
        for local in users.local.values_mut() {
            local.announced = None;
        }
        let all: Vec<UserId> = users.local.keys().cloned().collect();
        users.changed.extend(all);
    }
}

/// Keeps announcements true.
pub struct Announcer {
    /// What sessions tell.
    pub presence: Presence,
    /// The connection, for telling contacts.
    pub client: async_nats::Client,
    /// This gateway's name.
    pub gateway: Arc<str>,
    /// The bucket of sessions.
    pub sessions: kv::Store,
    /// For reading the bucket.
    pub log: EventLog,
    /// Whom to tell.
    pub contacts: Contacts,
    /// The gateways' leases.
    pub leases: Leases,
}

/// Users looked after at the same time.
const AT_ONCE: usize = 32;
/// How often those who are about to leave are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How long the mark of a removed key stays, for gateways to compare revisions.
const MARK_TTL: Duration = Duration::from_secs(60);

impl Announcer {
    /// Opens the bucket.
    ///
    /// # Errors
    /// If it is missing.
    pub async fn bucket(jetstream: &Context) -> Result<kv::Store, Error> {
        jetstream.get_key_value(subject::SESSIONS).await.map_err(Error::broker("open SESSIONS"))
    }

    /// Announces until told to stop. Then nobody goes offline any more: a draining gateway's users are about to come back
    /// elsewhere, their keys stay, and peers remove those who don't.
    pub async fn run(self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lease = tokio::time::interval(self.leases.interval());
        lease.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.presence.changed.notified() => {}
                _ = tick.tick() => {}
                _ = lease.tick() => {
                    if self.leases.renew().await {
                        tracing::warn!("this gateway's lease had run out, its users are announced again");
                        self.presence.announce_all();
                    }
                    for gateway in self.leases.expired() {
                        if let Err(error) = self.reap(&gateway).await {
                            tracing::warn!(%error, herald.gateway = gateway, "can't clear up after a dead gateway, trying again");
                        }
                    }
                }
            }
            let changed = self.presence.take_changed();
            futures::stream::iter(changed)
                .for_each_concurrent(AT_ONCE, async |user| {
                    if let Err(error) = self.reconcile(&user).await {
                        tracing::warn!(%error, "presence can't be announced, trying again");
                        self.presence.again(user);
                    }
                })
                .await;
        }
    }

    async fn reconcile(&self, user: &UserId) -> Result<(), Error> {
        let key = subject::session_key(user, &self.gateway);
        match self.presence.due(user) {
            Due::Announce => {
                let put = self.sessions.put(&key, bytes::Bytes::new()).await;
                let revision = put.map_err(Error::broker("announce a user"))?;
                self.presence.announced(user, Some(revision));
                let is_first = !self
                    .keys_of(user)
                    .await?
                    .iter()
                    .any(|key| !key.is_removed && key.revision < revision);
                if is_first {
                    self.tell(user, EventBody::Online(payload::Presence { user_id: user.clone() }));
                }
            }
            Due::Withdraw(revision) => {
                let removed = self.remove(&key, revision).await?;
                self.presence.announced(user, None);
                self.presence.forget(user);
                if let Some(mark) = removed {
                    self.tell_if_gone(user, mark).await?;
                }
            }
            Due::Forget => self.presence.forget(user),
            Due::Nothing => {}
        }
        Ok(())
    }

    /// Removes a key if it still stands at `revision`; returns the revision of its removal, or `None` if another
    /// gateway was first.
    async fn remove(&self, key: &str, revision: u64) -> Result<Option<u64>, Error> {
        match self.sessions.purge_expect_revision_with_ttl(key, revision, MARK_TTL).await {
            Ok(()) => {}
            Err(error) => {
                let entry = self
                    .sessions
                    .entry(key)
                    .await
                    .map_err(Error::broker("read a session's key"))?;
                let is_mine = entry.is_some_and(|entry| entry.revision == revision);
                return if is_mine {
                    Err(Error::broker("withdraw a user")(error))
                } else {
                    Ok(None)
                };
            }
        }
        let marks = self.log.last_of_bucket(subject::SESSIONS, &[key.to_owned()]).await?;
        // The mark is the newest thing under the key, unless the user has just come back: then nobody is gone.
        Ok(marks.first().filter(|mark| mark.is_removed).map(|mark| mark.revision))
    }

    /// Tells the contacts unless the user is online elsewhere, or another gateway was later and tells them.
    async fn tell_if_gone(&self, user: &UserId, mark: u64) -> Result<(), Error> {
        let is_gone =
            self.keys_of(user).await?.iter().all(|key| key.is_removed && key.revision <= mark);
        if is_gone {
            self.tell(user, EventBody::Offline(payload::Presence { user_id: user.clone() }));
        }
        Ok(())
    }

    async fn keys_of(&self, user: &UserId) -> Result<Vec<crate::log::BucketKey>, Error> {
        self.log.last_of_bucket(subject::SESSIONS, &[subject::sessions_of_user(user)]).await
    }

    /// Tells the contacts behind the announcer's back: a slow look-up holds nobody up.
    fn tell(&self, user: &UserId, body: EventBody) {
        let (client, contacts, user) = (self.client.clone(), self.contacts.clone(), user.clone());
        tokio::spawn(async move {
            let Ok(frame) = to_raw_value(&Event::new(now_ms(), body)) else { return };
            let Ok(signal) = serde_json::to_vec(&Signal::Frame(frame)) else { return };
            let signal = bytes::Bytes::from(signal);
            let contacts = contacts.of(&user).await;
            tracing::debug!(
                herald.contacts = contacts.len(),
                "a user came or went, its contacts are told"
            );
            for contact in contacts {
                if let Err(error) = client.publish(subject::live(&contact), signal.clone()).await {
                    tracing::warn!(%error, "a presence event was lost");
                }
            }
        });
    }

    /// Removes a dead gateway's keys. Several gateways may try at once: each key is removed by one of them.
    async fn reap(&self, gateway: &str) -> Result<(), Error> {
        let keys =
            self.log.keys_of_bucket(&self.sessions, &subject::sessions_of_gateway(gateway)).await?;
        let alive: Vec<_> = keys.into_iter().filter(|key| !key.is_removed).collect();
        tracing::warn!(
            herald.gateway = gateway,
            herald.users = alive.len(),
            "a gateway is gone, its users go offline"
        );
        let failed = std::sync::atomic::AtomicBool::new(false);
        futures::stream::iter(alive)
            .for_each_concurrent(AT_ONCE, async |key| {
                let Some((user, _)) = subject::parse_session_key(&key.key) else { return };
                let result = async {
                    match self.remove(&key.key, key.revision).await? {
                        Some(mark) => self.tell_if_gone(&user, mark).await,
                        None => Ok(()),
                    }
                };
                if let Err(error) = result.await {
                    tracing::warn!(%error, "a dead gateway's user can't be removed, trying again");
                    failed.store(true, std::sync::atomic::Ordering::Relaxed);
                }
            })
            .await;
        if !failed.into_inner() {
            self.leases.remove(gateway).await?;
        }
        Ok(())
    }
}
