//! The real parts that the load is put on, as child processes.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use tempfile::TempDir;

use super::{
    args::{Args, Kind},
    usage::Watched,
};
use crate::{
    Backend, Binaries, Broker, Database, PostgresServer, Process, Program, eventually, http, port,
    process::describe,
};

/// How long a program may take to be ready.
const READY: Duration = Duration::from_secs(30);
/// How long a program may take to end, more than its own patience.
const END: Duration = Duration::from_secs(30);
/// The most log lines that are shown of a program.
const LINES: usize = 5;

/// A Herald of our own. Everything ends with it.
#[derive(Debug)]
pub struct Parts {
    // In the order in which they have to end.
    gateways: Vec<Process>,
    workers: Vec<Process>,
    urls: Vec<String>,
    broker: Broker,
    database: Store,
    database_url: String,
    /// What the workers are started from, and where each says that it is ready.
    worker_programs: Vec<(Program, SocketAddr)>,
    logs: PathBuf,
    scratch: Option<TempDir>,
}

#[derive(Debug)]
enum Store {
    Postgres(Box<PostgresServer>),
    Sqlite(#[expect(dead_code, reason = "it holds the file")] Database),
}

impl Parts {
    /// Starts everything and waits until it is ready.
    ///
    /// # Errors
    /// If something does not get ready; holds the end of its log.
    pub async fn start(args: &Args) -> Result<Self> {
        let binaries = match &args.programs {
            Some(folder) => Binaries {
                gateway: folder.join("herald-gateway"),
                worker: folder.join("herald-worker"),
            },
            None => Binaries::build(true).await?,
        };
        let scratch = match &args.keep_logs {
            Some(_) => None,
            None => Some(tempfile::Builder::new().prefix("herald-load-").tempdir()?),
        };
        let logs = args.keep_logs.clone().or_else(|| Some(scratch.as_ref()?.path().to_owned()));
        let logs = logs.context("no folder for logs")?;
        fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
        let (broker, (database, database_url)) =
            tokio::try_join!(Broker::start(), database(args.backend))?;
        let log = |name: &str| new_log(&logs, name);
        Program::new("herald-worker migrate", &binaries.worker, log("herald-worker-migrate")?)
            .args(["migrate", "--database-url", &database_url])
            .run()
            .await?;
        let mut workers = Vec::new();
        for number in 1..=args.workers {
            let name = format!("herald-worker-{number}");
            let address = address()?;
            let program = Program::new(&name, &binaries.worker, log(&name)?)
                .args(["run", "--nats-url", &broker.url(), "--database-url", &database_url])
                .args(["--health-listen", &address.to_string()])
                .args(&args.worker_flag);
            workers.push((program, address));
        }
        let worker_programs = workers;
        let workers = start(worker_programs.clone()).await?;
        let (mut gateways, mut urls) = (Vec::new(), Vec::new());
        for number in 1..=args.gateways {
            let name = format!("herald-gateway-{number}");
            let address = address()?;
            let program = Program::new(&name, &binaries.gateway, log(&name)?)
                .args(["--nats-url", &broker.url(), "--listen", &address.to_string()])
                .arg("--insecure-auth")
                .args(&args.gateway_flag);
            gateways.push((program, address));
            urls.push(format!("ws://{address}/ws"));
        }
        let gateways = start(gateways).await?;
        Ok(Self {
            gateways,
            workers,
            urls,
            broker,
            database,
            database_url,
            worker_programs,
            logs,
            scratch,
        })
    }

    /// Where the broker is.
    pub fn broker_url(&self) -> String {
        self.broker.url()
    }

    /// Where the database is.
    pub fn database_url(&self) -> &str {
        &self.database_url
    }

    /// Ends all workers, as Kubernetes would.
    ///
    /// # Errors
    /// If the system refuses.
    pub async fn stop_workers(&mut self) -> Result<()> {
        for mut worker in self.workers.drain(..) {
            worker.shut_down(END).await?;
        }
        Ok(())
    }

    /// Starts all workers again, and waits until they are ready.
    ///
    /// # Errors
    /// If one does not get ready; holds the end of its log.
    pub async fn start_workers(&mut self) -> Result<()> {
        self.workers = start(self.worker_programs.clone()).await?;
        Ok(())
    }

    /// The workers, to be measured.
    pub fn worker_processes(&self) -> Vec<Watched> {
        self.workers.iter().map(watch).collect()
    }

    /// Where clients connect.
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// The processes to be measured.
    pub fn watched(&self) -> Vec<Watched> {
        let programs = self.gateways.iter().chain(&self.workers);
        let mut watched: Vec<Watched> = programs.map(watch).collect();
        watched.push(Watched::new("nats-server", self.broker.pid()));
        if let Store::Postgres(server) = &self.database {
            watched.push(Watched { with_children: true, ..Watched::new("postgres", server.pid()) });
        }
        watched
    }

    /// Ends everything, gateways and workers as Kubernetes would. Returns what is worth knowing: ends that were not
    /// well, and the warnings and errors in the programs' logs.
    ///
    /// # Errors
    /// If the system refuses.
    pub async fn stop(mut self) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        for process in self.gateways.iter_mut().chain(&mut self.workers) {
            let program = process.program().clone();
            let status = match process.ended()? {
                Some(status) => status,
                None => process.shut_down(END).await?,
            };
            if !status.success() {
                notes.push(format!("{} ended with {}", program.name(), describe(status)));
            }
            notes.extend(complaints(program.name(), program.log()));
        }
        if self.scratch.is_none() {
            fs::copy(
                self.broker.data_dir().join("nats-server.log"),
                self.logs.join("nats-server.log"),
            )?;
            if let Store::Postgres(server) = &self.database {
                fs::copy(server.data_dir().join("postgres.log"), self.logs.join("postgres.log"))?;
            }
        }
        Ok(notes)
    }
}

fn watch(process: &Process) -> Watched {
    Watched::new(process.program().name(), process.pid())
}

async fn database(kind: Kind) -> Result<(Store, String)> {
    match kind {
        Kind::Postgres => {
            let server = PostgresServer::start().await?;
            let url = Box::pin(server.create_database()).await?;
            Ok((Store::Postgres(Box::new(server)), url))
        }
        Kind::Sqlite => {
            let database = Box::pin(Database::create(Backend::Sqlite)).await?;
            let url = database.url().to_owned();
            Ok((Store::Sqlite(database), url))
        }
    }
}

async fn start(programs: Vec<(Program, SocketAddr)>) -> Result<Vec<Process>> {
    try_join_all(programs.into_iter().map(async |(program, address)| {
        let mut process = Process::spawn(&program)?;
        let what = format!("{} is ready", program.name());
        process.until(eventually(&what, READY, async || http::ready(address).await)).await?;
        Ok(process)
    }))
    .await
}

fn address() -> Result<SocketAddr> {
    Ok((Ipv4Addr::LOCALHOST, port::free()?).into())
}

/// An empty log file.
fn new_log(logs: &Path, name: &str) -> Result<PathBuf> {
    let path = logs.join(format!("{name}.log"));
    fs::File::create(&path).with_context(|| format!("making the log {}", path.display()))?;
    Ok(path)
}

/// The warnings and errors in a log: how many, and the first of them.
fn complaints(name: &str, log: &Path) -> Vec<String> {
    let Ok(bytes) = fs::read(log) else { return vec![format!("{name} has no log")] };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| is_complaint(line)).collect();
    let mut notes = Vec::new();
    if !lines.is_empty() {
        notes.push(format!("{name}: {} warnings and errors in its log", lines.len()));
        notes.extend(lines.iter().take(LINES).map(|line| format!("  {line}")));
    }
    notes
}

/// The insecure mode announces itself, and is what was asked for.
fn is_complaint(line: &str) -> bool {
    let head = line.get(..100).unwrap_or(line);
    let mut words = head.split(|c: char| !c.is_ascii_alphabetic());
    words.any(|word| matches!(word, "WARN" | "ERROR")) && !line.to_lowercase().contains("insecure")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_and_errors_are_found_in_a_log_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("x.log");
        fs::write(
            &log,
            "t  INFO a: WARNED\nt  WARN a: slow\nt ERROR a: bad\nt  WARN a: INSECURE\n",
        )
        .unwrap();
        let notes = complaints("x", &log);
        assert_eq!(notes.len(), 3, "{notes:?}");
        fs::write(&log, "t  INFO a: fine\nt  WARN a: INSECURE\n").unwrap();
        assert!(complaints("x", &log).is_empty());
    }
}
