//! The load generator's flags.

use std::{num::NonZeroU32, path::PathBuf, time::Duration};

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
    /// On how many devices each recipient is connected: each gets every event. The cost is then told per event too.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub devices: u16,
    /// Bytes of a message's text.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub size: u32,
    /// Seconds to wait at the end for what is still on its way, before it counts as lost. More than the gateways'
    /// --request-timeout, or what they give up looks unanswered.
    #[arg(long, default_value = "15", value_parser = seconds)]
    pub patience: Duration,
    /// How many connections `idle`, `storm`, `reconnect` and `catch-up` open.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connections: u32,
    /// How many logins are under way at once. [default: 64; `storm` 256; `reconnect` all]
    #[arg(long)]
    pub logins: Option<NonZeroU32>,
    /// How many events wait for each device in `reconnect` and `catch-up`.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub events: u32,
    /// How many of those devices come back in `reconnect` and `catch-up`: the events of the others lie between theirs.
    /// [default: all]
    #[arg(long)]
    pub returning: Option<NonZeroU32>,
    /// How many events each device has acked before that: one that never had any is dearer to catch up.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub acked: u32,
    /// How many requests wait for the workers in `backlog`, in the chats of --pairs.
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub frames: u32,
    /// How many requests of `backlog` lie in a message, as gateways bundle them under load.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub bundle: u16,
    /// What grows in `growth-users` (connected users) and `growth-chat` (messages in the chat).
    /// [default: 100,1000,10000; 1000,10000,100000,1000000]
    #[arg(long, value_delimiter = ',')]
    pub steps: Vec<u32>,
    /// How many times each of the two has its turn in `tracing`.
    #[arg(long, default_value = "6")]
    pub rounds: NonZeroU32,
    /// Part of the requests that are traced in `tracing`.
    #[arg(long, default_value_t = 0.01)]
    pub ratio: f64,
    /// The database of the gateways at --url, which `growth-chat` fills.
    #[arg(long, requires = "url")]
    pub database_url: Option<String>,
    /// Seconds that `--mode idle` waits before it measures.
    #[arg(long, default_value = "5", value_parser = seconds)]
    pub settle: Duration,
    /// Writes the result to this file as JSON too.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Does nothing but compare two results that `--json` has written.
    #[arg(long, num_args = 2, value_names = ["BEFORE", "AFTER"], exclusive = true)]
    pub compare: Vec<PathBuf>,
}

impl Args {
    /// How many logins are under way at once.
    pub fn logins(&self) -> usize {
        let default = match self.mode {
            Mode::Reconnect => self.connections,
            Mode::Storm => 256,
            _ => 64,
        };
        let logins = self.logins.map_or(default, NonZeroU32::get);
        usize::try_from(logins).unwrap_or(usize::MAX)
    }

    /// How many devices come back.
    pub fn returning(&self) -> u32 {
        self.returning.map_or(self.connections, NonZeroU32::get)
    }

    /// What grows.
    pub fn steps(&self) -> Vec<u32> {
        match self.mode {
            _ if !self.steps.is_empty() => self.steps.clone(),
            Mode::GrowthChat => vec![1000, 10_000, 100_000, 1_000_000],
            _ => vec![100, 1000, 10_000],
        }
    }

    /// The most connections that are open at once, here and at the gateways.
    pub fn most_connections(&self) -> u32 {
        let chat = self.pairs.saturating_mul(1 + u32::from(self.devices));
        match self.mode {
            Mode::Cycle | Mode::New | Mode::GrowthChat | Mode::Tracing => chat,
            Mode::Idle => self.connections,
            Mode::Storm | Mode::Reconnect | Mode::CatchUp => self.connections.saturating_add(chat),
            Mode::GrowthUsers => self.steps().into_iter().max().unwrap_or(0),
            Mode::Backlog => 0,
        }
    }
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
    /// Many users come in; with --rate while --pairs chat.
    Storm,
    /// Many devices, for each of which events wait, lose their connections at once and come back; with --rate while
    /// --pairs chat.
    Reconnect,
    /// Many devices come back after they were away, and take what has come meanwhile; with --rate while --pairs chat.
    CatchUp,
    /// A worker starts, and many stored requests wait for it.
    Backlog,
    /// The cost of a message when more and more users are connected and all of them chat, at --rate (2000 unless given).
    GrowthUsers,
    /// The cost of a message when more and more messages lie in the chat, at --rate (500 unless given).
    GrowthChat,
    /// The cost of traces: full cycles, in turn on a Herald that sends some and on one that does not.
    Tracing,
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
