//! The record of messages, in PostgreSQL or SQLite. Nothing else in Herald knows a database.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use sea_orm::{
    ConnectOptions, ConnectionTrait, DatabaseConnection, DbBackend, DbErr, FromQueryResult,
    Statement,
    sqlx::{Postgres, pool::PoolConnection, postgres::PgConnectOptions},
};
use sea_orm_migration::MigratorTrait;
use serde::Serialize;
use tokio::sync::Mutex;

mod commit;
pub mod entity;
mod error;
mod lookup;
pub mod migration;
mod model;
mod sql;

pub use commit::Changes;
pub use error::Error;
pub(crate) use model::client_key;
pub use model::{
    EventStream, Known, Move, NewMessage, PartitionState, Point, Recent, SpanAnswer, SpanQuery,
    StoredChat,
};
use sql::Sql;

/// The database. Clones share one pool.
#[derive(Clone)]
pub struct Store {
    /// The pool; another one takes its place when its connections hang.
    pool: Arc<RwLock<DatabaseConnection>>,
    /// PostgreSQL's connection that commits, kept: one that goes back to the pool is tested there, which costs a
    /// round trip and wakes two processes.
    writer: Arc<Mutex<Option<PoolConnection<Postgres>>>>,
    options: Arc<ConnectOptions>,
    sql: Arc<Sql>,
    server: Option<Arc<Server>>,
}

/// Where a database is that is not a file.
#[derive(Debug, PartialEq)]
pub struct Server {
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The database there.
    pub database: String,
}

/// How long the database may take for anything. A connection that was cut without a word never answers.
const DEADLINE: Duration = Duration::from_secs(10);

impl Store {
    /// Opens the database (`postgres://…` or `sqlite://…`) with at most `connections` connections.
    ///
    /// # Errors
    /// If the URL is bad or the database can't be reached.
    pub async fn connect(url: &str, connections: u32) -> Result<Self, Error> {
        let mut options = options(url, connections);
        let db = sea_orm::Database::connect(options.clone()).await?;
        let sql = Arc::new(Sql::new(db.get_database_backend()));
        options.connect_lazy(true);
        Ok(Self {
            pool: Arc::new(RwLock::new(db)),
            writer: Arc::default(),
            options: Arc::new(options),
            sql,
            server: server(url).map(Arc::new),
        })
    }

    fn db(&self) -> DatabaseConnection {
        // It is replaced by one assignment: whole, whoever panicked while holding the lock.
        self.pool.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Which database it is, as OpenTelemetry names it (`db.system.name`).
    pub fn system(&self) -> &'static str {
        match self.db().get_database_backend() {
            DbBackend::Postgres => "postgresql",
            _ => "sqlite",
        }
    }

    /// Where it is; `None` for SQLite.
    pub fn server(&self) -> Option<&Server> {
        self.server.as_deref()
    }

    /// Does something with the database, but does not wait for ever: what hangs is left behind with its pool.
    async fn within_deadline<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        if let Ok(done) = tokio::time::timeout(DEADLINE, work).await {
            return done;
        }
        let fresh = sea_orm::Database::connect(self.options.as_ref().clone()).await?;
        *self.pool.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Err(Error::Late)
    }

    /// Brings the schema up to date.
    ///
    /// # Errors
    /// If a migration fails.
    pub async fn migrate(&self) -> Result<(), Error> {
        Ok(migration::Migrator::up(&self.db(), None).await?)
    }

    /// Checks that the schema is the one this program knows.
    ///
    /// # Errors
    /// [`Error::Schema`] if migrations are missing.
    pub async fn check_schema(&self) -> Result<(), Error> {
        let pending = migration::Migrator::get_pending_migrations(&self.db()).await?;
        if pending.is_empty() { Ok(()) } else { Err(Error::Schema(pending.len())) }
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// If it does not.
    pub async fn ping(&self) -> Result<(), Error> {
        self.within_deadline(async { Ok(self.db().ping().await?) }).await
    }

    /// Makes sure that a partition has a row that counts in the stream created at `created` (nanoseconds since the
    /// Unix epoch), and says where it stands there.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn partition(&self, id: u16, created: i64) -> Result<PartitionState, Error> {
        #[derive(Serialize)]
        struct Row {
            id: u16,
            epoch: i64,
        }
        let row = [Row { id, epoch: created }];
        self.execute(&self.sql.create_partitions, &row).await?;
        self.execute(&self.sql.renew_partitions, &row).await?;
        let found = self.query(&self.sql.partitions, &row).await?;
        found.into_iter().next().ok_or(Error::Corrupt("partitions: a row is missing"))
    }

    /// Writes what a batch changes: all of it, or nothing.
    ///
    /// # Errors
    /// [`Error::Fenced`] if a partition does not stand where it is expected: another worker has moved it.
    /// [`Error::Taken`] if a message's key is in use already.
    pub async fn commit(&self, changes: &Changes) -> Result<(), Error> {
        let db = self.db();
        self.within_deadline(async {
            if db.get_database_backend() == DbBackend::Postgres {
                let mut writer = self.writer.lock().await;
                // Taken out: one that fails, or is not waited for, is not used again.
                let mut connection = match writer.take() {
                    Some(connection) => connection,
                    None => commit::writer(&db).await?,
                };
                changes.write_to_postgres(&mut connection, &self.sql).await?;
                *writer = Some(connection);
                Ok(())
            } else {
                changes.write_to_sqlite(&db, &self.sql).await
            }
        })
        .await
    }

    /// What is known of the event streams: how far their ids have been given out.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn event_stream(&self, id: u16) -> Result<Option<EventStream>, Error> {
        #[derive(Serialize)]
        struct Row {
            id: u16,
        }
        Ok(self.query(&self.sql.event_streams, &[Row { id }]).await?.into_iter().next())
    }

    /// Notes an event stream that was not known before.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn create_event_stream(&self, stream: EventStream) -> Result<(), Error> {
        self.execute(&self.sql.create_event_streams, &[stream]).await.map(drop)
    }

    /// Notes how far event streams' ids have been given out; never goes back.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn raise_event_streams(&self, streams: &[EventStream]) -> Result<(), Error> {
        self.execute(&self.sql.raise_event_streams, streams).await.map(drop)
    }

    /// Takes a stream from where it is known to stand to where its ids jump. Only one worker can.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn jump_event_stream(
        &self,
        from: EventStream,
        to: EventStream,
    ) -> Result<bool, Error> {
        #[derive(Serialize)]
        struct Row {
            id: i32,
            old_high: i64,
            created: i64,
            high: i64,
        }
        let row = Row { id: from.id, old_high: from.high, created: to.created, high: to.high };
        Ok(self.execute(&self.sql.jump_event_streams, &[row]).await? == 1)
    }

    /// Runs a batch statement; no rows, no round trip. Returns the number of rows affected.
    async fn execute<T: Serialize>(&self, sql: &str, rows: &[T]) -> Result<u64, Error> {
        self.within_deadline(execute(&self.db(), sql, rows)).await
    }

    /// Runs a batch query; no rows, no round trip.
    async fn query<T: Serialize, R: FromQueryResult>(
        &self,
        sql: &str,
        rows: &[T],
    ) -> Result<Vec<R>, Error> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let db = self.db();
        let statement = statement(&db, sql, rows)?;
        let found = self.within_deadline(async { Ok(db.query_all_raw(statement).await?) }).await?;
        Ok(found.iter().map(|row| R::from_query_result(row, "")).collect::<Result<_, _>>()?)
    }
}

fn server(url: &str) -> Option<Server> {
    let options: PgConnectOptions =
        url.starts_with("postgres").then(|| url.parse().ok()).flatten()?;
    let database = options.get_database().unwrap_or(options.get_username()).to_owned();
    Some(Server { host: options.get_host().to_owned(), port: options.get_port(), database })
}

fn options(url: &str, connections: u32) -> ConnectOptions {
    let mut options = ConnectOptions::new(url);
    options
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(5))
        .connect_timeout(Duration::from_secs(5))
        .sqlx_logging(false)
        // A connection that died is found out by the next statement, which is retried; testing costs a round trip.
        .test_before_acquire(false)
        .map_sqlx_postgres_opts(|options| {
            options.application_name("herald-worker").options([
                // Every batch statement looks rows up by key. Without statistics on a young table the planner would
                // scan it whole instead, and keep that plan prepared while the table grows.
                ("enable_seqscan", "off"),
                ("enable_hashjoin", "off"),
                ("enable_mergejoin", "off"),
                ("plan_cache_mode", "force_generic_plan"),
                ("jit", "off"),
                // A worker that vanished must not hold its locks for longer than another one waits.
                ("statement_timeout", "30s"),
                ("lock_timeout", "8s"),
                ("idle_in_transaction_session_timeout", "8s"),
                ("tcp_keepalives_idle", "10"),
                ("tcp_keepalives_interval", "5"),
                ("tcp_keepalives_count", "3"),
            ])
        })
        .map_sqlx_sqlite_opts(|options| {
            options
                .pragma("journal_mode", "WAL")
                // FULL syncs the log at every commit: what was answered survives a power failure.
                .pragma("synchronous", "FULL")
                .busy_timeout(Duration::from_secs(8))
                .create_if_missing(true)
        });
    options
}

fn json<T: Serialize>(rows: &[T]) -> Result<String, Error> {
    serde_json::to_string(rows).map_err(|error| Error::Database(DbErr::Json(error.to_string())))
}

fn statement<T: Serialize>(
    db: &impl ConnectionTrait,
    sql: &str,
    rows: &[T],
) -> Result<Statement, Error> {
    let backend = db.get_database_backend();
    Ok(Statement::from_sql_and_values(backend, sql, [json(rows)?.into()]))
}

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

/// A message's place: chat row and message id.
#[derive(Serialize)]
struct Place {
    chat_id: i64,
    message_id: i64,
}

fn places(points: &[(i64, i64)]) -> Vec<Place> {
    points.iter().map(|&(chat_id, message_id)| Place { chat_id, message_id }).collect()
}
