//! Gateways and workers in processes of their own, beside a [`Cluster`]'s: for SIGKILL, SIGSTOP, and to see what they use.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;

use crate::{Binaries, Client, Cluster, Process, Program, cluster, eventually, http, port};

/// How long a program may take to be ready.
const READY: Duration = Duration::from_secs(30);

/// A gateway or worker in a process of its own. Killed when dropped.
#[derive(Debug)]
pub struct Child {
    /// The process.
    pub process: Process,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Child {
    /// Connects a user's device, and waits until the session has begun. Presence comes too.
    ///
    /// # Errors
    /// If it is not let in.
    pub async fn connect(&self, user: &str, device: &str) -> Result<Client> {
        let mut client = Client::connect(&self.user_url(user, device)).await?;
        client.ack(0).await?;
        Ok(client)
    }

    /// The URL for a user's device on this gateway in insecure mode.
    pub fn user_url(&self, user: &str, device: &str) -> String {
        cluster::user_url(self.address, user, device)
    }
}

impl Cluster {
    /// Starts a `herald-gateway` in insecure mode, with the cluster's gateway flags and these.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn gateway_process(&self, name: &str, flags: &[&str]) -> Result<Child> {
        let (program, address) = self.program(name, &Binaries::build(false).await?.gateway)?;
        let program = program
            .args(["--listen", &address.to_string(), "--insecure-auth"])
            .args(&self.options.gateway_flags)
            .args(flags);
        start(&program, address).await
    }

    /// Starts a `herald-worker`, with the cluster's worker flags and these, and these environment variables.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn worker_process(
        &self,
        name: &str,
        flags: &[&str],
        env: &[(&str, &str)],
    ) -> Result<Child> {
        let (program, address) = self.program(name, &Binaries::build(false).await?.worker)?;
        let program = program
            .args(["run", "--health-listen", &address.to_string()])
            .args(["--database-url", self.database.url()])
            .args(&self.options.worker_flags)
            .args(flags);
        let program = env.iter().fold(program, |program, (name, value)| program.env(name, value));
        start(&program, address).await
    }

    fn program(&self, name: &str, path: &std::path::Path) -> Result<(Program, SocketAddr)> {
        let log = self.scratch().join(format!("{name}.log"));
        // In the environment: a worker takes the flag after its subcommand only.
        let program = Program::new(name, path, log).env("HERALD_NATS_URL", self.nats_url());
        Ok((program, ([127, 0, 0, 1], port::free()?).into()))
    }
}

async fn start(program: &Program, address: SocketAddr) -> Result<Child> {
    let mut process = Process::spawn(program)?;
    let what = format!("{} is ready", program.name());
    process.until(eventually(&what, READY, async || http::ready(address).await)).await?;
    Ok(Child { process, address })
}
