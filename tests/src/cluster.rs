//! A whole Herald in this process: gateways and workers as the programs run them, on a real broker and database.

use std::{net::SocketAddr, path::Path, sync::Once, time::Duration};

use anyhow::{Context as _, Result};
use clap::Parser;
use herald_gateway::app::Listeners;
use herald_proto::telemetry;
use herald_worker::{config::Command, store::Store};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{Backend, Broker, Client, Database, eventually, http};

/// How long a member may take to be ready.
const READY: Duration = Duration::from_secs(30);

/// How many of what, and with which further flags.
#[derive(Debug, Clone)]
pub struct Options {
    /// Gateways.
    pub gateways: usize,
    /// Workers.
    pub workers: usize,
    /// Further flags of each gateway.
    pub gateway_flags: Vec<String>,
    /// Further flags of each worker.
    pub worker_flags: Vec<String>,
    /// Whether gateways believe `?userId=`.
    pub insecure: bool,
    /// Servers of the broker; everything on it has that many replicas.
    pub servers: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            gateways: 1,
            workers: 1,
            gateway_flags: vec![],
            worker_flags: vec![],
            insecure: true,
            servers: 1,
        }
    }
}

impl Options {
    /// That many gateways and workers.
    pub fn of(gateways: usize, workers: usize) -> Self {
        Self { gateways, workers, ..Self::default() }
    }

    /// With these gateway flags.
    #[must_use]
    pub fn gateway_flags(mut self, flags: &[&str]) -> Self {
        self.gateway_flags.extend(flags.iter().map(ToString::to_string));
        self
    }

    /// With these worker flags.
    #[must_use]
    pub fn worker_flags(mut self, flags: &[&str]) -> Self {
        self.worker_flags.extend(flags.iter().map(ToString::to_string));
        self
    }

    /// With a broker of that many servers, and as many replicas.
    #[must_use]
    pub fn servers(self, servers: usize) -> Self {
        Self { servers, ..self }.worker_flags(&["--replicas", &servers.to_string()])
    }

    /// With gateways that authenticate as the flags say.
    #[must_use]
    pub fn secure(mut self) -> Self {
        self.insecure = false;
        self
    }
}

/// A gateway or worker in this process.
#[derive(Debug)]
pub struct Member {
    /// Where it listens.
    pub address: SocketAddr,
    /// Where it serves `/metrics`.
    pub metrics: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<Result<()>>,
}

impl Member {
    /// Stops it as SIGTERM would, and waits until it is gone.
    ///
    /// # Errors
    /// What it failed with.
    pub async fn stop(self) -> Result<()> {
        self.stop.cancel();
        self.task.await?
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// What it failed with.
    pub async fn ended(self) -> Result<()> {
        self.task.await?
    }

    /// Stops it as SIGKILL would, as far as that is possible inside a process: its tasks are not told.
    pub fn abort(&self) {
        self.task.abort();
    }
}

/// A broker, a database, and the members that use them.
#[derive(Debug)]
pub struct Cluster {
    /// The gateways.
    pub gateways: Vec<Member>,
    /// The workers.
    pub workers: Vec<Member>,
    /// The broker, or its first server.
    pub broker: Broker,
    /// The broker's other servers.
    pub peers: Vec<Broker>,
    /// The database.
    pub database: Database,
    /// What further members are started with.
    pub options: Options,
}

impl Cluster {
    /// Starts everything and waits until all members are ready.
    ///
    /// # Errors
    /// If a part does not start.
    pub async fn start(backend: Backend, options: Options) -> Result<Self> {
        Self::start_on(Database::create(backend).await?, options).await
    }

    /// The same, on a database that may have been used before.
    ///
    /// # Errors
    /// If a part does not start.
    pub async fn start_on(database: Database, options: Options) -> Result<Self> {
        let servers = match options.servers {
            0 | 1 => vec![Broker::start().await?],
            servers => Broker::start_cluster(servers).await?,
        };
        Self::start_with(servers, database, options).await
    }

    /// The same, on these servers.
    ///
    /// # Errors
    /// If a part does not start.
    pub async fn start_with(
        servers: Vec<Broker>,
        database: Database,
        options: Options,
    ) -> Result<Self> {
        logged();
        let mut peers = servers;
        let broker = peers.remove(0);
        Store::connect(database.url(), 2).await?.migrate().await?;
        let mut cluster =
            Self { gateways: vec![], workers: vec![], broker, peers, database, options };
        for _ in 0..cluster.options.workers {
            let worker = cluster.worker().await?;
            cluster.workers.push(worker);
        }
        for _ in 0..cluster.options.gateways {
            let gateway = cluster.gateway().await?;
            cluster.gateways.push(gateway);
        }
        Ok(cluster)
    }

    /// Starts one more worker; the caller keeps it.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn worker(&self) -> Result<Member> {
        let mut flags = self.flags("herald-worker");
        flags.insert(1, "run".into());
        flags.extend(["--database-url".into(), self.database.url().into()]);
        flags.extend(self.options.worker_flags.iter().cloned());
        let Command::Run(config) = herald_worker::config::Cli::try_parse_from(flags)?.command
        else {
            anyhow::bail!("not the command run");
        };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, stop) = (listener.local_addr()?, CancellationToken::new());
        let task = tokio::spawn(Box::pin(herald_worker::app::run(*config, listener, stop.clone())));
        ready(Member { address, metrics: address, stop, task }).await
    }

    /// Starts one more gateway; the caller keeps it.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn gateway(&self) -> Result<Member> {
        let mut flags = self.flags("herald-gateway");
        if self.options.insecure {
            flags.push("--insecure-auth".into());
        }
        flags.extend(self.options.gateway_flags.iter().cloned());
        let config = herald_gateway::config::Config::try_parse_from(flags)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let admin = TcpListener::bind("127.0.0.1:0").await?;
        let (address, stop) = (listener.local_addr()?, CancellationToken::new());
        let metrics = admin.local_addr()?;
        let listeners = Listeners { clients: listener, admin: Some(admin) };
        let task =
            tokio::spawn(Box::pin(herald_gateway::app::run(config, listeners, stop.clone())));
        ready(Member { address, metrics, stop, task }).await
    }

    fn flags(&self, program: &str) -> Vec<String> {
        vec![program.into(), "--nats-url".into(), self.nats_url()]
    }

    /// Where the broker is, as `--nats-url` takes it.
    pub fn nats_url(&self) -> String {
        let servers = std::iter::once(&self.broker).chain(&self.peers);
        servers.map(Broker::url).collect::<Vec<_>>().join(",")
    }

    /// The WebSocket URL of a gateway, by its index.
    ///
    /// # Errors
    /// If there is no such gateway.
    pub fn url(&self, gateway: usize) -> Result<String> {
        let gateway = self.gateways.get(gateway).context("no such gateway")?;
        Ok(format!("ws://{}/ws", gateway.address))
    }

    /// Connects a user's device `default` to the first gateway.
    ///
    /// # Errors
    /// If it is not let in.
    pub async fn connect(&self, user: &str) -> Result<Client> {
        self.connect_to(0, user, "default").await
    }

    /// Connects a user's device to a gateway, and waits until the session has begun: from then on nothing is missed.
    /// Presence is left out.
    ///
    /// # Errors
    /// If it is not let in.
    pub async fn connect_to(&self, gateway: usize, user: &str, device: &str) -> Result<Client> {
        Ok(self.connect_with_presence(gateway, user, device).await?.without_presence())
    }

    /// The same, with presence.
    ///
    /// # Errors
    /// If it is not let in.
    pub async fn connect_with_presence(
        &self,
        gateway: usize,
        user: &str,
        device: &str,
    ) -> Result<Client> {
        let mut client = Client::connect(&self.user_url(gateway, user, device)?).await?;
        // Whatever is answered shows that the session is under way; what came before is kept.
        client.ack(0).await?;
        Ok(client)
    }

    /// The URL for a user's device on a gateway in insecure mode.
    ///
    /// # Errors
    /// If there is no such gateway.
    pub fn user_url(&self, gateway: usize, user: &str, device: &str) -> Result<String> {
        let gateway = self.gateways.get(gateway).context("no such gateway")?;
        Ok(user_url(gateway.address, user, device))
    }

    /// A folder for the test's own files, removed with the cluster.
    pub fn scratch(&self) -> &Path {
        self.broker.data_dir()
    }
}

/// Turns on logs, once, if `HERALD_LOG` says which. Nothing is traced: what is, only processes of their own can tell.
fn logged() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Ok(directives) = std::env::var("HERALD_LOG") else { return };
        if let Err(error) = telemetry::log(&directives, telemetry::LogFormat::Pretty) {
            eprintln!("no logs: {error}");
        }
    });
}

async fn ready(member: Member) -> Result<Member> {
    let Member { address, metrics, stop, mut task } = member;
    tokio::select! {
        ended = &mut task => {
            ended??;
            anyhow::bail!("a member ended before it was ready");
        }
        ready = eventually("a member is ready", READY, async || http::ready(address).await) => ready?,
    }
    Ok(Member { address, metrics, stop, task })
}

/// The URL for a user's device on the gateway at that address in insecure mode.
pub fn user_url(gateway: SocketAddr, user: &str, device: &str) -> String {
    format!("ws://{gateway}/ws?userId={}&deviceId={}", percent(user), percent(device))
}

/// Every byte that is not a letter or digit as `%XX`.
fn percent(text: &str) -> String {
    text.bytes()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}
