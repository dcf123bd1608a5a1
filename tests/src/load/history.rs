//! What lies in the database: a chat that is long already is written there in one go, for by way of the service it would
//! take minutes.

use anyhow::{Context as _, Result};
use herald_proto::clock::now_ms;
use sea_orm::{
    ConnectOptions, ConnectionTrait as _, Database, DatabaseConnection, DbBackend, Statement,
    TransactionTrait as _,
};

/// Writes a chat that the service has not heard of yet: so many messages of one user, whose id sorts first, all of them
/// received and none of them read by the other.
///
/// # Errors
/// If the database refuses.
pub async fn write(
    database_url: &str,
    sender: &str,
    recipient: &str,
    messages: u32,
    text: &str,
) -> Result<()> {
    let database = connect(database_url).await?;
    let (backend, now) = (database.get_database_backend(), now_ms());
    let all = database.begin().await?;
    let chat = Statement::from_sql_and_values(
        backend,
        "INSERT INTO chats (user_a, user_b, last, a_last_sent, b_delivered, b_missed, updated_at) \
         VALUES ($1, $2, $3, $3, $3, $3, $4) RETURNING id",
        [sender.into(), recipient.into(), i64::from(messages).into(), now.into()],
    );
    let chat = all.query_one_raw(chat).await?.context("no chat was made")?;
    let chat: i64 = chat.try_get("", "id")?;
    let rows = format!(
        "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {messages}) \
         INSERT INTO messages (chat_id, message_id, from_a, sender, client_message_id, digest, sent_at, stored_at, \
         body, deleted) SELECT {chat}, n, TRUE, $1, 'old-' || n, n, {now}, {now}, $2, FALSE FROM numbers"
    );
    let rows = Statement::from_sql_and_values(backend, rows, [sender.into(), text.into()]);
    all.execute_raw(rows).await.context("writing messages")?;
    all.commit().await?;
    database.execute_unprepared("ANALYZE messages").await?;
    if backend == DbBackend::Postgres {
        // What is written back later would be measured.
        database.execute_unprepared("CHECKPOINT").await?;
    }
    database.close().await?;
    eprintln!("the chat holds {messages} messages");
    Ok(())
}

/// How many messages there are in all.
///
/// # Errors
/// If the database refuses.
pub async fn messages(database_url: &str) -> Result<u64> {
    let database = connect(database_url).await?;
    let count = "SELECT count(*) AS messages FROM messages";
    let count = Statement::from_string(database.get_database_backend(), count);
    let row = database.query_one_raw(count).await?.context("no count")?;
    let messages: i64 = row.try_get("", "messages")?;
    database.close().await?;
    Ok(u64::try_from(messages)?)
}

async fn connect(database_url: &str) -> Result<DatabaseConnection> {
    let mut options = ConnectOptions::new(database_url);
    options.max_connections(1).sqlx_logging(false);
    Database::connect(options).await.context("connecting to the database")
}
