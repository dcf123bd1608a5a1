//! Answers gateways that ask whom a user shares a chat with.

use async_nats::Client;
use futures::StreamExt;
use herald_proto::{UserId, subject, wire::Contacts};
use tokio_util::sync::CancellationToken;

use crate::{error::Error, store::Store};

/// The most contacts told about a user's coming and going: the latest chats first.
const LIMIT: usize = 1000;
/// The most users looked up at once. A gateway asks for fewer.
const TOGETHER: usize = 64;
/// About the largest answer, in bytes: well below what NATS takes.
const ANSWER: usize = 256 * 1024;
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
    let mut users: Vec<UserId> = serde_json::from_slice(&request.payload)
        .map_err(|error| Error::Unreadable("a request for contacts", error))?;
    users.truncate(TOGETHER);
    let mut contacts = Contacts(store.contacts(&users, LIMIT).await?);
    contacts.0.truncate(fitting(&contacts.0));
    let body =
        serde_json::to_vec(&contacts).map_err(|error| Error::Unreadable("contacts", error))?;
    Ok(client.publish(reply, body.into()).await?)
}

/// How many users' contacts fit an answer; one's always do.
fn fitting(contacts: &[Vec<UserId>]) -> usize {
    let mut size = 0;
    let fits = |of_user: &&Vec<UserId>| {
        size += of_user.iter().map(|user| user.as_str().len() + 3).sum::<usize>();
        size <= ANSWER
    };
    contacts.iter().take_while(fits).count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_holds_as_many_users_as_fit_and_at_least_one() {
        let of_user = |count| vec![UserId::new("x".repeat(61)).unwrap(); count];
        assert_eq!(fitting(&[of_user(1), of_user(0), of_user(1000)]), 3);
        assert_eq!(fitting(&vec![of_user(1000); 10]), 4);
        assert_eq!(fitting(&[of_user(5000), of_user(1)]), 1);
    }
}
