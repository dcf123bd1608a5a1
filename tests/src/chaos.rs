//! Faults under load: what may die, freeze or be cut off does, and the history of a fleet of clients shows whether the
//! service has kept its promises all the same.

use std::time::Duration;

use anyhow::{Result, bail};

pub mod args;
pub mod fault;
pub mod mix;
pub mod report;

use herald_worker::topology::DEFAULT;

use crate::{
    fleet::{Fleet, Plan},
    history::{Millis, Verdict, check, failover::failovers},
    site::{Setup, Site, audit::audit},
};
pub use fault::Fault;

/// A site under load.
#[derive(Debug)]
pub struct Chaos {
    /// What the faults hit.
    pub site: Site,
    /// Who sees what becomes of it.
    pub fleet: Fleet,
    /// When workers were killed that left others.
    pub deaths: Vec<Millis>,
    /// Decides how long faults last and whom they hit.
    pub rng: fastrand::Rng,
    /// The longest that a fault lasts.
    pub longest: Duration,
}

/// What a run has come to.
#[derive(Debug)]
pub struct Outcome {
    /// Whether every promise was kept.
    pub verdict: Verdict,
    /// How long each killed worker's partitions were without an answer, in milliseconds.
    pub failovers: Vec<Millis>,
}

/// How long everything may take to come after the last fault: some of it only comes with a sweep or a retry.
const PATIENCE: Duration = Duration::from_secs(120);

impl Chaos {
    /// Starts a site and a fleet that writes to it.
    ///
    /// # Errors
    /// If they don't start.
    pub async fn start(setup: Setup, plan: &Plan, longest: Duration) -> Result<Self> {
        let site = Box::pin(Site::start(setup)).await?;
        let fleet = Fleet::start(plan, &site.urls()).await?;
        fleet.write(true);
        let rng = fastrand::Rng::with_seed(plan.seed);
        Ok(Self { site, fleet, deaths: Vec::new(), rng, longest })
    }

    /// Ends it: waits until everything has come, and judges it, the database too.
    ///
    /// # Errors
    /// If the database can't be read.
    pub async fn finish(self) -> Result<Outcome> {
        self.fleet.settle(PATIENCE).await;
        let mut history = self.fleet.stop().await;
        history.stored = Some(Box::pin(audit(self.site.database_url())).await?);
        let partition = |chat| report::partition(chat, DEFAULT.partitions);
        let failovers = failovers(&history, &self.deaths, partition);
        Ok(Outcome { verdict: check(&history), failovers })
    }
}

/// Tries a fault on a small site under load: what was promised before, during and after it must be kept.
///
/// # Errors
/// If a promise was broken, or the service did not recover; holds the verdict.
pub async fn trial(
    setup: Setup,
    plan: Plan,
    faults: impl AsyncFnOnce(&mut Chaos) -> Result<()>,
) -> Result<Outcome> {
    /// Messages before and after the fault: enough that each partition has some.
    const SOME: u64 = 150;
    const RECOVERY: Duration = Duration::from_secs(60);
    /// Longer than a worker may be silent and keep its partitions.
    const LONGEST: Duration = Duration::from_millis(4000);
    println!("seed {}", plan.seed);
    let mut chaos = Box::pin(Chaos::start(setup, &plan, LONGEST)).await?;
    chaos.fleet.until_answered(SOME, RECOVERY).await?;
    faults(&mut chaos).await?;
    chaos.fleet.until_answered_more(SOME, RECOVERY).await?;
    let outcome = Box::pin(chaos.finish()).await?;
    println!("{}", outcome.verdict);
    if !outcome.verdict.is_clean() {
        bail!("seed {}:\n{}", plan.seed, outcome.verdict);
    }
    Ok(outcome)
}
