//! A real `nats-server` with JetStream.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpStream,
};

use crate::{
    eventually, port,
    process::{Process, Program},
    tools,
};

pub mod deployed;
mod servers;

/// How long a server may take to be ready.
const START: Duration = Duration::from_secs(30);
/// How many ports are tried before giving up.
const TRIES: usize = 10;

/// A `nats-server` child on a port of 127.0.0.1 with a data folder of its own. Killed when dropped.
#[derive(Debug)]
pub struct Broker {
    // Before the folder: the server must be gone when its files are removed.
    process: Process,
    program: Program,
    port: u16,
    /// Where it tells how it is; only servers of a cluster do.
    monitor: Option<SocketAddr>,
    data_dir: PathBuf,
    _scratch: Option<TempDir>,
}

impl Broker {
    /// Starts a server with an empty temporary store, and waits until it serves JetStream.
    ///
    /// # Errors
    /// If there is no `nats-server` or it does not start; holds the end of its log.
    pub async fn start() -> Result<Self> {
        let mut last = None;
        for _ in 0..TRIES {
            let scratch = tempfile::Builder::new().prefix("herald-nats-").tempdir()?;
            let port = port::free()?;
            let data_dir = scratch.path().to_owned();
            let program = program(port, &data_dir, &data_dir.join("nats-server.log"))
                .await?
                .scratch(&data_dir);
            match run(&program, port, &data_dir).await {
                Ok(process) => {
                    let (monitor, _scratch) = (None, Some(scratch));
                    return Ok(Self { process, program, port, monitor, data_dir, _scratch });
                }
                // Someone took the port between our look and the server's bind.
                Err(error) if !port::is_free(port) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.context("no port was tried")?.context(format!("{TRIES} ports were taken")))
    }

    /// Starts a server on that port, with its store and its log `nats-server.log` in `data_dir`, which is kept.
    ///
    /// # Errors
    /// If there is no `nats-server`, or the port is taken, or it does not start.
    pub async fn start_at(port: u16, data_dir: &Path) -> Result<Self> {
        let program = program(port, data_dir, &data_dir.join("nats-server.log")).await?;
        let process = run(&program, port, data_dir).await?;
        let data_dir = data_dir.to_owned();
        Ok(Self { process, program, port, monitor: None, data_dir, _scratch: None })
    }

    /// Where clients connect.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address())
    }

    /// Where clients connect, for a proxy.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// What it is called in a cluster.
    pub fn name(&self) -> String {
        name(&self.data_dir)
    }

    /// Where the store, the configuration and the log lie.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The server's process, to stop it and let it continue.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Kills the server with SIGKILL.
    ///
    /// # Errors
    /// If the system refuses.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill().await
    }

    /// Ends the server in peace (SIGTERM), and kills it if that takes over 10 s.
    ///
    /// # Errors
    /// If the system refuses.
    pub async fn stop(&mut self) -> Result<()> {
        self.process.shut_down(Duration::from_secs(10)).await.map(drop)
    }

    /// Starts the server again on the same port and the same store; kills it first if it runs. One of a cluster has
    /// caught up with the others then.
    ///
    /// # Errors
    /// If it does not come up again.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill().await?;
        self.process = run(&self.program, self.port, &self.data_dir).await?;
        self.healthy().await
    }
}

/// A `nats-server` to be started on that port of 127.0.0.1, with its store in `data_dir`.
///
/// # Errors
/// If there is no `nats-server`, or the folder can't be written.
pub async fn program(port: u16, data_dir: &Path, log: &Path) -> Result<Program> {
    program_with(config(port, data_dir), data_dir, log).await
}

fn config(port: u16, data_dir: &Path) -> Value {
    serde_json::json!({
        "server_name": name(data_dir),
        "host": Ipv4Addr::LOCALHOST,
        "port": port,
        "jetstream": {
            "store_dir": data_dir,
            "max_memory_store": 2_u64 << 30,
            "max_file_store": 64_u64 << 30,
        },
    })
}

async fn program_with(config: Value, data_dir: &Path, log: &Path) -> Result<Program> {
    fs::create_dir_all(data_dir)
        .with_context(|| format!("making the folder {}", data_dir.display()))?;
    // JSON is valid in this format, and takes care of odd characters in paths.
    let file = data_dir.join("nats-server.conf");
    fs::write(&file, format!("{config:#}"))
        .with_context(|| format!("writing {}", file.display()))?;
    let program = Program::new("nats-server", tools::nats_server().await?, log);
    // As on Kubernetes: with each collection it forgets the blocks of streams that it has read.
    Ok(program.env("GOGC", "400").arg("--config").arg(file))
}

/// Waits until the server on that port is the one with that store, and serves JetStream.
///
/// # Errors
/// If it is not ready within 30 s.
pub async fn ready(port: u16, data_dir: &Path) -> Result<()> {
    eventually(&format!("nats-server is ready on port {port}"), START, async || {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await?;
        let info =
            line.strip_prefix("INFO ").with_context(|| format!("not a NATS server: {line:?}"))?;
        let info: Value = serde_json::from_str(info)?;
        let server = info.get("server_name").and_then(Value::as_str).unwrap_or_default();
        ensure!(server == name(data_dir), "the port belongs to another NATS server, {server}");
        ensure!(info.get("jetstream") == Some(&Value::Bool(true)), "JetStream is not on");
        Ok(())
    })
    .await
}

async fn run(program: &Program, port: u16, data_dir: &Path) -> Result<Process> {
    let mut process = Process::spawn(program)?;
    process.until(ready(port, data_dir)).await?;
    Ok(process)
}

/// A name that no other server has: another test may have chosen the same port, and been faster.
fn name(data_dir: &Path) -> String {
    let mut hasher = DefaultHasher::new();
    data_dir.hash(&mut hasher);
    format!("herald-{:016x}", hasher.finish())
}
