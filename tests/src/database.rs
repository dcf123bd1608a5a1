//! A database of one's own for each test, on the real thing.

use std::fmt;

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::PostgresServer;

/// One server for all the tests of a process; it ends with the process, by its guard.
static SERVER: OnceCell<PostgresServer> = OnceCell::const_new();

/// The kinds of database that Herald keeps its messages in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// SQLite, a file.
    Sqlite,
    /// PostgreSQL, a server.
    Postgres,
}

impl Backend {
    /// Both, to run a test on each.
    pub const ALL: [Self; 2] = [Self::Sqlite, Self::Postgres];
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        })
    }
}

/// A new, empty database.
#[derive(Debug)]
pub struct Database {
    backend: Backend,
    url: String,
    _scratch: Option<TempDir>,
}

impl Database {
    /// Makes a database: a file in a temporary folder, or one on the process's PostgreSQL server.
    ///
    /// # Errors
    /// If there is no PostgreSQL or it refuses.
    pub async fn create(backend: Backend) -> Result<Self> {
        match backend {
            Backend::Sqlite => {
                let scratch = tempfile::Builder::new().prefix("herald-sqlite-").tempdir()?;
                let file = scratch.path().join("db.sqlite");
                let file = file.to_str().context("the temporary folder's name is not UTF-8")?;
                Ok(Self { backend, url: sqlite_url(file), _scratch: Some(scratch) })
            }
            Backend::Postgres => {
                let server = SERVER.get_or_try_init(PostgresServer::start).await?;
                Ok(Self { backend, url: server.create_database().await?, _scratch: None })
            }
        }
    }

    /// Where it is, as Herald's `--database-url` takes it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its kind.
    pub fn backend(&self) -> Backend {
        self.backend
    }
}

/// The URL of an SQLite file, which is made if it is not there. `file` is absolute.
pub fn sqlite_url(file: &str) -> String {
    format!("sqlite://{file}?mode=rwc")
}
