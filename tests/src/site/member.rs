//! A gateway or worker in a process of its own, with proxies of its own between it and the servers.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};

use super::END;
use crate::{Process, Program, eventually, http, proxy::Proxy};

/// How long a member may take to be ready: it may be starting while the broker or the database is away.
const READY: Duration = Duration::from_secs(60);

/// A gateway or worker, running or not.
#[derive(Debug)]
pub struct Member {
    process: Option<Process>,
    program: Program,
    address: SocketAddr,
    /// Between it and NATS.
    pub nats: Proxy,
    /// Between it and the database.
    pub database: Option<Proxy>,
}

impl Member {
    /// A member that does not run yet; `program` is told where its proxies are.
    ///
    /// # Errors
    /// If there is no port for a proxy.
    pub async fn new(
        nats: SocketAddr,
        database: Option<SocketAddr>,
        program: impl FnOnce(SocketAddr, Option<SocketAddr>) -> (Program, SocketAddr),
    ) -> Result<Self> {
        let nats = Proxy::start(nats).await?;
        let database = match database {
            Some(database) => Some(Proxy::start(database).await?),
            None => None,
        };
        let (program, address) = program(nats.address(), database.as_ref().map(Proxy::address));
        Ok(Self { process: None, program, address, nats, database })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        self.program.name()
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        self.program.log_tail()
    }

    /// Starts it, unless it runs, and waits until it is ready. One that ends before is started again: the servers may be
    /// away, and whoever runs it would do the same.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn start(&mut self) -> Result<()> {
        self.launch()?;
        let what = format!("{} is ready", self.name());
        let address = self.address;
        eventually(&what, READY, async || {
            self.launch()?;
            http::ready(address).await.with_context(|| self.log_tail())
        })
        .await
    }

    /// Starts it, unless it runs.
    ///
    /// # Errors
    /// If it can't be run.
    pub fn launch(&mut self) -> Result<()> {
        let is_running = match &mut self.process {
            Some(process) => process.ended()?.is_none(),
            None => false,
        };
        if !is_running {
            self.process = Some(Process::spawn(&self.program)?);
        }
        Ok(())
    }

    /// Starts it, once, with fail points as its variable `FAILPOINTS` takes them, and waits for nothing: it may end at
    /// once.
    ///
    /// # Errors
    /// If it can't be run.
    pub fn launch_with(&mut self, failpoints: &str) -> Result<()> {
        self.process = Some(Process::spawn(&self.program.clone().env("FAILPOINTS", failpoints))?);
        Ok(())
    }

    /// Its process, if it was started.
    ///
    /// # Errors
    /// If it was not.
    pub fn process(&mut self) -> Result<&mut Process> {
        let name = self.program.name();
        self.process.as_mut().with_context(|| format!("{name} was not started"))
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    /// If it was not started.
    pub async fn kill(&mut self) -> Result<()> {
        self.process()?.kill().await
    }

    /// Ends it with SIGTERM, and waits until it is gone.
    ///
    /// # Errors
    /// If it was not started, or did not end well.
    pub async fn stop(&mut self) -> Result<()> {
        let status = self.process()?.shut_down(END).await?;
        anyhow::ensure!(
            status.success(),
            "{} ended with {status}; {}",
            self.name(),
            self.log_tail()
        );
        Ok(())
    }
}
