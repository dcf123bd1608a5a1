//! Nothing lost, nothing twice, nothing out of order, whatever dies: one fault a test, on processes under load.

use anyhow::Result;
use herald_tests::{
    chaos::{
        Fault,
        fault::{Disturbance, Part, Step},
        trial,
    },
    fleet::{Habits, Plan},
    site::Setup,
};

/// A test of each fault.
macro_rules! survives {
    ($($name:ident: $fault:expr;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() -> Result<()> {
            survive($fault).await
        }
    )*};
}

survives! {
    a_killed_gateway: Fault::KillGateway;
    a_killed_worker: Fault::KillWorker;
    a_killed_broker: Fault::KillBroker;
    a_killed_database: Fault::KillDatabase;
    a_worker_that_stood_still: Fault::FreezeWorker;
    workers_that_come_and_go: Fault::ScaleWorkers;
    gateways_rolled_one_by_one: Fault::RollGateways;
    a_worker_that_dies_after_begin: Fault::KillWorkerAt(Step::AfterBegin);
    a_worker_that_dies_after_commit: Fault::KillWorkerAt(Step::AfterCommit);
    a_worker_that_dies_after_reply: Fault::KillWorkerAt(Step::AfterReply);
    a_worker_that_dies_after_publish: Fault::KillWorkerAt(Step::AfterPublish);
    a_worker_that_dies_after_ack: Fault::KillWorkerAt(Step::AfterAck);
    a_gateway_cut_off_nats: Fault::Disturb(Part::GatewayToNats, Disturbance::Cut);
    a_gateway_whose_way_to_nats_leads_nowhere:
        Fault::Disturb(Part::GatewayToNats, Disturbance::Hole);
    a_worker_cut_off_nats: Fault::Disturb(Part::WorkerToNats, Disturbance::Cut);
    a_worker_whose_way_to_nats_leads_nowhere: Fault::Disturb(Part::WorkerToNats, Disturbance::Hole);
    a_worker_cut_off_the_database: Fault::Disturb(Part::WorkerToDatabase, Disturbance::Cut);
    a_worker_whose_way_to_the_database_leads_nowhere:
        Fault::Disturb(Part::WorkerToDatabase, Disturbance::Hole);
}

async fn survive(fault: Fault) -> Result<()> {
    let setup = Setup {
        gateways: 2,
        workers: 2,
        has_own_database: fault == Fault::KillDatabase,
        ..Setup::default()
    };
    let plan = Plan {
        users: 10,
        with_second_device: 3,
        rate: 150.0,
        habits: Habits { vanish: 0.01, ..Habits::default() },
        seed: fastrand::u64(..),
    };
    Box::pin(trial(setup, plan, async |chaos| fault.strike(chaos).await)).await.map(drop)
}
