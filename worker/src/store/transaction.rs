//! One batch's transaction: the batch statements, and the fence that commits them.

use herald_proto::{Chat, ClientMessageId, Side, UserId};
use sea_orm::{DatabaseTransaction, FromQueryResult};
use serde::Serialize;

use super::{
    Error, Known, Move, NewMessage, Point, SpanAnswer, SpanQuery, StoredChat, client_key,
    entity::chat, execute, query, sql::Sql,
};
use crate::unread::Ledger;

/// One batch's transaction. Dropping it rolls back.
pub struct Transaction<'a> {
    pub(super) txn: DatabaseTransaction,
    pub(super) sql: &'a Sql,
}

impl Transaction<'_> {
    /// The chats among these that exist.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn chats(&self, chats: &[Chat]) -> Result<Vec<StoredChat>, Error> {
        let found: Vec<chat::Model> = query(&self.txn, &self.sql.chats, &pairs(chats)).await?;
        found.into_iter().map(StoredChat::from_row).collect()
    }

    /// Creates chats, empty.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn create_chats(&self, chats: &[Chat]) -> Result<(), Error> {
        execute(&self.txn, &self.sql.create_chats, &pairs(chats)).await.map(drop)
    }

    /// Writes chats' counters; `now` in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn update_chats(&self, chats: &[(i64, Ledger)], now: i64) -> Result<(), Error> {
        #[derive(Serialize)]
        struct Row {
            id: i64,
            last: i64,
            a_last_sent: i64,
            a_read: i64,
            a_delivered: i64,
            a_missed: i64,
            b_last_sent: i64,
            b_read: i64,
            b_delivered: i64,
            b_missed: i64,
            updated_at: i64,
        }
        let rows: Vec<Row> = chats
            .iter()
            .map(|(id, Ledger { last, a, b })| Row {
                id: *id,
                last: *last,
                a_last_sent: a.last_sent,
                a_read: a.read,
                a_delivered: a.delivered,
                a_missed: a.missed,
                b_last_sent: b.last_sent,
                b_read: b.read,
                b_delivered: b.delivered,
                b_missed: b.missed,
                updated_at: now,
            })
            .collect();
        execute(&self.txn, &self.sql.update_chats, &rows).await.map(drop)
    }

    /// What is stored under these senders' keys.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn known(
        &self,
        keys: &[(UserId, ClientMessageId)],
    ) -> Result<Vec<((UserId, ClientMessageId), Known)>, Error> {
        #[derive(Serialize)]
        struct Row<'a> {
            sender: &'a UserId,
            client_message_id: &'a ClientMessageId,
        }
        #[derive(FromQueryResult)]
        struct Found {
            sender: String,
            client_message_id: String,
            message_id: i64,
            digest: i64,
        }
        let rows: Vec<Row<'_>> = keys
            .iter()
            .map(|(sender, client_message_id)| Row { sender, client_message_id })
            .collect();
        let found: Vec<Found> = query(&self.txn, &self.sql.known, &rows).await?;
        found
            .into_iter()
            .map(|Found { sender, client_message_id, message_id, digest }| {
                let sender = UserId::new(sender).map_err(|_| Error::Corrupt("messages.sender"))?;
                let key = client_key(&client_message_id)?;
                Ok(((sender, key), Known { message_id, digest }))
            })
            .collect()
    }

    /// The messages among these (chat row, message id) that exist.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn points(&self, points: &[(i64, i64)]) -> Result<Vec<Point>, Error> {
        query(&self.txn, &self.sql.points, &places(points)).await
    }

    /// Answers questions about ranges of messages.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn spans(&self, spans: &[SpanQuery]) -> Result<Vec<SpanAnswer>, Error> {
        #[derive(FromQueryResult)]
        struct Found {
            chat_id: i64,
            from_a: bool,
            after: i64,
            up_to: i64,
            unread: i64,
            newest: Option<i64>,
        }
        let found: Vec<Found> = query(&self.txn, &self.sql.spans, spans).await?;
        Ok(found
            .into_iter()
            .map(|Found { chat_id, from_a, after, up_to, unread, newest }| SpanAnswer {
                query: SpanQuery { chat_id, from_a, after, up_to },
                unread,
                newest,
            })
            .collect())
    }

    /// Stores messages.
    ///
    /// # Errors
    /// If the database fails, or one of the keys is taken.
    pub async fn insert_messages(&self, messages: &[NewMessage]) -> Result<(), Error> {
        execute(&self.txn, &self.sql.insert_messages, messages).await.map(drop)
    }

    /// Marks messages (chat row, message id) as deleted and removes their content.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn erase(&self, messages: &[(i64, i64)]) -> Result<(), Error> {
        execute(&self.txn, &self.sql.erase, &places(messages)).await.map(drop)
    }

    /// Moves partitions forward and commits: all or nothing.
    ///
    /// # Errors
    /// [`Error::Fenced`] if a partition does not stand where it is expected: another worker has moved it.
    pub async fn commit(self, moves: &[Move]) -> Result<(), Error> {
        let moved = execute(&self.txn, &self.sql.move_partitions, moves).await?;
        if usize::try_from(moved) != Ok(moves.len()) {
            self.txn.rollback().await?;
            return Err(Error::Fenced);
        }
        Ok(self.txn.commit().await?)
    }
}

#[derive(Serialize)]
struct Pair<'a> {
    user_a: &'a UserId,
    user_b: &'a UserId,
}

fn pairs(chats: &[Chat]) -> Vec<Pair<'_>> {
    chats
        .iter()
        .map(|chat| Pair { user_a: chat.member(Side::A), user_b: chat.member(Side::B) })
        .collect()
}

#[derive(Serialize)]
struct Place {
    chat_id: i64,
    message_id: i64,
}

fn places(points: &[(i64, i64)]) -> Vec<Place> {
    points.iter().map(|&(chat_id, message_id)| Place { chat_id, message_id }).collect()
}
