//! Gateways' leases: each renews its own in the bucket `LEASES` and watches the others'.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_nats::jetstream::{Context, kv};
use futures::StreamExt;
use herald_proto::subject;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// The leases. Clones share them.
#[derive(Clone)]
pub struct Leases {
    bucket: kv::Store,
    own: Arc<str>,
    lease: Duration,
    grace: Duration,
    state: Arc<Mutex<State>>,
}

struct State {
    /// When each other gateway's lease runs out, by this gateway's clock.
    others: HashMap<String, Instant>,
    renewed_at: Instant,
}

/// A lease's value.
#[derive(Serialize, Deserialize)]
struct Lease {
    /// Whether the gateway is going: then its lease runs out after the grace.
    draining: bool,
}

/// How long the mark of a removed lease stays.
const MARK_TTL: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);

impl Leases {
    /// The leases as seen by the gateway `own`.
    ///
    /// # Errors
    /// If the bucket is missing or the gateway's lease can't be written.
    pub async fn open(
        jetstream: &Context,
        own: &str,
        lease: Duration,
        grace: Duration,
    ) -> Result<Self, Error> {
        let bucket =
            jetstream.get_key_value(subject::LEASES).await.map_err(Error::broker("open LEASES"))?;
        let state = State { others: HashMap::new(), renewed_at: Instant::now() };
        let leases = Self {
            bucket,
            own: subject::token(own).into(),
            lease,
            grace,
            state: Arc::new(Mutex::new(state)),
        };
        leases.put(false).await?;
        Ok(leases)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is one assignment: whole, whoever panicked while holding the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often to renew.
    pub fn interval(&self) -> Duration {
        self.lease / 3
    }

    async fn put(&self, draining: bool) -> Result<(), Error> {
        let value =
            serde_json::to_vec(&Lease { draining }).map_err(|_| Error::Unreadable("a lease"))?;
        self.bucket
            .put(&*self.own, value.into())
            .await
            .map(drop)
            .map_err(Error::broker("renew the lease"))
    }

    /// Renews the own lease; returns whether it had run out before.
    pub async fn renew(&self) -> bool {
        if let Err(error) = self.put(false).await {
            tracing::warn!(%error, "the lease can't be renewed");
            return false;
        }
        let mut state = self.state();
        let had_run_out = state.renewed_at.elapsed() > self.lease;
        state.renewed_at = Instant::now();
        had_run_out
    }

    /// Tells the others that this gateway is going.
    ///
    /// # Errors
    /// If the broker does not take it: then the lease runs out by itself.
    pub async fn drain(&self) -> Result<(), Error> {
        self.put(true).await
    }

    /// The gateways whose lease has run out.
    pub fn expired(&self) -> Vec<String> {
        let now = Instant::now();
        let state = self.state();
        let expired = state.others.iter().filter(|(_, at)| **at <= now);
        expired.filter_map(|(token, _)| subject::untoken(token)).collect()
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
            let mut state = self.state();
            if entry.operation != kv::Operation::Put {
                state.others.remove(&entry.key);
                continue;
            }
            let is_draining =
                serde_json::from_slice::<Lease>(&entry.value).is_ok_and(|lease| lease.draining);
            let lasts = if is_draining { self.grace } else { self.lease };
            state.others.insert(entry.key, Instant::now() + lasts);
        }
        Ok(())
    }
}
