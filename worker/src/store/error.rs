//! What a database can answer with, and what it means for the batch at hand.

use sea_orm::{DbErr, RuntimeErr, SqlErr, SqlxError};

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another worker has moved the partition: nothing was committed.
    #[error("another worker has moved the partition")]
    Fenced,
    /// A message's key is in use already: nothing was committed.
    #[error("a message's key is in use already")]
    Taken,
    /// The database did not answer in time.
    #[error("the database does not answer")]
    Late,
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
        let error = match self {
            Self::Fenced | Self::Late => return true,
            Self::Taken | Self::Schema(_) | Self::Corrupt(_) => return false,
            Self::Database(error) => error,
        };
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

    /// What kind it is, for traces: one of few.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Fenced => "fenced",
            Self::Taken => "taken",
            Self::Late => "timeout",
            Self::Schema(_) => "schema",
            Self::Corrupt(_) => "corrupt",
            Self::Database(_) => "database",
        }
    }

    /// What an error of an insert into `messages` means.
    pub(super) fn or_taken(self) -> Self {
        match self {
            Self::Database(error)
                if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))) =>
            {
                Self::Taken
            }
            other => other,
        }
    }

    /// What an error of PostgreSQL's commit statement means.
    pub(super) fn from_commit(error: DbErr) -> Self {
        if let DbErr::Exec(RuntimeErr::SqlxError(cause)) = &error
            && let SqlxError::Database(cause) = cause.as_ref()
            && cause.code().as_deref() == Some(DIVISION_BY_ZERO)
        {
            return Self::Fenced;
        }
        Self::Database(error).or_taken()
    }
}

/// PostgreSQL's code for how its commit statement says that a partition was moved by another worker.
const DIVISION_BY_ZERO: &str = "22012";

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
