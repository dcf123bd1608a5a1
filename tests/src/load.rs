//! The load generator: puts load on Herald as its clients would, and measures what it does, what it costs, and whether it
//! keeps its promises.
//!
//! What is judged is pure and apart from what is sent and received: [`ledger`] and [`arrivals`] say what was lost, doubled
//! or out of order, [`pace`] when to send, of which [`metronome`] reminds, [`stats`] what counts. Each mode has a file:
//! [`traffic`], [`idle`], [`storm`], [`comeback`], [`backlog`], [`growth`], [`traced`]; [`aside`] lets a chat go on
//! beside the others.

use anyhow::{Context as _, Result, bail};

pub mod args;
pub mod arrivals;
pub mod aside;
pub mod audit;
pub mod autogroups;
pub mod backlog;
pub mod chat;
pub mod comeback;
pub mod compare;
pub mod connection;
pub mod crowd;
pub mod faults;
pub mod files;
pub mod fill;
pub mod growth;
pub mod history;
pub mod idle;
pub mod ledger;
pub mod listener;
pub mod login;
pub mod metronome;
pub mod pace;
pub mod parts;
pub mod recipient;
pub mod report;
pub mod returner;
pub mod sender;
pub mod shared;
pub mod slowdown;
pub mod stats;
pub mod storm;
pub mod traced;
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
    files::allow(args.most_connections())?;
    let mut parts =
        if args.url.is_empty() { Some(Box::pin(Parts::start(args)).await?) } else { None };
    let probe = slowdown::Probe::start()?;
    let (outcome, mut notes) = measure(args, parts.as_mut()).await?;
    notes.extend(probe.end());
    if let Some(parts) = parts {
        notes.extend(parts.stop().await?);
        notes.extend(autogroups::note());
    }
    let report = Report::new(args, outcome, notes);
    if let Some(file) = &args.json {
        std::fs::write(file, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(report)
}

/// What came of it, and what else is worth knowing.
async fn measure(args: &Args, parts: Option<&mut Parts>) -> Result<(Outcome, Vec<String>)> {
    let urls = parts.as_ref().map_or(args.url.as_slice(), |parts| parts.urls()).to_vec();
    let watched = watched(args, parts.as_deref());
    let outcome = match args.mode {
        Mode::Cycle | Mode::New => Outcome::Traffic(traffic::run(args, &urls, &watched).await?),
        Mode::Idle => Outcome::Idle(idle::run(args, &urls, &watched).await?),
        Mode::Storm => Outcome::Measured(storm::run(args, &urls, &watched).await?),
        Mode::Reconnect | Mode::CatchUp => {
            Outcome::Measured(comeback::run(args, &urls, &watched).await?)
        }
        Mode::Backlog => {
            let parts =
                parts.context("--mode backlog stops workers: it can't be used with --url")?;
            Outcome::Measured(Box::pin(backlog::run(args, parts, &watched)).await?)
        }
        Mode::GrowthUsers => Outcome::Measured(growth::users(args, &urls, &watched).await?),
        Mode::GrowthChat => {
            let Some(database_url) =
                parts.as_ref().map(|parts| parts.database_url()).or(args.database_url.as_deref())
            else {
                bail!("--mode growth-chat fills the database: with --url it needs --database-url");
            };
            Outcome::Measured(growth::chat(args, &urls, &watched, database_url).await?)
        }
        Mode::Tracing => {
            let parts =
                parts.context("--mode tracing starts another one: it can't be used with --url")?;
            let (measured, notes) = Box::pin(traced::run(args, parts)).await?;
            return Ok((Outcome::Measured(measured), notes));
        }
    };
    Ok((outcome, Vec::new()))
}

/// The processes to be measured, and this one.
fn watched(args: &Args, parts: Option<&Parts>) -> Vec<Watched> {
    let gateway = |pid: &u32| Watched::new(format!("gateway {pid}"), *pid);
    let mut watched = match parts {
        Some(parts) => parts.watched(),
        None => args.gateway_pid.iter().map(gateway).collect(),
    };
    watched.push(Watched::new("load", std::process::id()));
    watched
}
