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
pub mod probe;
pub mod recipient;
pub mod report;
pub mod returner;
pub mod sender;
pub mod shared;
pub mod slowdown;
pub mod stats;
pub mod storm;
pub mod target;
pub mod traced;
pub mod traffic;
pub mod usage;
pub mod wire;

use args::{Args, Mode};
use parts::Parts;
use probe::Probe;
use report::{Outcome, Report};
use slowdown::Slowdowns;
use target::Target;

/// Does what the flags say and returns the result, which is also written to `--json`.
///
/// # Errors
/// If nothing could be measured: something did not start, nobody was let in, or a measured process is gone.
pub async fn run(args: &Args) -> Result<Report> {
    files::allow(args.most_connections())?;
    let mut parts =
        if args.url.is_empty() { Some(Box::pin(Parts::start(args)).await?) } else { None };
    let slowdowns = Slowdowns::default();
    let probe = Probe::start(&slowdowns)?;
    let (outcome, mut notes) = measure(args, parts.as_mut(), &slowdowns).await?;
    drop(probe);
    notes.extend(slowdowns.note());
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
async fn measure(
    args: &Args,
    parts: Option<&mut Parts>,
    slowdowns: &Slowdowns,
) -> Result<(Outcome, Vec<String>)> {
    let target = Target::new(args, parts.as_deref(), slowdowns.clone());
    let outcome = match args.mode {
        Mode::Cycle | Mode::New => Outcome::Traffic(traffic::run(args, &target).await?),
        Mode::Idle => Outcome::Idle(idle::run(args, &target).await?),
        Mode::Storm => Outcome::Measured(storm::run(args, &target).await?),
        Mode::Reconnect | Mode::CatchUp => Outcome::Measured(comeback::run(args, &target).await?),
        Mode::Backlog => {
            let parts =
                parts.context("--mode backlog stops workers: it can't be used with --url")?;
            Outcome::Measured(Box::pin(backlog::run(args, parts, &target)).await?)
        }
        Mode::GrowthUsers => Outcome::Measured(growth::users(args, &target).await?),
        Mode::GrowthChat => {
            let Some(database_url) =
                parts.as_ref().map(|parts| parts.database_url()).or(args.database_url.as_deref())
            else {
                bail!("--mode growth-chat fills the database: with --url it needs --database-url");
            };
            Outcome::Measured(growth::chat(args, &target, database_url).await?)
        }
        Mode::Tracing => {
            let parts =
                parts.context("--mode tracing starts another one: it can't be used with --url")?;
            let (measured, notes) = Box::pin(traced::run(args, parts, slowdowns)).await?;
            return Ok((Outcome::Measured(measured), notes));
        }
    };
    Ok((outcome, Vec::new()))
}
