//! Connections that do nothing: what they cost.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use super::{
    args::Args,
    crowd::Crowd,
    report::{Idle, Process},
    usage::{self, Watched},
};

/// Opens the connections, and measures the processes before and once they have settled.
///
/// # Errors
/// If a user can't connect or a measured process is gone.
pub async fn run(args: &Args, urls: &[String], watched: &[Watched]) -> Result<Idle> {
    let before = usage::all(watched)?;
    let crowd = Crowd::gather(args, urls).await?;
    let connected = usage::all(watched)?;
    sleep(args.settle).await;
    let settled = usage::all(watched)?;
    let logins = crowd.logins;
    let ended_early = crowd.leave().await?;
    Ok(Idle {
        logins,
        settle_seconds: args.settle.as_secs_f64(),
        // What the logins cost, then what is held.
        logging_in: Process::of_all(watched, &before, &connected),
        settled: Process::of_all(watched, &before, &settled),
        idle_cpu_seconds: connected
            .iter()
            .zip(&settled)
            .map(|(a, b)| b.cpu.saturating_sub(a.cpu))
            .map(|cpu: Duration| cpu.as_secs_f64())
            .collect(),
        ended_early,
    })
}
