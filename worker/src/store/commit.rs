//! What a batch changes, and the statements that write it: all or nothing, and only if every partition of the batch
//! still stands where this worker believes it to be.

use sea_orm::{
    DatabaseConnection, DbErr, RuntimeErr, SqliteTransactionMode, SqlxError, TransactionOptions,
    TransactionTrait,
    sqlx::{self, AssertSqlSafe, PgConnection, Postgres, pool::PoolConnection},
};
use serde::Serialize;

use super::{Error, Move, NewMessage, execute, json, places, sql::Sql};
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

/// A partition's step with its events, as SQLite takes it.
#[derive(Serialize)]
struct Step<'a> {
    #[serde(flatten)]
    step: &'a Move,
    events: &'a str,
}

/// A connection to commit with.
pub(super) async fn writer(db: &DatabaseConnection) -> Result<PoolConnection<Postgres>, Error> {
    let connection = db.get_postgres_connection_pool().acquire().await;
    connection.map_err(|error| Error::Database(database(error)))
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
    /// the statement divides by zero, and nothing of it happens.
    pub(super) async fn write_to_postgres(
        &self,
        connection: &mut PgConnection,
        sql: &Sql,
    ) -> Result<(), Error> {
        let partitions: Vec<i64> = self.moves.iter().map(|step| step.id.into()).collect();
        let events: Vec<&str> = self.moves.iter().map(|step| step.events.as_str()).collect();
        let statement = sqlx::query(AssertSqlSafe(sql.commit.as_str()))
            .bind(json(&self.moves)?)
            .bind(json(&self.messages)?)
            .bind(json(&self.counters())?)
            .bind(json(&places(&self.erased))?)
            .bind(partitions)
            .bind(events);
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
        let step = |step| Step { step, events: &step.events };
        let moves: Vec<Step<'_>> = self.moves.iter().map(step).collect();
        let moved = execute(&txn, &sql.move_partitions, &moves).await?;
        if usize::try_from(moved) != Ok(moves.len()) {
            txn.rollback().await?;
            return Err(Error::Fenced);
        }
        execute(&txn, &sql.insert_messages, &self.messages).await.map_err(Error::or_taken)?;
        execute(&txn, &sql.update_chats, &self.counters()).await?;
        execute(&txn, &sql.erase, &places(&self.erased)).await?;
        Ok(txn.commit().await?)
    }
}
