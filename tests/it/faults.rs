//! Nothing lost, nothing twice, nothing out of order, whatever dies: one fault a test, on processes under load.
//!
//! Each test prints its seed, on which all choices of clients and faults depend; `HERALD_SEED` sets it.

use anyhow::{Context as _, Result};
use herald_tests::{
    Client,
    chaos::{
        Chaos, Fault,
        fault::{Disturbance, Part, Step},
        trial,
    },
    fleet::{Habits, Plan},
    site::Setup,
};
use serde_json::json;

/// A test of each fault, or of several of a kind, one after the other.
macro_rules! survives {
    ($($name:ident: [$($fault:expr),*];)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() -> Result<()> {
            Box::pin(survive(&[$($fault),*])).await
        }
    )*};
}

survives! {
    a_killed_gateway: [Fault::KillGateway];
    a_killed_worker: [Fault::KillWorker];
    a_worker_that_dies_at_any_step_of_its_work: [
        Fault::KillWorkerAt(Step::AfterBegin),
        Fault::KillWorkerAt(Step::AfterCommit),
        Fault::KillWorkerAt(Step::AfterReply),
        Fault::KillWorkerAt(Step::AfterPublish),
        Fault::KillWorkerAt(Step::AfterAck)
    ];
    a_killed_broker: [Fault::KillBroker];
    a_killed_database: [Fault::KillDatabase];
    everything_killed_at_once: [Fault::KillAll];
    a_worker_that_stood_still: [Fault::FreezeWorker];
    a_gateway_and_a_broker_that_stood_still: [Fault::FreezeGateway, Fault::FreezeBroker];
    workers_that_come_and_go: [Fault::ScaleWorkers];
    gateways_and_workers_rolled_one_by_one: [Fault::RollGateways, Fault::RollWorkers];
    a_gateway_without_its_broker: [
        Fault::Disturb(Part::GatewayToNats, Disturbance::Hole),
        Fault::Disturb(Part::GatewayToNats, Disturbance::Flap)
    ];
    a_worker_without_its_broker: [
        Fault::Disturb(Part::WorkerToNats, Disturbance::Hole),
        Fault::Disturb(Part::WorkerToNats, Disturbance::Flap)
    ];
    a_worker_without_its_database: [
        Fault::Disturb(Part::WorkerToDatabase, Disturbance::Hole),
        Fault::Disturb(Part::WorkerToDatabase, Disturbance::Flap)
    ];
}

fn plan() -> Plan {
    let seed = std::env::var("HERALD_SEED").ok().and_then(|seed| seed.parse().ok());
    Plan {
        users: 10,
        with_second_device: 3,
        rate: 200.0,
        habits: Habits { vanish: 0.01, ..Habits::default() },
        seed: seed.unwrap_or_else(|| fastrand::u64(..)),
    }
}

async fn survive(faults: &[Fault]) -> Result<()> {
    let setup = Setup {
        gateways: 2,
        // Those that come and go are more than those that stay.
        workers: if faults == [Fault::ScaleWorkers] { 1 } else { 2 },
        has_own_database: faults
            .iter()
            .any(|fault| matches!(fault, Fault::KillDatabase | Fault::KillAll)),
        ..Setup::default()
    };
    let strike = async |chaos: &mut Chaos| {
        for fault in faults {
            fault.strike(chaos).await?;
        }
        Ok(())
    };
    Box::pin(trial(setup, plan(), strike)).await.map(drop)
}

/// It is put aside, its sender is told, and nobody else notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_can_never_be_applied() -> Result<()> {
    let poison = async |chaos: &mut Chaos| {
        let worker = chaos.site.workers.first_mut().context("no worker")?;
        worker.stop().await?;
        worker.launch_with("poison=return(bad-)")?;
        worker.start().await?;
        let url = format!("{}?userId=outsider&deviceId=d", chaos.site.urls()[0]);
        let mut outsider = Client::connect(&url).await?;
        for key in ["bad-1", "bad-2"] {
            let new = json!({"chatId": "stranger", "clientMessageId": key, "message": "x"});
            let answer = outsider.request("new", new).await?;
            assert_eq!(answer["error"]["code"], "unavailable", "{answer}");
        }
        Ok(())
    };
    let plan = Plan { rate: 300.0, ..plan() };
    Box::pin(trial(Setup::default(), plan, poison)).await.map(drop)
}
