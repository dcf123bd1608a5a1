//! Answers gateways that ask whom a user shares a chat with.

use async_nats::Client;
use futures::StreamExt;
use herald_proto::{UserId, subject, wire::Contacts};
use tokio_util::sync::CancellationToken;

use crate::{error::Error, store::Store};

/// The most contacts told about a user's coming and going: the latest chats first.
const LIMIT: u64 = 1000;
/// Look-ups at the same time. Fewer than the database's connections, so that settling never waits for one.
const AT_ONCE: usize = 1;

/// Answers until told to stop.
///
/// # Errors
/// If the subscription can't be made.
pub async fn serve(client: Client, store: Store, stop: CancellationToken) -> Result<(), Error> {
    let requests = client
        .queue_subscribe(subject::CONTACTS, subject::WORKERS.to_owned())
        .await
        .map_err(Error::broker("subscribe to contacts"))?;
    requests
        .take_until(stop.cancelled())
        .for_each_concurrent(AT_ONCE, |request| {
            let (client, store) = (&client, &store);
            async move {
                if let Err(error) = answer(client, store, request).await {
                    tracing::warn!(%error, "can't look contacts up; the gateway will ask again");
                }
            }
        })
        .await;
    Ok(())
}

async fn answer(client: &Client, store: &Store, request: async_nats::Message) -> Result<(), Error> {
    let Some(reply) = request.reply else { return Ok(()) };
    let Ok(user) = String::from_utf8(request.payload.to_vec())
        .map_err(drop)
        .and_then(|id| UserId::new(id).map_err(drop))
    else {
        return Ok(());
    };
    let contacts = Contacts(store.contacts(&user, LIMIT).await?);
    let body =
        serde_json::to_vec(&contacts).map_err(|error| Error::Unreadable("contacts", error))?;
    Ok(client.publish(reply, body.into()).await?)
}
