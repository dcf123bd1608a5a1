//! What a batch changes, and the statements that write it: all or nothing, and only if every partition of the batch
//! still stands where this worker believes it to be.

use sea_orm::{
    DatabaseConnection, DbErr, RuntimeErr, SqliteTransactionMode, SqlxError, TransactionOptions,
    TransactionTrait,
    sqlx::{
        self, AssertSqlSafe, Encode, PgConnection, Postgres, Type, pool::PoolConnection,
        postgres::PgArguments, query::Query,
    },
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

/// A statement for any number of rows, or for one of each kind.
struct Statement<'q> {
    query: Query<'q, Postgres, PgArguments>,
    is_single: bool,
}

impl<'q> Statement<'q> {
    /// Binds the rows' next column: an array, or the one row's value.
    fn bind<R, T>(mut self, rows: &'q [R], value: impl Fn(&'q R) -> T) -> Self
    where
        T: Encode<'q, Postgres> + Type<Postgres> + 'q,
        Vec<T>: Encode<'q, Postgres> + Type<Postgres> + 'q,
    {
        self.query = match rows {
            [row] if self.is_single => self.query.bind(value(row)),
            rows => self.query.bind(rows.iter().map(value).collect::<Vec<_>>()),
        };
        self
    }
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
        let is_single =
            (moves.len(), counters.len()) == (1, 1) && messages.len() <= 1 && erased.is_empty();
        let text = match (is_single, messages.is_empty(), erased.is_empty()) {
            (true, true, _) => &sql.commit.one_chat,
            (true, false, _) => &sql.commit.one_message,
            (false, true, true) => &sql.commit.counters,
            (false, false, true) => &sql.commit.messages,
            (false, _, false) => &sql.commit.erased,
        };
        let query = sqlx::query(AssertSqlSafe(text.as_str()));
        let mut statement = Statement { query, is_single }
            .bind(moves, |step| i64::from(step.id))
            .bind(moves, |step| step.epoch)
            .bind(moves, |step| step.expected_epoch)
            .bind(moves, |step| step.expected)
            .bind(moves, |step| step.applied)
            .bind(moves, |step| step.seen_at)
            .bind(moves, |step| step.moved_at)
            .bind(moves, |step| step.events.as_str())
            .bind(&counters, |chat| chat.id)
            .bind(&counters, |chat| chat.last)
            .bind(&counters, |chat| chat.a_last_sent)
            .bind(&counters, |chat| chat.a_read)
            .bind(&counters, |chat| chat.a_delivered)
            .bind(&counters, |chat| chat.a_missed)
            .bind(&counters, |chat| chat.b_last_sent)
            .bind(&counters, |chat| chat.b_read)
            .bind(&counters, |chat| chat.b_delivered)
            .bind(&counters, |chat| chat.b_missed)
            .bind(&counters, |chat| chat.updated_at);
        if !(messages.is_empty() && erased.is_empty()) {
            statement = statement
                .bind(messages, |message| message.chat_id)
                .bind(messages, |message| message.message_id)
                .bind(messages, |message| message.from_a)
                .bind(messages, |message| message.sender.as_str())
                .bind(messages, |message| message.client_message_id.as_str())
                .bind(messages, |message| message.digest)
                .bind(messages, |message| message.sent_at)
                .bind(messages, |message| message.stored_at)
                .bind(messages, |message| message.body.as_deref())
                .bind(messages, |message| message.attachments.as_deref())
                .bind(messages, |message| message.deleted);
        }
        if !erased.is_empty() {
            statement = statement.bind(erased, |place| place.0).bind(erased, |place| place.1);
        }
        let written = statement.query.execute(connection).await;
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
