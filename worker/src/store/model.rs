//! What goes in and out of the batch statements, row by row.

use herald_proto::{Chat, ClientMessageId, UserId};
use sea_orm::FromQueryResult;
use serde::Serialize;

use super::{Error, entity::chat};
use crate::unread::{Ledger, Member};

/// A chat as it is stored.
#[derive(Debug, Clone)]
pub struct StoredChat {
    /// Its row.
    pub id: i64,
    /// Its members.
    pub chat: Chat,
    /// Its counters.
    pub ledger: Ledger,
}

/// What is stored under a sender's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The id the message got.
    pub message_id: i64,
    /// The hash of what it said.
    pub digest: i64,
}

/// A message's place, sender and key, without its content.
#[derive(Debug, Clone, FromQueryResult)]
#[allow(missing_docs)] // the columns of `entity::message`
pub struct Point {
    pub chat_id: i64,
    pub message_id: i64,
    pub from_a: bool,
    pub client_message_id: String,
    pub digest: i64,
    pub deleted: bool,
}

/// One of a chat's last messages, as a worker remembers it: place, sender, key, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recent {
    /// Its id.
    pub message_id: i64,
    /// Whether member A sent it.
    pub from_a: bool,
    /// Its key.
    pub client_message_id: ClientMessageId,
    /// The hash of what it said.
    pub digest: i64,
    /// Whether it is deleted.
    pub deleted: bool,
}

/// A question about one member's messages within a range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct SpanQuery {
    /// The chat's row.
    pub chat_id: i64,
    /// Whether the messages are member A's.
    pub from_a: bool,
    /// Above this id …
    pub after: i64,
    /// … up to and including this one.
    pub up_to: i64,
}

/// The answer to a [`SpanQuery`].
#[derive(Debug, Clone, Copy)]
pub struct SpanAnswer {
    /// What was asked.
    pub query: SpanQuery,
    /// How many messages there are in it, deleted ones left out.
    pub unread: i64,
    /// The id of the last one, deleted ones included.
    pub newest: Option<i64>,
}

/// A message to be stored.
#[derive(Debug, Serialize)]
#[allow(missing_docs)] // the columns of `entity::message`
pub struct NewMessage {
    pub chat_id: i64,
    pub message_id: i64,
    pub from_a: bool,
    pub sender: UserId,
    pub client_message_id: ClientMessageId,
    pub digest: i64,
    pub sent_at: i64,
    pub stored_at: i64,
    pub body: Option<String>,
    pub attachments: Option<String>,
    pub deleted: bool,
}

/// Where a partition stands.
#[derive(Debug, Clone, FromQueryResult)]
pub struct PartitionState {
    /// Which partition.
    pub id: i32,
    /// What `applied` counts in.
    pub epoch: i64,
    /// The stream sequence of the last applied frame; 0 for none.
    pub applied: i64,
    /// When the newest applied frame came into the stream, in nanoseconds since the Unix epoch.
    pub seen_at: i64,
    /// When the last batch was applied, in milliseconds since the Unix epoch.
    pub moved_at: i64,
    /// The events of the last applied batch, as JSON.
    pub events: String,
}

/// How far an event stream's ids have been given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, FromQueryResult)]
pub struct EventStream {
    /// Which stream.
    pub id: i32,
    /// When it was created, in nanoseconds since the Unix epoch.
    pub created: i64,
    /// The highest id that JetStream has confirmed.
    pub high: i64,
}

/// A partition's step forward: happens only if it stands where it is expected.
#[derive(Debug, Serialize)]
pub struct Move {
    /// Which partition.
    pub id: u16,
    /// What it counts in from now on.
    pub epoch: i64,
    /// What it must count in now.
    pub expected_epoch: i64,
    /// The sequence it must stand at.
    pub expected: i64,
    /// The sequence it moves to.
    pub applied: i64,
    /// When the newest applied frame came into the stream, in nanoseconds since the Unix epoch.
    pub seen_at: i64,
    /// Milliseconds since the Unix epoch.
    pub moved_at: i64,
    /// The events of the batch, as JSON.
    pub events: String,
}

impl StoredChat {
    pub(super) fn from_row(row: chat::Model) -> Result<Self, Error> {
        let member = |id: &str| {
            UserId::new(id).map_err(|_| Error::Corrupt("chats: a member is not a user id"))
        };
        let (a, b) = (member(&row.user_a)?, member(&row.user_b)?);
        let chat = Chat::between(&a, &b).ok_or(Error::Corrupt("chats: a chat with oneself"))?;
        let ledger = Ledger {
            last: row.last,
            a: Member {
                last_sent: row.a_last_sent,
                read: row.a_read,
                delivered: row.a_delivered,
                missed: row.a_missed,
            },
            b: Member {
                last_sent: row.b_last_sent,
                read: row.b_read,
                delivered: row.b_delivered,
                missed: row.b_missed,
            },
        };
        Ok(Self { id: row.id, chat, ledger })
    }
}

impl TryFrom<Point> for Recent {
    type Error = Error;

    fn try_from(point: Point) -> Result<Self, Error> {
        Ok(Self {
            message_id: point.message_id,
            from_a: point.from_a,
            client_message_id: client_key(&point.client_message_id)?,
            digest: point.digest,
            deleted: point.deleted,
        })
    }
}

/// A stored key as an id.
pub(crate) fn client_key(text: &str) -> Result<ClientMessageId, Error> {
    ClientMessageId::new(text).map_err(|_| Error::Corrupt("messages.client_message_id"))
}
