//! What a batch changes, and the statements that write it: all or nothing, and only if every partition of the batch
//! still stands where this worker believes it to be.

use sea_orm::{
    DatabaseConnection, DbErr, RuntimeErr, SqliteTransactionMode, SqlxError, TransactionOptions,
    TransactionTrait,
    sqlx::{self, AssertSqlSafe, PgConnection, Postgres, pool::PoolConnection},
};
use serde::Serialize;

use super::{Error, Move, NewMessage, execute, places, sql::Sql};
use crate::unread::Ledger;

/// What a batch changes.
#[derive(Debug, Default)]
pub struct Changes {
    /// The partitions' steps forward.
    pub moves: Vec<Move>,
    /// Messages to be stored.
    pub messages: Vec<NewMessage>,
    /// Chats' rows and their counters.
    pub counters: Vec<(i64, Ledger)>,
    /// Messages (chat row, message id) to be marked as deleted and emptied.
    pub erased: Vec<(i64, i64)>,
    /// Milliseconds since the Unix epoch.
    pub now: i64,
}

/// A chat's counters as a row.
#[derive(Serialize)]
struct Counters {
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

/// A connection to commit with.
pub(super) async fn writer(db: &DatabaseConnection) -> Result<PoolConnection<Postgres>, Error> {
    let connection = db.get_postgres_connection_pool().acquire().await;
    connection.map_err(|error| Error::Database(database(error)))
}

fn column<'a, R, T>(rows: &'a [R], value: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

fn database(error: SqlxError) -> DbErr {
    DbErr::Exec(RuntimeErr::SqlxError(error.into()))
}

impl Changes {
    fn counters(&self) -> Vec<Counters> {
        let row = |&(id, Ledger { last, a, b }): &(i64, Ledger)| Counters {
            id,
            last,
            a_last_sent: a.last_sent,
            a_read: a.read,
            a_delivered: a.delivered,
            a_missed: a.missed,
            b_last_sent: b.last_sent,
            b_read: b.read,
            b_delivered: b.delivered,
            b_missed: b.missed,
            updated_at: self.now,
        };
        self.counters.iter().map(row).collect()
    }

    /// One statement and one round trip: PostgreSQL runs it as a transaction of its own. If a partition has not moved,
    /// the statement fails, and nothing of it happens.
    pub(super) async fn write_to_postgres(
        &self,
        connection: &mut PgConnection,
        sql: &Sql,
    ) -> Result<(), Error> {
        let Self { moves, messages, erased, .. } = self;
        let counters = self.counters();
        let text = match (messages.is_empty(), erased.is_empty()) {
            (true, true) => &sql.commit.counters,
            (false, true) => &sql.commit.messages,
            (_, false) => &sql.commit.erased,
        };
        let mut statement = sqlx::query(AssertSqlSafe(text.as_str()))
            .bind(column(moves, |step| i64::from(step.id)))
            .bind(column(moves, |step| step.epoch))
            .bind(column(moves, |step| step.expected_epoch))
            .bind(column(moves, |step| step.expected))
            .bind(column(moves, |step| step.applied))
            .bind(column(moves, |step| step.seen_at))
            .bind(column(moves, |step| step.moved_at))
            .bind(column(moves, |step| step.events.as_str()))
            .bind(column(&counters, |chat| chat.id))
            .bind(column(&counters, |chat| chat.last))
            .bind(column(&counters, |chat| chat.a_last_sent))
            .bind(column(&counters, |chat| chat.a_read))
            .bind(column(&counters, |chat| chat.a_delivered))
            .bind(column(&counters, |chat| chat.a_missed))
            .bind(column(&counters, |chat| chat.b_last_sent))
            .bind(column(&counters, |chat| chat.b_read))
            .bind(column(&counters, |chat| chat.b_delivered))
            .bind(column(&counters, |chat| chat.b_missed))
            .bind(column(&counters, |chat| chat.updated_at));
        if !(messages.is_empty() && erased.is_empty()) {
            statement = statement
                .bind(column(messages, |message| message.chat_id))
                .bind(column(messages, |message| message.message_id))
                .bind(column(messages, |message| message.from_a))
                .bind(column(messages, |message| message.sender.as_str()))
                .bind(column(messages, |message| message.client_message_id.as_str()))
                .bind(column(messages, |message| message.digest))
                .bind(column(messages, |message| message.sent_at))
                .bind(column(messages, |message| message.stored_at))
                .bind(column(messages, |message| message.body.as_deref()))
                .bind(column(messages, |message| message.attachments.as_deref()))
                .bind(column(messages, |message| message.deleted));
        }
        if !erased.is_empty() {
            statement = statement
                .bind(column(erased, |place| place.0))
                .bind(column(erased, |place| place.1));
        }
        let written = statement.execute(connection).await;
        written.map(drop).map_err(|error| Error::from_commit(database(error)))
    }

    /// SQLite has no statement that writes to several tables.
    pub(super) async fn write_to_sqlite(
        &self,
        db: &DatabaseConnection,
        sql: &Sql,
    ) -> Result<(), Error> {
        // The write lock is taken at once: upgrading a read lock later can fail.
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        let txn = db.begin_with_options(options).await?;
        let moved = execute(&txn, &sql.move_partitions, &self.moves).await?;
        if usize::try_from(moved) != Ok(self.moves.len()) {
            txn.rollback().await?;
            return Err(Error::Fenced);
        }
        execute(&txn, &sql.insert_messages, &self.messages).await.map_err(Error::or_taken)?;
        execute(&txn, &sql.update_chats, &self.counters()).await?;
        execute(&txn, &sql.erase, &places(&self.erased)).await?;
        Ok(txn.commit().await?)
    }
}
