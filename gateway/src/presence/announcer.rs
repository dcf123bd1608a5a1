//! Announces in the broker who is here, tells contacts when that changes, and clears up after gateways that died.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::{
    self, Context, ErrorCode,
    context::{PublishError, PublishErrorKind},
    kv,
    message::PublishMessage,
};
use backon::{ExponentialBuilder, Retryable};
use futures::StreamExt;
use herald_proto::{
    UserId,
    clock::now_ms,
    frame::{Event, EventBody},
    payload, subject,
    wire::Signal,
};
use serde_json::value::to_raw_value;
use tokio::{sync::Semaphore, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{
    Announced, Due, Presence,
    marks::{self, Marks},
};
use crate::{
    contacts::Contacts,
    error::Error,
    leases::Leases,
    log::{BucketKey, EventLog},
    metrics::{self, Metrics},
};

/// Keeps announcements true.
pub struct Announcer {
    /// What sessions tell.
    pub presence: Presence,
    /// The connection, for telling contacts.
    pub client: async_nats::Client,
    /// This gateway's name.
    pub gateway: Arc<str>,
    /// For writing to the bucket.
    pub jetstream: Context,
    /// The bucket of sessions.
    pub sessions: kv::Store,
    /// For reading the bucket.
    pub log: EventLog,
    /// Whom to tell.
    pub contacts: Contacts,
    /// The gateways' leases.
    pub leases: Leases,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The marks that this gateway has left.
    pub marks: Marks,
    /// Bounds how many contacts are looked up at the same time.
    pub telling: Arc<Semaphore>,
}

/// Users looked after at the same time.
const AT_ONCE: usize = 32;
/// Users whose contacts are looked up at the same time.
pub const TELLING: usize = 128;
/// How often those who are about to leave are looked at.
const TICK: Duration = Duration::from_millis(100);
/// The first pause before a user's keys are read again, doubled each time, and how often they are.
const PAUSE: Duration = Duration::from_millis(100);
const AGAIN: usize = 6;
/// How often a user's key is tried to be written while others change.
const TRIES: u32 = 8;
const WRITE: &str = "write a user's key";
/// The header that says the last message of which subjects must be the expected one.
const LAST_OF: &str = "Nats-Expected-Last-Subject-Sequence-Subject";

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
        // Side by side: however much one of them has to do, the lease is renewed in time.
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.leases.keep() => {}
            () = self.announce() => {}
            () = self.clear_up() => {}
        }
    }

    async fn announce(&self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.presence.changed.notified() => {}
                _ = tick.tick() => {}
            }
            if self.leases.has_lapsed() {
                tracing::warn!("this gateway's lease had run out, its users are looked at again");
                self.presence.doubt_all();
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

    /// Removes what dead gateways have left.
    async fn clear_up(&self) {
        let mut tick = tokio::time::interval(self.leases.interval());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let expired = self.leases.expired().await.unwrap_or_else(|error| {
                tracing::warn!(%error, "can't tell which gateways are gone, trying again");
                Vec::new()
            });
            for gateway in expired {
                if let Err(error) = self.reap(&gateway).await {
                    tracing::warn!(%error, herald.gateway = gateway, "can't clear up after a dead gateway, trying again");
                }
            }
        }
    }

    async fn reconcile(&self, user: &UserId) -> Result<(), Error> {
        let key = subject::session_key(user, &self.gateway);
        match self.presence.due(user) {
            Due::Announce => {
                let own = self.announce_at(user, &key).await?;
                self.presence.announced(user, Some(own));
                if own.is_alone {
                    self.tell(user, EventBody::Online(payload::Presence { user_id: user.clone() }));
                }
            }
            Due::Confirm(revision) => {
                match self.sessions.update(&key, bytes::Bytes::new(), revision).await {
                    // It stood all the time: nobody was told anything.
                    Ok(revision) => {
                        let own = Announced { revision, is_alone: false };
                        self.presence.announced(user, Some(own));
                    }
                    Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => {
                        self.presence.announced(user, None);
                    }
                    Err(error) => return Err(Error::broker("confirm a user")(error)),
                }
            }
            Due::Withdraw(own) => {
                // Nobody was there before, and nobody has come since: nothing is read for most.
                let mark = if own.is_alone {
                    self.write(user, &key, removal(), own.revision).await?
                } else {
                    None
                };
                let is_removed = mark.is_some() || self.remove(&key, own.revision).await?;
                self.presence.announced(user, None);
                self.presence.forget(user);
                if let Some(mark) = mark {
                    self.marks.insert(user.clone(), mark);
                    self.tell_gone(user);
                } else if is_removed {
                    self.tell_if_gone(user, &key).await?;
                }
            }
            Due::Forget => self.presence.forget(user),
            Due::Nothing => {}
        }
        Ok(())
    }

    /// Writes a user's key. Of gateways that come at the same time, one is the first.
    async fn announce_at(&self, user: &UserId, key: &str) -> Result<Announced, Error> {
        // Most have no keys, or only the mark of one that was removed here: nothing is read for them.
        let (mut last, mut is_alone) = (self.marks.take(user).unwrap_or(0), true);
        for _ in 0..TRIES {
            if let Some(revision) = self.write(user, key, PublishMessage::build(), last).await? {
                return Ok(Announced { revision, is_alone });
            }
            let keys = self.keys_of(user).await?;
            last = keys.iter().map(|found| found.revision).max().unwrap_or(0);
            is_alone = keys.iter().all(|found| found.is_removed || found.key == key);
        }
        Err(Error::broker(WRITE)("its keys keep changing"))
    }

    /// Writes a user's key and returns its revision, if `last` is still the last revision of all the user's keys: what is
    /// known of them is still true.
    async fn write(
        &self,
        user: &UserId,
        key: &str,
        message: PublishMessage,
        last: u64,
    ) -> Result<Option<u64>, Error> {
        let prefix = &self.sessions.prefix;
        let message = message
            .header(LAST_OF, format!("{prefix}{}", subject::sessions_of_user(user)))
            .expected_last_subject_sequence(last);
        let sent = self.jetstream.send_publish(format!("{prefix}{key}"), message).await;
        match sent.map_err(Error::broker(WRITE))?.await {
            Ok(stored) => Ok(Some(stored.sequence)),
            Err(error) if is_overtaken(&error) => Ok(None),
            Err(error) => Err(Error::broker(WRITE)(error)),
        }
    }

    /// Removes a key if it still stands at `revision`; returns whether it did, or another gateway was first.
    async fn remove(&self, key: &str, revision: u64) -> Result<bool, Error> {
        let Err(error) =
            self.sessions.purge_expect_revision_with_ttl(key, revision, marks::TTL).await
        else {
            return Ok(true);
        };
        let keys = self.log.newest_of_bucket(&self.sessions, key).await?;
        if keys.iter().any(|found| found.revision == revision) {
            return Err(Error::broker("withdraw a user")(error));
        }
        Ok(false)
    }

    /// Tells the contacts that a user is gone whose key was removed, unless it is online elsewhere or has come back, or
    /// another gateway was later and tells them.
    async fn tell_if_gone(&self, user: &UserId, key: &str) -> Result<(), Error> {
        let keys = self.keys_of(user).await?;
        let own = keys.iter().find(|found| found.key == key);
        let is_gone = own.is_some_and(|own| {
            keys.iter().all(|key| key.is_removed && key.revision <= own.revision)
        });
        if is_gone {
            self.tell_gone(user);
        }
        Ok(())
    }

    fn tell_gone(&self, user: &UserId) {
        self.tell(user, EventBody::Offline(payload::Presence { user_id: user.clone() }));
    }

    /// Tries for a while: what was changed just now would be told to nobody.
    async fn keys_of(&self, user: &UserId) -> Result<Vec<BucketKey>, Error> {
        let filter = subject::sessions_of_user(user);
        (async || self.log.newest_of_bucket(&self.sessions, &filter).await)
            .retry(ExponentialBuilder::new().with_min_delay(PAUSE).with_max_times(AGAIN))
            .notify(|error, _| tracing::debug!(%error, "looking for a user's sessions again"))
            .await
    }

    /// Tells the contacts behind the announcer's back: a slow look-up holds nobody up.
    fn tell(&self, user: &UserId, body: EventBody) {
        let change = match body {
            EventBody::Online(_) => metrics::Presence::Online,
            _ => metrics::Presence::Offline,
        };
        self.metrics.presence.inc(change);
        let (client, contacts, user) = (self.client.clone(), self.contacts.clone(), user.clone());
        let telling = self.telling.clone();
        tokio::spawn(async move {
            // When many come or go at once, the workers are not asked about all of them at once.
            let Ok(_permit) = telling.acquire().await else { return };
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
                    if self.remove(&key.key, key.revision).await? {
                        self.tell_if_gone(&user, &key.key).await?;
                    }
                    Ok::<(), Error>(())
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

/// What removes a key of a bucket, as clients of the broker do it (ADR-8, ADR-48).
fn removal() -> PublishMessage {
    PublishMessage::build()
        .header("KV-Operation", "PURGE")
        .header(async_nats::header::NATS_ROLLUP, "sub")
        .header(async_nats::header::NATS_MESSAGE_TTL, marks::TTL.as_secs().to_string())
}

/// Whether the broker refused a message because something was stored, or is being stored, that its sender did not know.
fn is_overtaken(error: &PublishError) -> bool {
    let source = std::error::Error::source(error);
    let refusal = source.and_then(|source| source.downcast_ref::<jetstream::Error>());
    error.kind() == PublishErrorKind::WrongLastSequence
        || refusal.is_some_and(|refusal| {
            refusal.error_code() == ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT
        })
}
