//! The worker's configuration: flags, environment variables and their defaults.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use herald_proto::{
    broker::BrokerArgs, instance, metrics::otlp::OtlpArgs, runtime::RuntimeArgs,
    telemetry::TelemetryArgs,
};

/// Herald's worker: stores messages, counts what is missed, publishes events.
#[derive(Debug, Parser)]
#[command(name = "herald-worker", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// The machine.
    #[command(flatten)]
    pub runtime: RuntimeArgs,
    /// Logs and traces.
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Work until told to stop.
    Run(Box<Config>),
    /// Bring the database's schema up to date, then exit.
    Migrate(DatabaseArgs),
    /// Ask the worker that serves on --health-listen, on this machine, whether it is ready; fails if it is not.
    Healthcheck(HealthArgs),
    /// Look at frames that could not be applied, and try them again.
    #[command(subcommand)]
    Deadletter(Deadletter),
    /// See how the work is divided, and change it.
    #[command(subcommand)]
    Topology(Topology),
}

/// What to do with the topology.
#[derive(Debug, Subcommand)]
pub enum Topology {
    /// Print what the service runs with, and who and what is under way.
    Show(BrokerArgs),
    /// Print what `apply` would do, and whether it would be allowed to now.
    Plan(TopologyArgs),
    /// Change the number of partitions. Only when nothing is under way: no gateway, no worker, no frame that waits.
    Apply(TopologyArgs),
}

/// The flags of `topology plan` and `apply`.
#[derive(Debug, Args)]
pub struct TopologyArgs {
    /// The broker.
    #[command(flatten)]
    pub broker: BrokerArgs,
    /// Number of partitions of the work. [default: as it is]
    #[arg(long, env = "HERALD_PARTITIONS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub partitions: Option<u16>,
    /// Number of event streams. It can't be changed: users' logs lie in them, and the ids of their events.
    #[arg(long, env = "HERALD_EVENT_STREAMS", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub event_streams: Option<u16>,
}

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub enum Deadletter {
    /// List them, oldest first: sequence, partition, time, reason, the frame's subject, its size in bytes.
    List(ListArgs),
    /// Publish their frames again, as fresh ones, and drop the letters; prints the sequence of each.
    Requeue(RequeueArgs),
}

/// All of `deadletter list`'s flags.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// The broker.
    #[command(flatten)]
    pub broker: BrokerArgs,
    /// One JSON object a line.
    #[arg(long)]
    pub json: bool,
    /// The frames themselves too: they hold what users write.
    #[arg(long)]
    pub body: bool,
}

/// All of `deadletter requeue`'s flags.
#[derive(Debug, Args)]
pub struct RequeueArgs {
    /// The broker.
    #[command(flatten)]
    pub broker: BrokerArgs,
    /// The letters' sequences, as `deadletter list` shows them.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub sequences: Vec<u64>,
    /// All that there are now.
    #[arg(long)]
    pub all: bool,
}

/// Where the database is.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub struct DatabaseArgs {
    /// The database: `postgres://user:password@host/name` or `sqlite://file?mode=rwc`.
    #[arg(
        long,
        env = "HERALD_DATABASE_URL",
        hide_env_values = true,
        required_unless_present = "database_url_file",
        conflicts_with = "database_url_file"
    )]
    pub database_url: Option<String>,
    /// File that holds what --database-url would say.
    #[arg(long, env = "HERALD_DATABASE_URL_FILE")]
    pub database_url_file: Option<PathBuf>,
    /// The most connections a worker opens to it.
    #[arg(long, env = "HERALD_DATABASE_CONNECTIONS", default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..))]
    pub database_connections: u32,
}

/// Where health is served.
#[derive(Debug, Clone, Args)]
pub struct HealthArgs {
    /// Where `/healthz`, `/readyz` and `/metrics` are served.
    #[arg(long, env = "HERALD_HEALTH_LISTEN", default_value = "127.0.0.1:8081")]
    pub health_listen: SocketAddr,
}

/// All of `run`'s flags.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// This worker's name among its peers, new with every start.
    #[arg(skip = instance::name("worker"))]
    pub name: String,
    /// The broker.
    #[command(flatten)]
    pub broker: BrokerArgs,
    /// The database.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The health endpoint.
    #[command(flatten)]
    pub health: HealthArgs,
    /// Where metrics are sent.
    #[command(flatten)]
    pub otlp: OtlpArgs,
    /// Number of partitions of the work; at most one worker each. Decided by the first worker: later ones must agree or
    /// leave it out. [default: 4]
    #[arg(long, env = "HERALD_PARTITIONS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub partitions: Option<u16>,
    /// Number of event streams. Decided by the first worker, like --partitions. [default: 1]
    #[arg(long, env = "HERALD_EVENT_STREAMS", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub event_streams: Option<u16>,
    /// Replicas of every stream and bucket the worker creates.
    #[arg(long, env = "HERALD_REPLICAS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub replicas: u8,
    /// The most frames applied in one transaction.
    #[arg(long, env = "HERALD_BATCH", default_value_t = 512, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub batch: u16,
    /// How many chats a worker remembers as they are stored, so that it need not look them up for their next frames.
    /// About 1.5 KB each.
    #[arg(long, env = "HERALD_REMEMBERED_CHATS", default_value = "32768")]
    pub remembered_chats: NonZeroUsize,
    /// How long a frame may stay unacknowledged before the broker delivers it again.
    #[arg(long, env = "HERALD_ACK_WAIT", default_value = "5s", value_parser = humantime::parse_duration)]
    pub ack_wait: Duration,
    /// How long a silent worker keeps its partitions.
    #[arg(long, env = "HERALD_PIN_TIMEOUT", default_value = "3s", value_parser = humantime::parse_duration)]
    pub pin_timeout: Duration,
    /// How long a frame is kept; one that waited longer was never answered, and its client tries again.
    #[arg(long, env = "HERALD_FRAMES_MAX_AGE", default_value = "1h", value_parser = humantime::parse_duration)]
    pub frames_max_age: Duration,
    /// The most bytes of frames kept.
    #[arg(long, env = "HERALD_FRAMES_MAX_BYTES", default_value_t = 1 << 30)]
    pub frames_max_bytes: i64,
    /// How long an event is kept for devices that are away; a longer absence ends in `resync`.
    #[arg(long, env = "HERALD_EVENTS_MAX_AGE", default_value = "7days", value_parser = humantime::parse_duration)]
    pub events_max_age: Duration,
    /// The most bytes kept by each event stream.
    #[arg(long, env = "HERALD_EVENTS_MAX_BYTES", default_value_t = 4 << 30)]
    pub events_max_bytes: i64,
    /// The most events kept for one user.
    #[arg(long, env = "HERALD_EVENTS_MAX_PER_USER", default_value_t = 200_000)]
    pub events_max_per_user: i64,
    /// How long JetStream remembers message ids: a worker that dies between commit and publish is repaired within it.
    #[arg(long, env = "HERALD_DUPLICATE_WINDOW", default_value = "2m", value_parser = humantime::parse_duration)]
    pub duplicate_window: Duration,
    /// How long work in progress may take to finish after SIGTERM.
    #[arg(long, env = "HERALD_DRAIN_TIMEOUT", default_value = "20s", value_parser = humantime::parse_duration)]
    pub drain_timeout: Duration,
}

impl DatabaseArgs {
    /// The database's URL, from the flag or the file.
    ///
    /// # Errors
    /// A message that names the flag.
    pub fn url(&self) -> Result<String, String> {
        let Some(path) = &self.database_url_file else {
            let url = self.database_url.clone();
            return url.ok_or_else(|| "--database-url: is missing".into());
        };
        let url = std::fs::read_to_string(path)
            .map_err(|error| format!("--database-url-file {}: {error}", path.display()))?;
        check_url("database-url-file", url.trim())?;
        Ok(url.trim().to_owned())
    }
}

fn check_url(flag: &str, url: &str) -> Result<(), String> {
    if ["postgres://", "postgresql://", "sqlite:"].iter().any(|scheme| url.starts_with(scheme)) {
        return Ok(());
    }
    Err(format!("--{flag}: must start with postgres:// or sqlite:"))
}

impl Config {
    /// Checks what clap can't.
    ///
    /// # Errors
    /// A message that names the flag.
    pub fn validate(&self) -> Result<(), String> {
        if let Some(url) = &self.database.database_url {
            check_url("database-url", url)?;
        }
        if self.ack_wait < Duration::from_secs(1) {
            return Err("--ack-wait: must be at least 1s".into());
        }
        if self.pin_timeout < Duration::from_secs(1) {
            return Err("--pin-timeout: must be at least 1s".into());
        }
        if self.duplicate_window < self.ack_wait + self.pin_timeout {
            return Err(
                "--duplicate-window: must be longer than --ack-wait and --pin-timeout together"
                    .into(),
            );
        }
        Ok(())
    }
}
