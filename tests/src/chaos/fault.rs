//! What can be done to a running Herald.

use std::{fmt, time::Duration};

use anyhow::{Context as _, Result};
use tokio::time::sleep;

use super::Chaos;
use crate::{Process, proxy::Mode, site::Member};

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A gateway dies at once.
    KillGateway,
    /// A worker dies at once.
    KillWorker,
    /// A worker dies at that step of its work.
    KillWorkerAt(Step),
    /// nats-server dies, and comes back with its data.
    KillBroker,
    /// PostgreSQL dies, and comes back with its data.
    KillDatabase,
    /// All of it dies at once, and comes back in any order.
    KillAll,
    /// A worker stands still for longer than it may keep its partitions, and goes on.
    FreezeWorker,
    /// A gateway stands still, and its clients notice or not before it goes on.
    FreezeGateway,
    /// nats-server stands still, and goes on.
    FreezeBroker,
    /// A program's connections are cut, late, or lead nowhere for a while.
    Disturb(Part, Disturbance),
    /// Workers come, and go again.
    ScaleWorkers,
    /// Gateways are stopped and started anew, one by one.
    RollGateways,
    /// Workers are stopped and started anew, one by one.
    RollWorkers,
}

/// A step of a worker's cycle at which it can end: the names of its fail points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it
pub enum Step {
    AfterBegin,
    AfterCommit,
    AfterReply,
    AfterPublish,
    AfterAck,
}

/// Which connection is disturbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A gateway's to NATS.
    GatewayToNats,
    /// A worker's to NATS.
    WorkerToNats,
    /// A worker's to the database.
    WorkerToDatabase,
}

/// What is done to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disturbance {
    /// It is cut, and can't be made again for a while.
    Cut,
    /// Everything takes longer.
    Delay,
    /// It leads nowhere, and nobody is told.
    Hole,
    /// It is cut again and again, each time just when work goes on.
    Flap,
}

impl Disturbance {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Cut, Self::Delay, Self::Hole, Self::Flap];
}

impl Step {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::AfterBegin, Self::AfterCommit, Self::AfterReply, Self::AfterPublish, Self::AfterAck];

    /// The fail point's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::AfterBegin => "after-begin",
            Self::AfterCommit => "after-commit",
            Self::AfterReply => "after-reply",
            Self::AfterPublish => "after-publish",
            Self::AfterAck => "after-ack",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillGateway => f.write_str("a gateway is killed"),
            Self::KillWorker => f.write_str("a worker is killed"),
            Self::KillWorkerAt(step) => write!(f, "a worker dies {}", step.name()),
            Self::KillBroker => f.write_str("nats-server is killed"),
            Self::KillDatabase => f.write_str("PostgreSQL is killed"),
            Self::KillAll => f.write_str("everything is killed"),
            Self::FreezeWorker => f.write_str("a worker stands still"),
            Self::FreezeGateway => f.write_str("a gateway stands still"),
            Self::FreezeBroker => f.write_str("nats-server stands still"),
            Self::Disturb(part, disturbance) => {
                let part = match part {
                    Part::GatewayToNats => "a gateway's way to NATS",
                    Part::WorkerToNats => "a worker's way to NATS",
                    Part::WorkerToDatabase => "a worker's way to the database",
                };
                let what = match disturbance {
                    Disturbance::Cut => "is cut",
                    Disturbance::Delay => "is slow",
                    Disturbance::Hole => "leads nowhere",
                    Disturbance::Flap => "flaps",
                };
                write!(f, "{part} {what}")
            }
            Self::ScaleWorkers => f.write_str("two more workers come, and two go"),
            Self::RollGateways => f.write_str("gateways are rolled"),
            Self::RollWorkers => f.write_str("workers are rolled"),
        }
    }
}

/// How long a worker may take to reach a step: the load takes it there within moments.
const STEP: Duration = Duration::from_secs(60);

impl Fault {
    /// Does it, and mends it again; what it hits and how long it lasts is decided by chance.
    ///
    /// # Errors
    /// If what was ended does not get ready again.
    pub async fn strike(self, chaos: &mut Chaos) -> Result<()> {
        match self {
            Self::KillGateway => {
                let pause = chaos.between(0, 3000);
                let gateway = pick(&mut chaos.site.gateways, &mut chaos.rng)?;
                gateway.kill().await?;
                sleep(pause).await;
                gateway.start().await
            }
            Self::KillWorker => {
                let pause = chaos.between(0, 8000);
                let worker = pick(&mut chaos.site.workers, &mut chaos.rng)?;
                chaos.deaths.push(chaos.fleet.now());
                worker.kill().await?;
                sleep(pause).await;
                worker.start().await
            }
            Self::KillWorkerAt(step) => {
                let after = chaos.rng.u32(1..40);
                let worker = pick(&mut chaos.site.workers, &mut chaos.rng)?;
                worker.stop().await?;
                // `return` is what the action is called; what it does is up to the fail point.
                worker.launch_with(&format!("{}={after}*off->return", step.name()))?;
                let ended = worker.process()?.wait();
                tokio::time::timeout(STEP, ended)
                    .await
                    .context("it never came to the step (has the worker its fail points?)")??;
                chaos.deaths.push(chaos.fleet.now());
                worker.start().await
            }
            Self::KillBroker => {
                let pause = chaos.between(0, 3000);
                chaos.site.broker.kill().await?;
                sleep(pause).await;
                chaos.site.broker.restart().await
            }
            Self::KillDatabase => {
                let pause = chaos.between(0, 3000);
                let postgres = chaos.site.postgres.as_mut().context("not the site's own")?;
                postgres.kill().await?;
                sleep(pause).await;
                postgres.restart().await
            }
            Self::KillAll => chaos.kill_all().await,
            Self::FreezeWorker => {
                let pause = chaos.between(3500, 9000);
                freeze(pick(&mut chaos.site.workers, &mut chaos.rng)?.process()?, pause).await
            }
            Self::FreezeGateway => {
                let pause = chaos.between(1000, 20_000);
                freeze(pick(&mut chaos.site.gateways, &mut chaos.rng)?.process()?, pause).await
            }
            Self::FreezeBroker => {
                let pause = chaos.between(1000, 9000);
                freeze(chaos.site.broker.process(), pause).await
            }
            Self::Disturb(part, disturbance) => chaos.disturb(part, disturbance).await,
            Self::ScaleWorkers => {
                for _ in 0..2 {
                    chaos.site.add_worker().await?;
                    sleep(chaos.between(500, 2500)).await;
                }
                for _ in 0..2 {
                    chaos.site.workers.remove(0).stop().await?;
                    sleep(chaos.between(500, 2500)).await;
                }
                Ok(())
            }
            Self::RollGateways => roll(&mut chaos.site.gateways).await,
            Self::RollWorkers => roll(&mut chaos.site.workers).await,
        }
    }
}

impl Chaos {
    /// A time by chance, and not more than the run allows.
    fn between(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.rng.u64(least..=most)).min(self.longest)
    }

    async fn kill_all(&mut self) -> Result<()> {
        for member in self.site.gateways.iter_mut().chain(&mut self.site.workers) {
            member.kill().await?;
        }
        self.site.broker.kill().await?;
        if let Some(postgres) = &mut self.site.postgres {
            postgres.kill().await?;
        }
        sleep(self.between(0, 2000)).await;
        // Members end when they find no server at their start, and are started until they do: both orders have to work.
        if self.rng.bool() {
            self.site.restart_servers().await?;
            self.site.start_members().await
        } else {
            let pause = self.between(0, 2000);
            for member in self.site.gateways.iter_mut().chain(&mut self.site.workers) {
                member.launch()?;
            }
            sleep(pause).await;
            self.site.restart_servers().await?;
            self.site.start_members().await
        }
    }

    async fn disturb(&mut self, part: Part, disturbance: Disturbance) -> Result<()> {
        let steps = match disturbance {
            Disturbance::Cut => vec![(Mode::Cut, self.between(0, 2000))],
            Disturbance::Hole => vec![(Mode::Hole, self.between(1000, 9000))],
            Disturbance::Delay => {
                vec![(Mode::Delay(self.between(10, 200)), self.between(1000, 9000))]
            }
            Disturbance::Flap => {
                let cuts = self.rng.usize(4..16);
                let cut = |chaos: &mut Self| {
                    [(Mode::Cut, Duration::ZERO), (Mode::Pass, chaos.between(50, 600))]
                };
                (0..cuts).flat_map(|_| cut(self)).collect()
            }
        };
        let members = match part {
            Part::GatewayToNats => &mut self.site.gateways,
            Part::WorkerToNats | Part::WorkerToDatabase => &mut self.site.workers,
        };
        let member = pick(members, &mut self.rng)?;
        let proxy = match part {
            Part::WorkerToDatabase => member.database.as_ref().context("no proxy")?,
            Part::GatewayToNats | Part::WorkerToNats => &member.nats,
        };
        for (mode, pause) in steps {
            proxy.set(mode);
            sleep(pause).await;
        }
        proxy.set(Mode::Pass);
        // A worker may end of its own accord when it finds its streams gone; whoever runs it would start it again.
        member.start().await
    }
}

async fn freeze(process: &mut Process, pause: Duration) -> Result<()> {
    process.stop()?;
    sleep(pause).await;
    process.cont()
}

async fn roll(members: &mut [Member]) -> Result<()> {
    for member in members {
        member.stop().await?;
        member.start().await?;
    }
    Ok(())
}

fn pick<'a>(members: &'a mut [Member], rng: &mut fastrand::Rng) -> Result<&'a mut Member> {
    let index = rng.usize(..members.len().max(1));
    members.get_mut(index).context("there is none")
}
