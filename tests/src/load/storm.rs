//! Many users come in as fast as they are let in: how fast that is, and what it does to those who chat.

use anyhow::Result;
use tokio::time::sleep;

use super::{
    args::Args,
    aside::Aside,
    crowd::Crowd,
    report::{
        Measured, Process,
        figure::{self, Figure},
    },
    stats::Latency,
    target::Target,
    usage,
};

/// Lets them in and measures.
///
/// # Errors
/// If one is not let in, or a measured process is gone.
pub async fn run(args: &Args, target: &Target) -> Result<Measured> {
    let aside = Aside::begin(args, target).await?;
    let before = usage::all(&target.processes)?;
    aside.disturb()?;
    let crowd = Crowd::gather(args, &target.urls).await?;
    aside.calm();
    let after = usage::all(&target.processes)?;
    let logins = crowd.logins;
    let mut measured = Measured {
        seconds: logins.seconds,
        processes: Process::of_all(&target.processes, &before, &after),
        per: (logins.count, "login"),
        figures: vec![
            Figure::new("logins", logins.per_second(), "/s"),
            Figure::count("told to come again later", crowd.refused, "times"),
        ],
        ..Measured::default()
    };
    measured.figures.extend(figure::percentiles("login", &Latency::of_all(crowd.took.clone())?));
    sleep(args.settle).await;
    aside.end(&mut measured).await?;
    measured.faults.ended_sessions += crowd.leave().await?;
    Ok(measured)
}
