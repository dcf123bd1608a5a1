//! The record of messages, in PostgreSQL or SQLite. Nothing else in Herald knows a database.

use std::time::Duration;

use herald_proto::UserId;
use sea_orm::{
    ColumnTrait, Condition, ConnectOptions, ConnectionTrait, DatabaseConnection, DbBackend, DbErr,
    EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect, SqliteTransactionMode,
    Statement, TransactionOptions, TransactionTrait,
};
use sea_orm_migration::MigratorTrait;
use serde::Serialize;

pub mod entity;
mod error;
pub mod migration;
mod model;
mod sql;
mod transaction;

use entity::chat;
pub use error::Error;
pub(crate) use model::client_key;
pub use model::{
    Known, Move, NewMessage, PartitionState, Point, SpanAnswer, SpanQuery, StoredChat,
};
use sql::Sql;
pub use transaction::Transaction;

/// The database. Clones share one pool.
#[derive(Clone)]
pub struct Store {
    db: DatabaseConnection,
    sql: std::sync::Arc<Sql>,
}

impl Store {
    /// Opens the database (`postgres://…` or `sqlite://…`) with at most `connections` connections.
    ///
    /// # Errors
    /// If the URL is bad or the database can't be reached.
    pub async fn connect(url: &str, connections: u32) -> Result<Self, Error> {
        let mut options = ConnectOptions::new(url);
        options
            .max_connections(connections)
            .acquire_timeout(Duration::from_secs(5))
            .connect_timeout(Duration::from_secs(5))
            .sqlx_logging(false)
            // A connection that died is found out by the next statement, which is retried; testing costs a round trip.
            .test_before_acquire(false)
            .map_sqlx_postgres_opts(|options| {
                // Every batch statement looks rows up by key. Without statistics on a young table the planner would
                // scan it whole instead, and keep that plan prepared while the table grows.
                options.application_name("herald-worker").options([
                    ("enable_seqscan", "off"),
                    ("enable_hashjoin", "off"),
                    ("enable_mergejoin", "off"),
                    ("plan_cache_mode", "force_generic_plan"),
                    ("jit", "off"),
                ])
            })
            .map_sqlx_sqlite_opts(|options| {
                options
                    .pragma("journal_mode", "WAL")
                    // FULL syncs the log at every commit: what was answered survives a power failure.
                    .pragma("synchronous", "FULL")
                    .busy_timeout(Duration::from_secs(10))
                    .create_if_missing(true)
            });
        let db = sea_orm::Database::connect(options).await?;
        let sql = std::sync::Arc::new(Sql::new(db.get_database_backend()));
        Ok(Self { db, sql })
    }

    /// Brings the schema up to date.
    ///
    /// # Errors
    /// If a migration fails.
    pub async fn migrate(&self) -> Result<(), Error> {
        Ok(migration::Migrator::up(&self.db, None).await?)
    }

    /// Checks that the schema is the one this program knows.
    ///
    /// # Errors
    /// [`Error::Schema`] if migrations are missing.
    pub async fn check_schema(&self) -> Result<(), Error> {
        let pending = migration::Migrator::get_pending_migrations(&self.db).await?;
        if pending.is_empty() { Ok(()) } else { Err(Error::Schema(pending.len())) }
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// If it does not.
    pub async fn ping(&self) -> Result<(), Error> {
        Ok(self.db.ping().await?)
    }

    /// Makes sure that a partition has a row that counts in the stream created at `epoch` (nanoseconds since the Unix
    /// epoch), and says where it stands there.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn partition(&self, id: u16, epoch: i64) -> Result<PartitionState, Error> {
        #[derive(Serialize)]
        struct Row {
            id: u16,
            epoch: i64,
        }
        let row = [Row { id, epoch }];
        execute(&self.db, &self.sql.create_partitions, &row).await?;
        execute(&self.db, &self.sql.renew_partitions, &row).await?;
        let found = query(&self.db, &self.sql.partitions, &row).await?;
        found.into_iter().next().ok_or(Error::Corrupt("partitions: a row is missing"))
    }

    /// Up to `limit` users that share a chat with `user`, latest chats first.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn contacts(&self, user: &UserId, limit: u64) -> Result<Vec<UserId>, Error> {
        let chats = chat::Entity::find()
            .filter(
                Condition::any()
                    .add(chat::Column::UserA.eq(user.as_str()))
                    .add(chat::Column::UserB.eq(user.as_str())),
            )
            .order_by_desc(chat::Column::UpdatedAt)
            .limit(limit)
            .all(&self.db)
            .await?;
        chats
            .into_iter()
            .map(|chat| {
                let peer = if chat.user_a == user.as_str() { chat.user_b } else { chat.user_a };
                UserId::new(peer).map_err(|_| Error::Corrupt("chats: a member is not a user id"))
            })
            .collect()
    }

    /// Starts a transaction. In SQLite it takes the write lock at once: upgrading a read lock later can fail.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn begin(&self) -> Result<Transaction<'_>, Error> {
        let options = TransactionOptions {
            sqlite_transaction_mode: (self.db.get_database_backend() == DbBackend::Sqlite)
                .then_some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        Ok(Transaction { txn: self.db.begin_with_options(options).await?, sql: &self.sql })
    }
}

fn statement<T: Serialize>(
    db: &impl ConnectionTrait,
    sql: &str,
    rows: &[T],
) -> Result<Statement, Error> {
    let json = serde_json::to_string(rows)
        .map_err(|error| Error::Database(DbErr::Json(error.to_string())))?;
    Ok(Statement::from_sql_and_values(db.get_database_backend(), sql, [json.into()]))
}

/// Runs a batch statement; no rows, no round trip. Returns the number of rows affected.
async fn execute<T: Serialize>(
    db: &impl ConnectionTrait,
    sql: &str,
    rows: &[T],
) -> Result<u64, Error> {
    if rows.is_empty() {
        return Ok(0);
    }
    Ok(db.execute_raw(statement(db, sql, rows)?).await?.rows_affected())
}

/// Runs a batch query; no rows, no round trip.
async fn query<T: Serialize, R: FromQueryResult>(
    db: &impl ConnectionTrait,
    sql: &str,
    rows: &[T],
) -> Result<Vec<R>, Error> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let found = db.query_all_raw(statement(db, sql, rows)?).await?;
    Ok(found.iter().map(|row| R::from_query_result(row, "")).collect::<Result<_, _>>()?)
}
