//! The load generator's flags.

use std::{path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};

use crate::Backend;

/// Puts load on Herald and measures it: how fast it is, what it costs, and whether it keeps its promises.
///
/// Without --url it starts everything itself, from optimised programs: nats-server, a database, workers, gateways. Ends
/// with 1 if anything was lost, doubled or out of order.
#[derive(Debug, Clone, Parser)]
#[command(name = "load")]
pub struct Args {
    /// What to do.
    #[arg(long, value_enum, default_value_t = Mode::Cycle)]
    pub mode: Mode,
    /// A running gateway in insecure mode, `ws://host:port/ws`; repeat it for several. [default: starts its own]
    #[arg(long)]
    pub url: Vec<String>,
    /// Process id of a running gateway, to measure it; repeatable.
    #[arg(long, requires = "url")]
    pub gateway_pid: Vec<u32>,
    /// Folder with the programs `herald-gateway` and `herald-worker`, to measure those. [default: builds them]
    #[arg(long)]
    pub programs: Option<PathBuf>,
    /// The database to start.
    #[arg(long, value_enum, default_value_t = Kind::Postgres)]
    pub backend: Kind,
    /// How many gateways to start. The two users of a pair are on different ones.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub gateways: u16,
    /// How many workers to start.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: u16,
    /// A further flag of each gateway, as in `--gateway-flag=--rate=100000`; repeatable.
    #[arg(long, allow_hyphen_values = true)]
    pub gateway_flag: Vec<String>,
    /// A further flag of each worker; repeatable.
    #[arg(long, allow_hyphen_values = true)]
    pub worker_flag: Vec<String>,
    /// Folder that keeps the logs of what is started. [default: a temporary one]
    #[arg(long)]
    pub keep_logs: Option<PathBuf>,
    /// How many pairs of users: one writes, the other receives.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub pairs: u32,
    /// How many messages each pair keeps on their way.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub in_flight: u32,
    /// Messages a second over all pairs, at fixed times, instead of --in-flight. Latencies then count from the time at
    /// which a message should have been sent.
    #[arg(long, conflicts_with = "in_flight", value_parser = rate)]
    pub rate: Option<f64>,
    /// Sends so many messages and measures until the last is through, instead of --seconds.
    #[arg(long, conflicts_with = "seconds", value_parser = clap::value_parser!(i64).range(1..))]
    pub messages: Option<i64>,
    /// How long to measure, in seconds.
    #[arg(long, default_value = "10", value_parser = seconds)]
    pub seconds: Duration,
    /// Seconds under load before measuring begins.
    #[arg(long, default_value = "2", value_parser = seconds)]
    pub warmup: Duration,
    /// Bytes of a message's text.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub size: u32,
    /// Seconds to wait at the end for what is still on its way, before it counts as lost. More than the gateways'
    /// --request-timeout, or what they give up looks unanswered.
    #[arg(long, default_value = "15", value_parser = seconds)]
    pub patience: Duration,
    /// How many connections `--mode idle` opens.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connections: u32,
    /// How many logins are under way at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub logins: u16,
    /// Seconds that `--mode idle` waits before it measures.
    #[arg(long, default_value = "5", value_parser = seconds)]
    pub settle: Duration,
    /// Writes the result to this file as JSON too.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Full cycles: new, response, event, ack, dlvrd, response, receipt, ack.
    Cycle,
    /// Messages alone: new, response, event, ack.
    New,
    /// Connections that do nothing.
    Idle,
}

/// A database to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// PostgreSQL.
    Postgres,
    /// SQLite.
    Sqlite,
}

impl From<Kind> for Backend {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Postgres => Self::Postgres,
            Kind::Sqlite => Self::Sqlite,
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.001..=1e6).contains(&rate) { Ok(rate) } else { Err("must be 0.001 to 1000000".into()) }
}
