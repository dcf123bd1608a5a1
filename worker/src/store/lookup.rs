//! What a batch may have to look up before it is applied.

use herald_proto::{Chat, ClientMessageId, Side, UserId};
use sea_orm::FromQueryResult;
use serde::Serialize;

use super::{
    Error, Known, Point, SpanAnswer, SpanQuery, Store, StoredChat, client_key, entity::chat, places,
};

impl Store {
    /// The chats among these that exist.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn chats(&self, chats: &[Chat]) -> Result<Vec<StoredChat>, Error> {
        let found: Vec<chat::Model> = self.query(&self.sql.chats, &pairs(chats)).await?;
        found.into_iter().map(StoredChat::from_row).collect()
    }

    /// Creates chats, empty, unless they exist.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn create_chats(&self, chats: &[Chat]) -> Result<(), Error> {
        self.execute(&self.sql.create_chats, &pairs(chats)).await.map(drop)
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
        let found: Vec<Found> = self.query(&self.sql.known, &rows).await?;
        found
            .into_iter()
            .map(|Found { sender, client_message_id, message_id, digest }| {
                let sender = UserId::new(sender).map_err(|_| Error::Corrupt("messages.sender"))?;
                let key = client_key(&client_message_id)?;
                Ok(((sender, key), Known { message_id, digest }))
            })
            .collect()
    }

    /// For each of these users, in their order, up to `limit` users that share a chat with it, latest chats first.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn contacts(
        &self,
        users: &[UserId],
        limit: usize,
    ) -> Result<Vec<Vec<UserId>>, Error> {
        #[derive(Serialize)]
        struct Row {
            place: usize,
            user_id: UserId,
            most: usize,
        }
        #[derive(FromQueryResult)]
        struct Found {
            place: i64,
            peer: String,
        }
        let row = |(place, user_id): (usize, &UserId)| Row {
            place,
            user_id: user_id.clone(),
            most: limit,
        };
        let rows: Vec<Row> = users.iter().enumerate().map(row).collect();
        let mut contacts = vec![Vec::new(); users.len()];
        for Found { place, peer } in self.query(&self.sql.contacts, &rows).await? {
            let peer = UserId::new(peer)
                .map_err(|_| Error::Corrupt("chats: a member is not a user id"))?;
            if let Some(of_user) =
                usize::try_from(place).ok().and_then(|place| contacts.get_mut(place))
            {
                of_user.push(peer);
            }
        }
        Ok(contacts)
    }

    /// The messages among these (chat row, message id) that exist.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn points(&self, points: &[(i64, i64)]) -> Result<Vec<Point>, Error> {
        self.query(&self.sql.points, &places(points)).await
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
        let found: Vec<Found> = self.query(&self.sql.spans, spans).await?;
        Ok(found
            .into_iter()
            .map(|Found { chat_id, from_a, after, up_to, unread, newest }| SpanAnswer {
                query: SpanQuery { chat_id, from_a, after, up_to },
                unread,
                newest,
            })
            .collect())
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
