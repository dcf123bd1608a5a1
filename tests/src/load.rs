//! The load generator: puts load on Herald as its clients would, and measures what it does, what it costs, and whether it
//! keeps its promises.
//!
//! What is judged is pure and apart from what is sent and received: [`ledger`] and [`arrivals`] say what was lost, doubled
//! or out of order, [`pace`] when to send, [`stats`] what counts.

use anyhow::{Context as _, Result};

pub mod args;
pub mod arrivals;
pub mod connection;
pub mod faults;
pub mod idle;
pub mod ledger;
pub mod pace;
pub mod parts;
pub mod recipient;
pub mod report;
pub mod sender;
pub mod shared;
pub mod stats;
pub mod traffic;
pub mod usage;
pub mod wire;

use args::{Args, Mode};
use parts::Parts;
use report::{Outcome, Report};
use usage::Watched;

/// Does what the flags say and returns the result, which is also written to `--json`.
///
/// # Errors
/// If nothing could be measured: something did not start, nobody was let in, or a measured process is gone.
pub async fn run(args: &Args) -> Result<Report> {
    let parts = if args.url.is_empty() { Some(Box::pin(Parts::start(args)).await?) } else { None };
    let urls = parts.as_ref().map_or(args.url.as_slice(), Parts::urls);
    let mut watched = match &parts {
        Some(parts) => parts.watched(),
        None => args
            .gateway_pid
            .iter()
            .map(|pid| Watched::new(format!("gateway {pid}"), *pid))
            .collect(),
    };
    watched.push(Watched::new("load", std::process::id()));
    let outcome = match args.mode {
        Mode::Idle => Outcome::Idle(idle::run(args, urls, &watched).await?),
        Mode::Cycle | Mode::New => Outcome::Traffic(traffic::run(args, urls, &watched).await?),
    };
    let notes = match parts {
        Some(parts) => parts.stop().await?,
        None => Vec::new(),
    };
    let report = Report::new(args, outcome, notes);
    if let Some(file) = &args.json {
        std::fs::write(file, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(report)
}
