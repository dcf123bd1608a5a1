//! Whom a user shares a chat with: asked of the workers, for many at once.
//!
//! Nothing is remembered: hardly anyone comes or goes twice while an answer would still be true.

use std::{sync::Arc, time::Duration};

use async_nats::Client;
use backon::{ExponentialBuilder, Retryable};
use herald_proto::{UserId, subject, wire};

use crate::{error::Error, gather::Gather};

/// Contact look-ups. Clones share them.
#[derive(Clone)]
pub struct Contacts {
    client: Client,
    asked: Arc<Gather<UserId, Vec<UserId>>>,
}

/// The most users asked for at once.
const TOGETHER: usize = 32;
const WHAT: &str = "ask for contacts";
/// How often a look-up is tried again.
const AGAIN: usize = 4;
const PAUSE: Duration = Duration::from_millis(200);

impl Contacts {
    /// Nobody was asked for yet.
    pub fn new(client: Client) -> Self {
        Self { client, asked: Arc::new(Gather::new(WHAT, TOGETHER)) }
    }

    /// The user's contacts; none if the workers don't answer for some time, which is logged.
    pub async fn of(&self, user: &UserId) -> Vec<UserId> {
        (async || self.asked.ask(user.clone(), |users| self.ask(users)).await)
            .retry(ExponentialBuilder::new().with_min_delay(PAUSE).with_max_times(AGAIN))
            .notify(|error, _| tracing::debug!(%error, "asking for contacts again"))
            .await
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "contacts can't be looked up, they miss a presence event");
                Vec::new()
            })
    }

    async fn ask(&self, users: Vec<UserId>) -> Result<Vec<Vec<UserId>>, Error> {
        let body = serde_json::to_vec(&users).map_err(|_| Error::Unreadable("user ids"))?;
        let answer = self.client.request(subject::CONTACTS, body.into()).await;
        let answer = answer.map_err(Error::broker(WHAT))?;
        let wire::Contacts(contacts) =
            serde_json::from_slice(&answer.payload).map_err(|_| Error::Unreadable("contacts"))?;
        Ok(contacts)
    }
}
