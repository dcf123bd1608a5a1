//! A real PostgreSQL server.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use sea_orm::{ConnectOptions, ConnectionTrait as _};
use tempfile::TempDir;

use crate::{
    eventually,
    owner::Owner,
    port,
    process::{Process, Program},
    tools,
};

/// How long a server may take to be ready, with recovery after a crash.
const START: Duration = Duration::from_secs(60);
/// How often a start is tried: on another port at first, for the old one's remains to vanish at a restart.
const TRIES: usize = 10;

/// Recovery syncs what a crash may have left unsynced: with one call (PostgreSQL 14), not one for each of 1000 files.
const SETTINGS: [&str; 5] = [
    "--listen_addresses=127.0.0.1",
    "--unix_socket_directories=",
    "--max_connections=300",
    "--shared_buffers=64MB",
    "--recovery_init_sync_method=syncfs",
];

/// A PostgreSQL server on a port of 127.0.0.1, with a temporary data folder. Ended when dropped.
#[derive(Debug)]
pub struct PostgresServer {
    // Before the folder: the server must be gone when its files are removed.
    process: Process,
    program: Program,
    port: u16,
    folder: TempDir,
    databases: AtomicU32,
}

impl PostgresServer {
    /// Starts a new, empty server, and waits until it accepts connections.
    ///
    /// # Errors
    /// If there is no PostgreSQL or it does not start; holds the end of its log.
    pub async fn start() -> Result<Self> {
        let tools = tools::postgres().await?;
        let owner = Owner::instead_of_root()?;
        let folder = tempfile::Builder::new().prefix("herald-postgres-").tempdir()?;
        if let Some(owner) = &owner {
            owner.take(folder.path())?;
        }
        let data = data_dir(folder.path());
        let log = folder.path().join("postgres.log");
        Program::new("initdb", tools.initdb, &log)
            .arg("--pgdata")
            .arg(&data)
            // No need to sync here: a test kills the server, not the machine.
            .args([
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ])
            .folder(folder.path())
            .owner(owner.clone())
            .run()
            .await?;
        let mut last = None;
        for _ in 0..TRIES {
            let port = port::free()?;
            let program = Program::new("postgres", &tools.postgres, &log)
                .arg("-D")
                .arg(&data)
                .arg(format!("--port={port}"))
                .args(SETTINGS)
                .folder(folder.path())
                .owner(owner.clone())
                // Its immediate shutdown: the data is not kept.
                .farewell(Signal::SIGQUIT)
                .scratch(folder.path());
            match run(&program, &data).await {
                Ok(process) => {
                    return Ok(Self {
                        process,
                        program,
                        port,
                        folder,
                        databases: AtomicU32::new(0),
                    });
                }
                // Someone took the port between our look and the server's bind.
                Err(error) if !port::is_free(port) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.context("no port was tried")?.context(format!("{TRIES} ports were taken")))
    }

    /// Where clients connect, for a proxy.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The URL of one of its databases.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@{}/{database}", self.address())
    }

    /// Makes a new, empty database, and gives its URL.
    ///
    /// # Errors
    /// If the server refuses.
    pub async fn create_database(&self) -> Result<String> {
        let name = format!("herald_{}", self.databases.fetch_add(1, Ordering::Relaxed) + 1);
        let mut options = ConnectOptions::new(self.url("postgres"));
        options.max_connections(1).sqlx_logging(false).acquire_timeout(Duration::from_secs(30));
        let connection =
            sea_orm::Database::connect(options).await.context("connecting to make a database")?;
        // From template0: nobody can be connected to it, which would make the server refuse.
        let sql = format!("CREATE DATABASE {name} TEMPLATE template0");
        connection
            .execute_unprepared(&sql)
            .await
            .with_context(|| format!("making the database {name}"))?;
        connection.close().await?;
        Ok(self.url(&name))
    }

    /// Where the server's files and its log `postgres.log` lie.
    pub fn data_dir(&self) -> &Path {
        self.folder.path()
    }

    /// The process id of the server's first process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The server's first process, to stop it and let it continue (the sessions' own processes go on meanwhile).
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Kills the server with SIGKILL; its sessions' processes end by themselves at once.
    ///
    /// # Errors
    /// If the system refuses.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill().await
    }

    /// Ends the server in peace (SIGINT: sessions are ended, nothing is lost), and kills it if that takes over 10 s.
    ///
    /// # Errors
    /// If the system refuses.
    pub async fn stop(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGINT)?;
        if tokio::time::timeout(Duration::from_secs(10), self.process.wait()).await.is_err() {
            self.process.kill().await?;
        }
        Ok(())
    }

    /// Starts the server again on the same port and data; kills it first if it runs.
    ///
    /// # Errors
    /// If it does not come up again.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill().await?;
        // A killed server's sessions may outlive it by a moment, and a new one refuses to start until they are gone.
        let data = data_dir(self.folder.path());
        self.process =
            eventually("PostgreSQL starts again", START, async || run(&self.program, &data).await)
                .await?;
        Ok(())
    }
}

fn data_dir(folder: &Path) -> PathBuf {
    folder.join("data")
}

async fn run(program: &Program, data: &Path) -> Result<Process> {
    let mut process = Process::spawn(program)?;
    let pid = process.pid();
    process.until(eventually("PostgreSQL is ready", START, async || ready(data, pid))).await?;
    Ok(process)
}

/// The server tells in this file how far it is, as it does for its own `pg_ctl`: the first line is its process id, the
/// eighth its state.
fn ready(data: &Path, pid: u32) -> Result<()> {
    let text = fs::read_to_string(data.join("postmaster.pid"))?;
    let mut lines = text.lines();
    ensure!(
        lines.next().is_some_and(|line| line.trim() == pid.to_string()),
        "not yet its own postmaster.pid"
    );
    let state = lines.nth(6).unwrap_or_default().trim();
    ensure!(state == "ready", "its state is {state:?}");
    Ok(())
}
