//! Reads what the database holds at the end, for the checker.

use anyhow::{Context as _, Result};
use herald_worker::store::entity::{chat, message};
use sea_orm::EntityTrait as _;

use crate::history::{
    Chat, Key, Stored, User,
    stored::{StoredChat, StoredMember, StoredMessage},
};

/// All chats and messages of that database in which the fleet's users are alone.
///
/// # Errors
/// If it can't be read, or holds what the fleet can't have sent.
pub async fn audit(database_url: &str) -> Result<Stored> {
    let db =
        sea_orm::Database::connect(database_url).await.context("connecting to the database")?;
    let chats = chat::Entity::find().all(&db).await?;
    let messages = message::Entity::find().all(&db).await?;
    db.close().await?;
    let mut stored = Stored::default();
    let mut by_row = std::collections::HashMap::new();
    for row in chats {
        let (Some(a), Some(b)) = (User::named(&row.user_a), User::named(&row.user_b)) else {
            continue;
        };
        let read = chat(&row, a, b).with_context(|| format!("the chat {row:?}"))?;
        by_row.insert(row.id, read.chat);
        stored.chats.push(read);
    }
    for row in messages {
        let Some(chat) = by_row.get(&row.chat_id) else { continue };
        let read = message(&row, *chat).with_context(|| format!("the message {row:?}"))?;
        stored.messages.push(read);
    }
    Ok(stored)
}

fn chat(row: &chat::Model, user_a: User, user_b: User) -> Result<StoredChat> {
    let chat = Chat::of(user_a, user_b);
    let a = member(row.a_read, row.a_delivered, row.a_missed)?;
    let b = member(row.b_read, row.b_delivered, row.b_missed)?;
    // The database sorts members by their names, a history by their numbers.
    let (low, high) = if chat.low == user_a { (a, b) } else { (b, a) };
    Ok(StoredChat { chat, last: row.last.try_into()?, low, high })
}

fn member(read: i64, delivered: i64, missed: i64) -> Result<StoredMember> {
    Ok(StoredMember {
        read: read.try_into()?,
        delivered: delivered.try_into()?,
        missed: missed.try_into()?,
    })
}

fn message(row: &message::Model, chat: Chat) -> Result<StoredMessage> {
    Ok(StoredMessage {
        chat,
        message: row.message_id.try_into()?,
        sender: User::named(&row.sender).context("not a user of the fleet")?,
        key: Key(row.client_message_id.parse()?),
        is_deleted: row.deleted,
    })
}
