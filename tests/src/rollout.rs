//! A rolling update as Kubernetes does one, on real processes under load, with the timings of the manifests.
//!
//! New pods come first (`maxSurge`, `maxUnavailable: 0`) and have to stay ready for `minReadySeconds`. An old pod is taken
//! out of its Service when its end begins; whoever balances the load notices that a moment later, while the preStop hook
//! sleeps. Then it gets SIGTERM, and SIGKILL when its grace period is over.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures::future::{join_all, try_join_all};
use serde_json::Value;
use tokio::time::{sleep, timeout};

mod crowd;
pub mod report;

use crate::{
    Gateways, Pair,
    manifests::Manifests,
    site::{Member, Setup, Site},
};
use crowd::Crowd;
pub use report::Report;

/// How many of what.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Gateways.
    pub gateways: usize,
    /// Workers.
    pub workers: usize,
    /// Users who do nothing but be there, two and two in a chat.
    pub sessions: usize,
    /// Pairs of users who write all the time.
    pub pairs: usize,
    /// How long each of them pauses after a message.
    pub pause: Duration,
    /// How long to watch before anything is rolled.
    pub before: Duration,
    /// Whether optimised programs are built.
    pub release: bool,
    /// The folder with the programs. [default: builds them]
    pub programs: Option<PathBuf>,
    /// The overlay whose timings are followed.
    pub overlay: String,
}

/// What a Deployment says about an update.
#[derive(Debug, Clone, Copy)]
struct Timings {
    min_ready: Duration,
    /// How long load balancers take to notice that a pod is gone: as long as the readiness probe takes.
    notice: Duration,
    pre_stop: Duration,
    grace: Duration,
}

/// What gateways and workers are told of an update.
const GATEWAY: [&str; 3] = ["DRAIN_TIMEOUT", "ACCEPT_RATE", "RECONNECT_RATE"];
const WORKER: [&str; 1] = ["DRAIN_TIMEOUT"];

impl Timings {
    fn of(manifests: &Manifests, name: &str) -> Result<Self> {
        let deployment = manifests.get("Deployment", name)?;
        let seconds = |pointer: &str| {
            let seconds = deployment.pointer(pointer).and_then(Value::as_u64);
            seconds.map(Duration::from_secs)
        };
        let rolling = deployment.pointer("/spec/strategy/rollingUpdate").context("no strategy")?;
        let is = |name: &str, value: u64| rolling.get(name).and_then(Value::as_u64) == Some(value);
        ensure!(is("maxSurge", 1) && is("maxUnavailable", 0), "this rehearses one at a time");
        let pod = "/spec/template/spec";
        let probe = format!("{pod}/containers/0/readinessProbe");
        let period = seconds(&format!("{probe}/periodSeconds")).context("no periodSeconds")?;
        let threshold = deployment.pointer(&format!("{probe}/failureThreshold"));
        let threshold = threshold.and_then(Value::as_u64).context("no failureThreshold")?;
        Ok(Self {
            min_ready: seconds("/spec/minReadySeconds").context("no minReadySeconds")?,
            notice: period * u32::try_from(threshold)?,
            pre_stop: seconds(&format!("{pod}/containers/0/lifecycle/preStop/sleep/seconds"))
                .unwrap_or_default(),
            grace: seconds(&format!("{pod}/terminationGracePeriodSeconds")).context("no grace")?,
        })
    }
}

/// Rolls all gateways, then all workers, and tells what it was like.
///
/// # Errors
/// If anything was lost, doubled or out of order, or something does not start.
pub async fn rehearse(plan: &Plan) -> Result<Report> {
    let manifests = Manifests::build(&format!("overlays/{}", plan.overlay)).await?;
    let of_gateways = Timings::of(&manifests, "herald-gateway")?;
    let of_workers = Timings::of(&manifests, "herald-worker")?;
    let flags = |map: &str, names: &[&str]| {
        let settings = manifests.config_map(map)?;
        let flag = |name: &&str| {
            let value = settings.get(&format!("HERALD_{name}")).cloned();
            let value = value.with_context(|| format!("{map} has no HERALD_{name}"))?;
            Ok::<_, anyhow::Error>([format!("--{}", name.to_lowercase().replace('_', "-")), value])
        };
        Ok::<_, anyhow::Error>(names.iter().map(flag).collect::<Result<Vec<_>>>()?.concat())
    };
    let setup = Setup {
        gateways: plan.gateways,
        workers: plan.workers,
        gateway_flags: flags("herald-gateway", &GATEWAY)?,
        worker_flags: flags("herald-worker", &WORKER)?,
        release: plan.release,
        programs: plan.programs.clone(),
        ..Setup::default()
    };
    let mut site = Box::pin(Site::start(setup)).await?;
    let gateways = Gateways::new(site.urls());
    let crowd = Crowd::gather(&gateways, plan.sessions).await?;
    let names: Vec<String> = (0..plan.pairs).map(|n| format!("writer-{n}")).collect();
    let pairs: Vec<Pair> =
        try_join_all(names.iter().map(|name| Pair::start(&gateways, name, plan.pause))).await?;
    let watched_from = Instant::now();
    sleep(plan.before).await;

    let began_at = Instant::now();
    let mut killed = roll_gateways(&mut site, &gateways, of_gateways).await?;
    let gateways_until = Instant::now();
    killed += roll_workers(&mut site, of_workers).await?;
    let ended_at = Instant::now();

    let reports = join_all(pairs.into_iter().map(Pair::finish)).await;
    let pairs = reports.into_iter().collect::<Result<Vec<_>>>()?;
    let seen = crowd.leave().await?;
    Ok(Report::new(plan, killed, [watched_from, began_at, gateways_until, ended_at], &pairs, &seen))
}

async fn roll_gateways(site: &mut Site, gateways: &Gateways, timings: Timings) -> Result<usize> {
    let mut leaving = Vec::new();
    for _ in 0..site.gateways.len() {
        site.add_gateway().await?;
        gateways.set(site.urls());
        sleep(timings.min_ready).await;
        let old = site.gateways.remove(0);
        let (gateways, urls) = (gateways.clone(), site.urls());
        leaving.push(tokio::spawn(async move {
            let begin = Instant::now();
            sleep(timings.notice.min(timings.pre_stop)).await;
            gateways.set(urls);
            end(old, begin, timings).await
        }));
    }
    count_killed(leaving).await
}

async fn roll_workers(site: &mut Site, timings: Timings) -> Result<usize> {
    let mut leaving = Vec::new();
    for _ in 0..site.workers.len() {
        site.add_worker().await?;
        sleep(timings.min_ready).await;
        let old = site.workers.remove(0);
        leaving.push(tokio::spawn(end(old, Instant::now(), timings)));
    }
    count_killed(leaving).await
}

async fn count_killed(leaving: Vec<tokio::task::JoinHandle<Result<bool>>>) -> Result<usize> {
    let mut killed = 0;
    for old in leaving {
        killed += usize::from(old.await??);
    }
    Ok(killed)
}

/// Ends a pod whose end began at `begin`; returns whether it had to be killed.
async fn end(mut old: Member, begin: Instant, timings: Timings) -> Result<bool> {
    sleep(timings.pre_stop.saturating_sub(begin.elapsed())).await;
    let process = old.process()?;
    process.term()?;
    if timeout(timings.grace.saturating_sub(begin.elapsed()), process.wait()).await.is_ok() {
        return Ok(false);
    }
    process.kill().await?;
    Ok(true)
}
