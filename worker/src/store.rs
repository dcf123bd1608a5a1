//! The record of messages, in PostgreSQL or SQLite. Nothing else in Herald knows a database.

use std::time::Duration;

use herald_proto::{Chat, ClientMessageId, Side, UserId};
use sea_orm::{
    ColumnTrait, Condition, ConnectOptions, ConnectionTrait, DatabaseConnection,
    DatabaseTransaction, DbBackend, DbErr, EntityTrait, FromQueryResult, QueryFilter, QueryOrder,
    QuerySelect, SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait,
};
use sea_orm_migration::MigratorTrait;
use serde::Serialize;

use crate::unread::{Ledger, Member};

pub mod entity;
mod error;
pub mod migration;
mod sql;

use entity::chat;
pub use error::Error;
use sql::Sql;

/// The database. Clones share one pool.
#[derive(Clone)]
pub struct Store {
    db: DatabaseConnection,
    sql: std::sync::Arc<Sql>,
}

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
    /// The stream sequence of the last applied frame; 0 for none.
    pub applied: i64,
    /// The events of the last applied batch, as JSON.
    pub events: String,
}

/// A partition's step forward: happens only if it stands where it is expected.
#[derive(Debug, Serialize)]
pub struct Move {
    /// Which partition.
    pub id: u16,
    /// The sequence it must stand at.
    pub expected: i64,
    /// The sequence it moves to.
    pub applied: i64,
    /// The events of the batch, as JSON.
    pub events: String,
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

    /// Makes sure that these partitions have rows, and says where they stand.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn partitions(&self, ids: &[u16]) -> Result<Vec<PartitionState>, Error> {
        #[derive(Serialize)]
        struct Row {
            id: u16,
        }
        let rows: Vec<Row> = ids.iter().map(|&id| Row { id }).collect();
        execute(&self.db, &self.sql.create_partitions, &rows).await?;
        query(&self.db, &self.sql.partitions, &rows).await
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

/// One batch's transaction. Dropping it rolls back.
pub struct Transaction<'a> {
    txn: DatabaseTransaction,
    sql: &'a Sql,
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

impl StoredChat {
    fn from_row(row: chat::Model) -> Result<Self, Error> {
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

/// A stored key as an id.
pub(crate) fn client_key(text: &str) -> Result<ClientMessageId, Error> {
    ClientMessageId::new(text).map_err(|_| Error::Corrupt("messages.client_message_id"))
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
