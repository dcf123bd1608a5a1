//! All faults, mixed, for a long time.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::{Instant, sleep};

use super::{
    Chaos, Fault, Outcome,
    args::Args,
    fault::{Disturbance, Part, Step},
};
use crate::{
    fleet::{Habits, Plan},
    site::Setup,
};

/// Every kind of fault once: a round in which each has its turn.
pub fn all() -> Vec<Fault> {
    let mut faults = vec![
        Fault::KillGateway,
        Fault::KillWorker,
        Fault::KillWorker,
        Fault::KillBroker,
        Fault::KillDatabase,
        Fault::KillAll,
        Fault::FreezeWorker,
        Fault::FreezeGateway,
        Fault::FreezeBroker,
        Fault::ScaleWorkers,
        Fault::RollGateways,
        Fault::RollWorkers,
    ];
    faults.extend(Step::ALL.map(Fault::KillWorkerAt));
    for part in [Part::GatewayToNats, Part::WorkerToNats, Part::WorkerToDatabase] {
        faults.extend(Disturbance::ALL.map(|disturbance| Fault::Disturb(part, disturbance)));
    }
    faults
}

/// The faults that were asked for.
fn wanted(only: &[String]) -> Result<Vec<Fault>> {
    let is_wanted =
        |fault: &Fault| only.is_empty() || only.iter().any(|text| fault.to_string().contains(text));
    let wanted: Vec<Fault> = all().into_iter().filter(is_wanted).collect();
    ensure!(!wanted.is_empty(), "--only: no fault is described so");
    Ok(wanted)
}

/// Runs it; says what it does.
///
/// # Errors
/// If something does not start, or not again.
pub async fn run(args: &Args) -> Result<Outcome> {
    let wanted = wanted(&args.only)?;
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}");
    let setup = Setup {
        gateways: args.gateways.into(),
        workers: args.workers.into(),
        gateway_flags: args.gateway_flag.clone(),
        worker_flags: args.worker_flag.clone(),
        env: vec![],
        has_own_database: true,
        programs: args.programs.clone(),
        release: args.release,
        logs: args.keep_logs.clone(),
    };
    let plan = Plan {
        users: args.users,
        with_second_device: args.users / 4,
        rate: args.rate,
        habits: Habits::default(),
        seed,
    };
    let mut chaos = Box::pin(Chaos::start(setup, &plan, Duration::MAX)).await?;
    let end = Instant::now() + args.duration();
    let mut waiting = Vec::new();
    while Instant::now() < end {
        // A pause in which everything is well: what is broken by a fault must also heal.
        sleep(Duration::from_millis(chaos.rng.u64(500..4000))).await;
        if waiting.is_empty() {
            waiting = wanted.clone();
            chaos.rng.shuffle(&mut waiting);
        }
        let Some(fault) = waiting.pop() else { continue };
        let before = chaos.fleet.stats();
        let began = chaos.fleet.now();
        fault.strike(&mut chaos).await?;
        let after = chaos.fleet.stats();
        println!(
            "{:8.1} s  {fault}, for {:.1} s: {} messages, {} open, {} in all",
            f64::from(began) / 1000.0,
            f64::from(chaos.fleet.now() - began) / 1000.0,
            after.messages - before.messages,
            after.open,
            after.messages,
        );
    }
    println!("{:8.1} s  faults are over", f64::from(chaos.fleet.now()) / 1000.0);
    Box::pin(chaos.finish()).await
}
