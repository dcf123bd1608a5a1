//! A Herald of separate processes, each of which can die, freeze, or lose its connections by itself.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use tempfile::TempDir;

pub mod audit;
mod member;

use crate::{Backend, Binaries, Broker, Database, PostgresServer, Program, port};
pub use member::Member;

/// What a site is made of.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Gateways.
    pub gateways: usize,
    /// Workers.
    pub workers: usize,
    /// Further flags of each gateway.
    pub gateway_flags: Vec<String>,
    /// Further flags of each worker.
    pub worker_flags: Vec<String>,
    /// Further variables of each gateway and worker.
    pub env: Vec<(String, String)>,
    /// Whether the database server is its own, to be killed.
    pub has_own_database: bool,
    /// The folder with the programs. [default: builds them]
    pub programs: Option<PathBuf>,
    /// Whether optimised programs are built.
    pub release: bool,
    /// What keeps the logs. [default: a temporary folder]
    pub logs: Option<PathBuf>,
}

/// A running Herald. Everything ends with it.
#[derive(Debug)]
pub struct Site {
    // In the order in which they have to end.
    /// The gateways.
    pub gateways: Vec<Member>,
    /// The workers.
    pub workers: Vec<Member>,
    /// The broker.
    pub broker: Broker,
    /// The database server, if it is the site's own.
    pub postgres: Option<PostgresServer>,
    database: SocketAddr,
    database_url: String,
    binaries: Binaries,
    setup: Setup,
    logs: PathBuf,
    started: usize,
    _scratch: Option<TempDir>,
}

/// How long a member may take to end after SIGTERM, more than its own patience.
pub(crate) const END: Duration = Duration::from_secs(40);

impl Default for Setup {
    fn default() -> Self {
        Self {
            gateways: 1,
            workers: 1,
            gateway_flags: vec![],
            worker_flags: vec![],
            env: vec![],
            has_own_database: false,
            programs: None,
            release: false,
            logs: None,
        }
    }
}

impl Site {
    /// Starts everything and waits until it is ready.
    ///
    /// # Errors
    /// If something does not get ready; holds the end of its log.
    pub async fn start(setup: Setup) -> Result<Self> {
        let binaries = match &setup.programs {
            Some(folder) => Binaries {
                gateway: folder.join("herald-gateway"),
                worker: folder.join("herald-worker"),
            },
            None => Binaries::build(setup.release).await?,
        };
        let scratch = match &setup.logs {
            Some(_) => None,
            None => Some(tempfile::Builder::new().prefix("herald-site-").tempdir()?),
        };
        let logs = setup.logs.clone().or_else(|| Some(scratch.as_ref()?.path().to_owned()));
        let logs = logs.context("no folder for logs")?;
        std::fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
        let broker = Broker::start().await?;
        let (postgres, database_url) = if setup.has_own_database {
            let server = PostgresServer::start().await?;
            let url = Box::pin(server.create_database()).await?;
            (Some(server), url)
        } else {
            (None, Box::pin(Database::create(Backend::Postgres)).await?.url().to_owned())
        };
        let database = server_of(&database_url)?;
        Program::new("herald-worker migrate", &binaries.worker, logs.join("migrate.log"))
            .args(["migrate", "--database-url", &database_url])
            .run()
            .await?;
        let mut site = Self {
            gateways: vec![],
            workers: vec![],
            broker,
            postgres,
            database,
            database_url,
            binaries,
            setup,
            logs,
            started: 0,
            _scratch: scratch,
        };
        for _ in 0..site.setup.workers {
            site.add_worker().await?;
        }
        let mut gateways = Vec::new();
        for _ in 0..site.setup.gateways {
            gateways.push(site.new_gateway().await?);
        }
        try_join_all(gateways.iter_mut().map(Member::start)).await?;
        site.gateways = gateways;
        Ok(site)
    }

    /// Where clients connect.
    pub fn urls(&self) -> Vec<String> {
        self.gateways.iter().map(|gateway| format!("ws://{}/ws", gateway.address())).collect()
    }

    /// The database's own URL, past all proxies.
    pub fn database_url(&self) -> &str {
        &self.database_url
    }

    /// Where the logs lie.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Starts one more worker.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn add_worker(&mut self) -> Result<()> {
        let mut worker = self.new_worker().await?;
        worker.start().await?;
        self.workers.push(worker);
        Ok(())
    }

    /// Starts one more gateway.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn add_gateway(&mut self) -> Result<()> {
        let mut gateway = self.new_gateway().await?;
        gateway.start().await?;
        self.gateways.push(gateway);
        Ok(())
    }

    /// Starts the broker and the site's own database server again; kills them first if they run.
    ///
    /// # Errors
    /// If they don't come up.
    pub async fn restart_servers(&mut self) -> Result<()> {
        self.broker.restart().await?;
        match &mut self.postgres {
            Some(postgres) => postgres.restart().await,
            None => Ok(()),
        }
    }

    /// Starts the members that don't run, and waits until all are ready.
    ///
    /// # Errors
    /// If one does not get ready.
    pub async fn start_members(&mut self) -> Result<()> {
        let members = self.workers.iter_mut().chain(&mut self.gateways);
        try_join_all(members.map(Member::start)).await.map(drop)
    }

    async fn new_worker(&mut self) -> Result<Member> {
        self.started += 1;
        let name = format!("herald-worker-{}", self.started);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free()?));
        let flags = self.setup.worker_flags.clone();
        Member::new(self.broker.address(), Some(self.database), |nats, database| {
            let database = database.unwrap_or(self.database).to_string();
            let database_url = self.database_url.replace(&self.database.to_string(), &database);
            let log = self.logs.join(format!("{name}.log"));
            let program = Program::new(&name, &self.binaries.worker, log)
                .args(["run", "--nats-url", &format!("nats://{nats}")])
                .args(["--database-url", &database_url])
                .args(["--health-listen", &address.to_string()])
                .args(flags)
                .envs(&self.setup.env);
            (program, address)
        })
        .await
    }

    async fn new_gateway(&mut self) -> Result<Member> {
        self.started += 1;
        let name = format!("herald-gateway-{}", self.started);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free()?));
        let flags = self.setup.gateway_flags.clone();
        Member::new(self.broker.address(), None, |nats, _| {
            let log = self.logs.join(format!("{name}.log"));
            let program = Program::new(&name, &self.binaries.gateway, log)
                .args(["--nats-url", &format!("nats://{nats}")])
                .args(["--listen", &address.to_string(), "--insecure-auth"])
                .args(flags)
                .envs(&self.setup.env);
            (program, address)
        })
        .await
    }
}

/// The address in a URL `postgres://user@host:port/name`.
fn server_of(url: &str) -> Result<SocketAddr> {
    let rest = url.split('@').nth(1).context("a database URL without a user")?;
    let address = rest.split('/').next().unwrap_or_default();
    address.parse().with_context(|| format!("the database's address {address}"))
}
