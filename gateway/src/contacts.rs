//! Whom a user shares a chat with: asked of the workers, remembered for a short while, bounded.

use std::{sync::Arc, time::Duration};

use async_nats::Client;
use backon::{ExponentialBuilder, Retryable};
use herald_proto::{UserId, subject, wire};
use moka::future::Cache;

use crate::{error::Error, gather::Gather};

/// Contact look-ups. Clones share the cache.
#[derive(Clone)]
pub struct Contacts {
    client: Client,
    asked: Arc<Gather<UserId, Arc<[UserId]>>>,
    cache: Cache<UserId, Arc<[UserId]>>,
    /// Whom users of this gateway wrote to of late.
    met: moka::sync::Cache<UserId, Arc<[UserId]>>,
}

/// Users whose contacts are remembered.
const CAPACITY: u64 = 10_000;
/// How long: a chat that was opened through another gateway since may miss a presence event.
const REMEMBERED: Duration = Duration::from_secs(10);
/// The most users remembered as met by one.
const MET: usize = 32;
/// The most users asked for at once.
const TOGETHER: usize = 32;
const WHAT: &str = "ask for contacts";
/// How often a look-up is tried again.
const AGAIN: usize = 4;
const PAUSE: Duration = Duration::from_millis(200);

impl Contacts {
    /// Nothing known yet.
    pub fn new(client: Client) -> Self {
        let cache = Cache::builder().max_capacity(CAPACITY).time_to_live(REMEMBERED).build();
        let met = moka::sync::Cache::builder();
        let met = met.max_capacity(CAPACITY).time_to_live(REMEMBERED * 2).build();
        let asked = Arc::new(Gather::new(WHAT, TOGETHER));
        Self { client, asked, cache, met }
    }

    /// The user's contacts; none if the workers don't answer for some time, which is logged.
    pub async fn of(&self, user: &UserId) -> Vec<UserId> {
        let known = match self.cache.try_get_with(user.clone(), self.ask(user)).await {
            Ok(contacts) => contacts,
            Err(error) => {
                tracing::warn!(%error, "contacts can't be looked up, they miss a presence event");
                Arc::default()
            }
        };
        let met = self.met.get(user).unwrap_or_default();
        let new = met.iter().filter(|peer| !known.contains(peer));
        known.iter().chain(new).cloned().collect()
    }

    /// Two users share a chat from now on, or have done so for long: whichever, they are contacts at once, though a
    /// look-up from before is remembered or under way.
    pub fn meet(&self, one: &UserId, other: &UserId) {
        for (user, peer) in [(one, other), (other, one)] {
            let met = self.met.get(user).unwrap_or_default();
            if !met.contains(peer) {
                let latest = std::iter::once(peer).chain(met.iter()).take(MET).cloned().collect();
                self.met.insert(user.clone(), latest);
            }
        }
    }

    async fn ask(&self, user: &UserId) -> Result<Arc<[UserId]>, Error> {
        (async || self.asked.ask(user.clone(), |users| self.ask_once(users)).await)
            .retry(ExponentialBuilder::new().with_min_delay(PAUSE).with_max_times(AGAIN))
            .notify(|error, _| tracing::debug!(%error, "asking for contacts again"))
            .await
    }

    async fn ask_once(&self, users: Vec<UserId>) -> Result<Vec<Arc<[UserId]>>, Error> {
        let body = serde_json::to_vec(&users).map_err(|_| Error::Unreadable("user ids"))?;
        let answer = self.client.request(subject::CONTACTS, body.into()).await;
        let answer = answer.map_err(Error::broker(WHAT))?;
        let wire::Contacts(contacts) =
            serde_json::from_slice(&answer.payload).map_err(|_| Error::Unreadable("contacts"))?;
        Ok(contacts.into_iter().map(Into::into).collect())
    }
}
