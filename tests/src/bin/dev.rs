//! `cargo dev`: a whole Herald on this machine, with nothing to install or configure first.

use std::{
    fs::{self, File, TryLockError},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use herald_tests::{
    Binaries, Program, broker,
    database::sqlite_url,
    observe::{self, Observed},
    otlp::Receiver,
    port, program,
    supervise::{Group, Ready, say},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The port of NATS, if it is free.
const NATS_PORT: u16 = 4222;

/// Runs Herald on this machine: nats-server, SQLite, workers and gateways, without authentication.
#[derive(Debug, Parser)]
#[command(name = "cargo dev", bin_name = "cargo dev")]
struct Args {
    /// Address of the first gateway; the ports of the others count up from it.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Uses this NATS server instead of starting one.
    #[arg(long)]
    nats_url: Option<String>,
    /// Uses this database (`postgres://…` or `sqlite://…`) instead of an SQLite file in the data folder.
    #[arg(long)]
    database_url: Option<String>,
    /// Number of gateways.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    gateways: u16,
    /// Number of workers.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// Also serves a page, there, with the latest traces and the key metrics. All requests are traced then.
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "127.0.0.1:8888")]
    observe: Option<SocketAddr>,
    /// Folder for data and logs [default: `.data` in the workspace].
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Builds and runs optimised programs.
    #[arg(long)]
    release: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let mut signals = Signals::new()?;
    let mut groups = Vec::new();
    let run = async {
        let herald = start(&args, &mut groups).await?;
        herald.introduce();
        std::future::pending().await
    };
    let result = tokio::select! {
        result = run => result,
        () = signals.next() => Ok(()),
    };
    if !groups.is_empty() {
        say("stopping (once more to stop at once)");
    }
    let stop = async {
        while let Some(group) = groups.pop() {
            group.stop().await;
        }
    };
    tokio::select! {
        () = stop => {}
        // What is left is killed when the runtime goes.
        () = signals.next() => {}
    }
    result
}

/// The signals that end us.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

/// A Herald that is ready.
struct Herald {
    gateways: Vec<SocketAddr>,
    nats_url: String,
    database_url: String,
    data_dir: PathBuf,
    page: Option<SocketAddr>,
    _lock: File,
}

/// Starts everything, one group after the other; `groups` gets each as soon as it is ready.
async fn start(args: &Args, groups: &mut Vec<Group>) -> Result<Herald> {
    let gateways = gateway_addresses(args)?;
    let data_dir = args.data_dir.clone().unwrap_or_else(|| program::workspace().join(".data"));
    let data_dir = std::path::absolute(data_dir)?;
    let logs = data_dir.join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("making the folder {}", logs.display()))?;
    let lock = lock(&data_dir)?;
    let binaries = Binaries::build(args.release).await?;

    let nats_url = match &args.nats_url {
        Some(url) => url.clone(),
        None => {
            let port = if port::is_free(NATS_PORT) { NATS_PORT } else { port::free()? };
            let store = data_dir.join("nats");
            let nats = broker::program(port, &store, &new_log(&logs, "nats-server")?).await?;
            groups.push(Group::start(vec![(nats, Ready::Nats(port, store))]).await?);
            format!("nats://127.0.0.1:{port}")
        }
    };
    let database_url = match &args.database_url {
        Some(url) => url.clone(),
        None => sqlite_url(
            data_dir
                .join("herald.sqlite")
                .to_str()
                .context("the data folder's name is not UTF-8")?,
        ),
    };
    Program::new(
        "herald-worker migrate",
        &binaries.worker,
        new_log(&logs, "herald-worker-migrate")?,
    )
    .args(["migrate", "--database-url", &database_url])
    .run()
    .await?;

    let mut observer = match args.observe {
        Some(address) => Some(Observer::start(address).await?),
        None => None,
    };

    let mut workers = Vec::new();
    for number in 1..=args.workers {
        let health = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free()?));
        let log = new_log(&logs, &format!("herald-worker-{number}"))?;
        let worker = Program::new(format!("herald-worker {number}"), &binaries.worker, log)
            .args(["run", "--nats-url", &nats_url, "--database-url", &database_url])
            .args(["--health-listen", &health.to_string()]);
        let worker = match &mut observer {
            Some(observer) => observer.watch(worker, health),
            None => worker,
        };
        workers.push((worker, Ready::Http(health)));
    }
    groups.push(Group::start(workers).await?);

    let mut programs = Vec::new();
    for (number, address) in (1..).zip(&gateways) {
        let log = new_log(&logs, &format!("herald-gateway-{number}"))?;
        let gateway = Program::new(format!("herald-gateway {number}"), &binaries.gateway, log)
            .args(["--listen", &address.to_string(), "--nats-url", &nats_url, "--insecure-auth"]);
        let gateway = match &mut observer {
            Some(observer) => {
                let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free()?));
                let gateway = gateway.env("HERALD_ADMIN_LISTEN", admin.to_string());
                observer.watch(gateway.args(["--trace-ratio", "1"]), admin)
            }
            None => gateway,
        };
        programs.push((gateway, Ready::Http(reachable(*address))));
    }
    groups.push(Group::start(programs).await?);
    let page = observer.map(Observer::show).transpose()?;
    Ok(Herald { gateways, nats_url, database_url, data_dir, page, _lock: lock })
}

/// What `--observe` asks for.
struct Observer {
    receiver: Receiver,
    listener: tokio::net::TcpListener,
    programs: Vec<(String, SocketAddr)>,
}

impl Observer {
    async fn start(address: SocketAddr) -> Result<Self> {
        let listener = tokio::net::TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("--observe: can't listen on {address}"))?;
        Ok(Self { receiver: Receiver::start().await?, listener, programs: Vec::new() })
    }

    /// Has a program send its traces here, and its metrics read.
    fn watch(&mut self, program: Program, metrics: SocketAddr) -> Program {
        self.programs.push((program.name().to_owned(), metrics));
        program
            .args(self.receiver.grpc_flags())
            .env("OTEL_BSP_SCHEDULE_DELAY", "500")
            .env("OTEL_METRICS_EXPORTER", "none")
    }

    /// Serves the page for as long as this program runs.
    fn show(self) -> Result<SocketAddr> {
        let Self { receiver, listener, programs } = self;
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            let observed = Observed { spans: receiver.spans().clone(), programs };
            if let Err(error) = observe::serve(listener, observed).await {
                say(format_args!("the page is not served any more: {error:#}"));
            }
        });
        Ok(address)
    }
}

/// The addresses that the gateways will listen on, all of them free.
fn gateway_addresses(args: &Args) -> Result<Vec<SocketAddr>> {
    let mut addresses = Vec::new();
    for number in 0..args.gateways {
        let mut address = args.listen;
        let port = if address.port() == 0 {
            Some(port::free()?)
        } else {
            address.port().checked_add(number)
        };
        address.set_port(port.context("--listen: the gateways' ports go past 65535")?);
        TcpListener::bind(address).with_context(|| {
            format!(
                "gateway {} can't listen on {address}: choose another address with --listen",
                number + 1
            )
        })?;
        addresses.push(address);
    }
    Ok(addresses)
}

/// Two Heralds in one folder would spoil each other's data.
fn lock(data_dir: &Path) -> Result<File> {
    let file = File::create(data_dir.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!(
                "another cargo dev uses {}: stop it, or choose another folder with --data-dir",
                data_dir.display()
            )
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("locking {}", data_dir.display()))
        }
    }
}

/// An empty log file.
fn new_log(logs: &Path, name: &str) -> Result<PathBuf> {
    let path = logs.join(format!("{name}.log"));
    File::create(&path).with_context(|| format!("making the log {}", path.display()))?;
    Ok(path)
}

/// Where a client on this machine reaches what listens there.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

impl Herald {
    fn introduce(&self) {
        let url = |address: &SocketAddr| format!("ws://{}/ws", reachable(*address));
        let urls: Vec<String> = self.gateways.iter().map(url).collect();
        let first = urls.first().map_or("", String::as_str);
        // User2 on another gateway, if there is one.
        let last = urls.last().map_or("", String::as_str);
        let data = self.data_dir.display();
        let page =
            self.page.map(|page| format!("\n  observe    http://{page}")).unwrap_or_default();
        say(format_args!(
            r#"
herald is ready

  WebSocket  {urls}
  NATS       {nats}
  database   {database}
  logs       {data}/logs/*.log{page}

Connect as two users, each in a terminal of its own, with any WebSocket client:

  websocat '{first}?userId=User1&deviceId=phone'
  websocat '{last}?userId=User2&deviceId=phone'

and paste a first frame as User1:

  {{"type":"request","id":"1","timestamp":1700000000000,"payloadType":"new","payload":{{"chatId":"User2","clientMessageId":"m1","message":"Hello"}}}}

Ctrl-C stops everything; remove {data} to start afresh.
"#,
            urls = urls.join("\n             "),
            nats = self.nats_url,
            database = self.database_url,
        ));
    }
}
