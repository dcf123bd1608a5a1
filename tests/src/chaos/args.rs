//! The chaos program's flags.

use std::{path::PathBuf, time::Duration};

use clap::Parser;

/// Hits a Herald under load with all faults there are, mixed, and judges what its clients have seen.
///
/// It starts everything itself: nats-server, PostgreSQL, workers, gateways, clients. Ends with 1 if any promise was
/// broken.
#[derive(Debug, Clone, Parser)]
#[command(name = "chaos")]
pub struct Args {
    /// How long faults go on.
    #[arg(long, default_value_t = 1.0, value_parser = minutes)]
    pub minutes: f64,
    /// Decides all choices: which faults, when, how long, and what clients do. [default: by chance]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Gateways.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub gateways: u16,
    /// Workers.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub workers: u16,
    /// Messages a second, over all clients.
    #[arg(long, default_value_t = 300.0)]
    pub rate: f64,
    /// Users; each writes to four others.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u16).range(3..=2000))]
    pub users: u16,
    /// Only faults whose description holds this text, as in `--only killed`; repeatable.
    #[arg(long)]
    pub only: Vec<String>,
    /// A further flag of each gateway, as in `--gateway-flag=--sweep=5s`; repeatable.
    #[arg(long, allow_hyphen_values = true)]
    pub gateway_flag: Vec<String>,
    /// A further flag of each worker; repeatable.
    #[arg(long, allow_hyphen_values = true)]
    pub worker_flag: Vec<String>,
    /// Folder with the programs `herald-gateway` and `herald-worker`, the latter with its fail points. [default: builds
    /// them]
    #[arg(long, conflicts_with = "release")]
    pub programs: Option<PathBuf>,
    /// Builds and runs optimised programs.
    #[arg(long)]
    pub release: bool,
    /// Folder that keeps the logs of what is started. [default: a temporary one]
    #[arg(long)]
    pub keep_logs: Option<PathBuf>,
}

impl Args {
    /// How long faults go on.
    pub fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.minutes * 60.0)
    }
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|_| "not a number of minutes".to_owned())?;
    if (0.01..=10_000.0).contains(&minutes) {
        Ok(minutes)
    } else {
        Err("must be 0.01 to 10000".into())
    }
}
