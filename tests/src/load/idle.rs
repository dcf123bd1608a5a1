//! Connections that do nothing: what they cost.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use super::{
    args::Args,
    crowd::Crowd,
    report::{Idle, Process},
    target::Target,
    usage,
};

/// Opens the connections, and measures the processes before and once they have settled.
///
/// # Errors
/// If a user can't connect or a measured process is gone.
pub async fn run(args: &Args, target: &Target) -> Result<Idle> {
    let before = usage::all(&target.processes)?;
    let crowd = Crowd::gather(args, &target.urls).await?;
    let connected = usage::all(&target.processes)?;
    sleep(args.settle).await;
    let settled = usage::all(&target.processes)?;
    let logins = crowd.logins;
    let ended_early = crowd.leave().await?;
    Ok(Idle {
        logins,
        settle_seconds: args.settle.as_secs_f64(),
        // What the logins cost, then what is held.
        logging_in: Process::of_all(&target.processes, &before, &connected),
        settled: Process::of_all(&target.processes, &before, &settled),
        idle_cpu_seconds: connected
            .iter()
            .zip(&settled)
            .map(|(a, b)| b.cpu.saturating_sub(a.cpu))
            .map(|cpu: Duration| cpu.as_secs_f64())
            .collect(),
        ended_early,
    })
}
