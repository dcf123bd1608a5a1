//! What a database can answer with, and what it means for the batch at hand.

use sea_orm::{DbErr, RuntimeErr, SqlErr, SqlxError};

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another worker has moved the partition: nothing was committed.
    #[error("another worker has moved the partition")]
    Fenced,
    /// The schema lacks migrations.
    #[error("{0} migrations are missing: run `herald-worker migrate` first")]
    Schema(usize),
    /// A row holds what this program never writes.
    #[error("the database holds an impossible value: {0}")]
    Corrupt(&'static str),
    /// The database, or the way to it, failed.
    #[error(transparent)]
    Database(#[from] DbErr),
}

impl Error {
    /// Whether the same batch may succeed later: the database is away or busy, or another transaction was in the way.
    pub fn is_transient(&self) -> bool {
        let Self::Database(error) = self else { return false };
        if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))) {
            return true;
        }
        match error {
            DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => true,
            DbErr::Exec(RuntimeErr::SqlxError(error))
            | DbErr::Query(RuntimeErr::SqlxError(error)) => match error.as_ref() {
                SqlxError::Database(error) => {
                    error.code().is_some_and(|code| is_transient_code(&code))
                }
                SqlxError::Io(_)
                | SqlxError::Tls(_)
                | SqlxError::PoolTimedOut
                | SqlxError::PoolClosed
                | SqlxError::WorkerCrashed
                | SqlxError::Protocol(_) => true,
                _ => false,
            },
            _ => false,
        }
    }
}

/// PostgreSQL's classes (appendix A of its manual) 08 connection, 25 aborted or read-only transaction (a standby during
/// a failover), 40 rollback, 53 resources, 55 lock, 57 operator, 58 system; SQLite's BUSY, LOCKED, IOERR, FULL with
/// their extended codes.
fn is_transient_code(code: &str) -> bool {
    if code.len() == 5 && code.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return ["08", "25", "40", "53", "55", "57", "58"]
            .iter()
            .any(|class| code.starts_with(class));
    }
    code.parse::<i32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 10 | 13))
}
