//! Gateways' leases: each renews its own in the bucket `LEASES` and watches the others'.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_nats::jetstream::{Context, kv, stream::LastRawMessageErrorKind};
use futures::StreamExt;
use herald_proto::{subject, wire::Lease};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// The leases. Clones share them.
#[derive(Clone)]
pub struct Leases {
    bucket: kv::Store,
    own: Arc<str>,
    lease: Duration,
    state: Arc<Mutex<State>>,
}

struct State {
    others: HashMap<String, Other>,
    renewed_at: Instant,
    /// Whether the own lease had run out when it was renewed.
    lapsed: bool,
}

/// Another gateway's lease.
struct Other {
    revision: u64,
    lasts: Duration,
    /// When it runs out, by this gateway's clock.
    until: Instant,
}

/// How long the mark of a removed lease stays.
const MARK_TTL: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);

impl Leases {
    /// The leases as seen by the gateway `own`.
    ///
    /// # Errors
    /// If the bucket is missing or the gateway's lease can't be written.
    pub async fn open(jetstream: &Context, own: &str, lease: Duration) -> Result<Self, Error> {
        let bucket =
            jetstream.get_key_value(subject::LEASES).await.map_err(Error::broker("open LEASES"))?;
        let state = State { others: HashMap::new(), renewed_at: Instant::now(), lapsed: false };
        let leases = Self {
            bucket,
            own: subject::token(own).into(),
            lease,
            state: Arc::new(Mutex::new(state)),
        };
        leases.put(lease).await?;
        Ok(leases)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is a few assignments: whole, whoever panicked while holding the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often to renew, and to look at the others.
    pub fn interval(&self) -> Duration {
        self.lease / 3
    }

    async fn put(&self, lasts: Duration) -> Result<(), Error> {
        let lease = Lease { lasts_ms: u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX) };
        let value = serde_json::to_vec(&lease).map_err(|_| Error::Unreadable("a lease"))?;
        self.bucket
            .put(&*self.own, value.into())
            .await
            .map(drop)
            .map_err(Error::broker("renew the lease"))
    }

    /// Renews the own lease for as long as it is polled. Nothing else may hold it up.
    pub async fn keep(&self) {
        let mut tick = tokio::time::interval(self.interval());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            match self.put(self.lease).await {
                Ok(()) => self.renewed(),
                Err(error) => tracing::warn!(%error, "the lease can't be renewed"),
            }
        }
    }

    fn renewed(&self) {
        let mut state = self.state();
        let now = Instant::now();
        state.lapsed |= now - state.renewed_at > self.lease;
        if now - state.renewed_at > self.interval() * 2 {
            // The broker was away, for the others too: whoever lives is heard of within a lease.
            for other in state.others.values_mut() {
                other.until = other.until.max(now + other.lasts);
            }
        }
        state.renewed_at = now;
    }

    /// Whether the own lease had run out since this was asked before: others may have taken this gateway for dead.
    pub fn has_lapsed(&self) -> bool {
        std::mem::take(&mut self.state().lapsed)
    }

    /// Tells the others that this gateway is going, and how long its users have to come back elsewhere.
    ///
    /// # Errors
    /// If the broker does not take it: then the lease runs out by itself.
    pub async fn drain(&self, lasts: Duration) -> Result<(), Error> {
        self.put(lasts).await
    }

    /// The gateways whose lease has run out. None while this gateway can't renew its own: whoever can't be heard can't
    /// hear either.
    ///
    /// # Errors
    /// If the broker does not confirm it.
    pub async fn expired(&self) -> Result<Vec<String>, Error> {
        let silent: Vec<(String, u64)> = {
            let state = self.state();
            let now = Instant::now();
            if now - state.renewed_at > self.interval() * 2 {
                return Ok(Vec::new());
            }
            let silent = state.others.iter().filter(|(_, other)| other.until <= now);
            silent.map(|(key, other)| (key.clone(), other.revision)).collect()
        };
        let mut expired = Vec::new();
        for (key, revision) in silent {
            // The watch may have fallen silent, and not the gateway: the bucket's leader knows.
            let subject = format!("{}{key}", self.bucket.prefix);
            match self.bucket.stream.get_last_raw_message_by_subject(&subject).await {
                Ok(stored) if stored.sequence == revision => {
                    expired.extend(subject::untoken(&key));
                }
                Ok(stored) => self.heard(key, stored.sequence, &stored.payload),
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                    self.state().others.remove(&key);
                }
                Err(error) => return Err(Error::broker("read a lease")(error)),
            }
        }
        Ok(expired)
    }

    fn heard(&self, key: String, revision: u64, value: &[u8]) {
        let mut state = self.state();
        match serde_json::from_slice::<Lease>(value) {
            Ok(Lease { lasts_ms }) => {
                let lasts = Duration::from_millis(lasts_ms);
                let until = Instant::now() + lasts;
                state.others.insert(key, Other { revision, lasts, until });
            }
            // Removed, by whoever has cleared up after it.
            Err(_) => drop(state.others.remove(&key)),
        }
    }

    /// Removes a dead gateway's lease.
    ///
    /// # Errors
    /// If the broker fails.
    pub async fn remove(&self, gateway: &str) -> Result<(), Error> {
        let key = subject::token(gateway);
        self.bucket
            .purge_with_ttl(&key, MARK_TTL)
            .await
            .map_err(Error::broker("remove a lease"))?;
        self.state().others.remove(&key);
        Ok(())
    }

    /// Follows the others' leases until told to stop.
    pub async fn watch(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let followed = tokio::select! {
                followed = self.follow() => followed,
                () = stop.cancelled() => return,
            };
            if let Err(error) = followed {
                tracing::warn!(%error, "can't follow the gateways' leases, trying again");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn follow(&self) -> Result<(), Error> {
        let watch = self.bucket.watch_with_history(">").await;
        let mut entries = watch.map_err(Error::broker("watch LEASES"))?;
        while let Some(entry) = entries.next().await {
            let entry = entry.map_err(Error::broker("watch LEASES"))?;
            if *entry.key == *self.own {
                continue;
            }
            if entry.operation == kv::Operation::Put {
                self.heard(entry.key, entry.revision, &entry.value);
            } else {
                self.state().others.remove(&entry.key);
            }
        }
        Ok(())
    }
}
