//! Connections that do nothing: what they cost.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    args::Args,
    connection::Connection,
    report::{Idle, Logins, Process},
    usage::{self, Watched},
};

/// Opens the connections, and measures the processes before and once they have settled.
///
/// # Errors
/// If a user can't connect or a measured process is gone.
pub async fn run(args: &Args, urls: &[String], watched: &[Watched]) -> Result<Idle> {
    let name = format!("{:08x}", fastrand::u32(..));
    let before = usage::all(watched)?;
    let begun = Instant::now();
    let users = 0..usize::try_from(args.connections)?;
    let logins = users.map(async |number| {
        let url = urls.get(number % urls.len().max(1)).context("no gateway")?;
        Connection::login(url, &format!("idle-{name}-{number}")).await
    });
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let mut logins = stream::iter(logins).buffer_unordered(usize::from(args.logins));
    while let Some(connection) = logins.try_next().await? {
        tasks.spawn(hold(connection, stop.clone()));
    }
    let logins = Logins::new(u64::from(args.connections), begun.elapsed());
    eprintln!("{} logins in {:.2} s", logins.count, logins.seconds);
    let connected = usage::all(watched)?;
    sleep(args.settle).await;
    let settled = usage::all(watched)?;
    stop.cancel();
    let mut ended_early = 0;
    while let Some(held) = tasks.join_next().await {
        ended_early += u64::from(!held?);
    }
    // What the logins cost, then what is held.
    let during = watched.iter().zip(before.iter().zip(&connected));
    let after = watched.iter().zip(before.iter().zip(&settled));
    Ok(Idle {
        logins,
        settle_seconds: args.settle.as_secs_f64(),
        logging_in: during.map(|(w, (a, b))| Process::new(&w.name, *a, *b)).collect(),
        settled: after.map(|(w, (a, b))| Process::new(&w.name, *a, *b)).collect(),
        idle_cpu_seconds: connected
            .iter()
            .zip(&settled)
            .map(|(a, b)| b.cpu.saturating_sub(a.cpu))
            .map(|cpu: Duration| cpu.as_secs_f64())
            .collect(),
        ended_early,
    })
}

/// Keeps a connection until the end; whether it lasted so long.
async fn hold(mut connection: Connection, stop: CancellationToken) -> bool {
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            received = connection.receive(&mut batch) => {
                batch.clear();
                if let Err(ended) = received {
                    eprintln!("an idle session has ended: {}", ended.why);
                    return false;
                }
            }
            () = stop.cancelled() => {
                connection.close().await;
                return true;
            }
        }
    }
}
