//! A fleet of well-behaved clients, which writes its history down.
//!
//! They do what the protocol asks of a client: connect again after a pause, to another gateway; send again what was not
//! answered, under the same key; drop events that they have; ack what they have written down. Some vanish between an
//! event and its ack, some have two devices. All their choices come from one seed.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

pub mod device;
pub mod habits;
pub mod outbox;
pub mod reading;
pub mod shared;

use crate::{
    eventually,
    history::{History, User, Verdict, check},
};
use device::Device;
pub use habits::Habits;
use shared::Shared;

/// How many clients, and how busy.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Users; each writes to those next to it in a ring.
    pub users: u16,
    /// How many of them have a second device.
    pub with_second_device: u16,
    /// Messages a second, over all.
    pub rate: f64,
    /// What clients do beside writing.
    pub habits: Habits,
    /// Decides all choices.
    pub seed: u64,
}

/// Clients under way.
#[derive(Debug)]
pub struct Fleet {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

/// How long the devices may take to connect for the first time.
const START: Duration = Duration::from_secs(60);
/// How long nothing may happen until it is worth looking whether everything is there.
const QUIET: Duration = Duration::from_millis(1000);
const LOOK: Duration = Duration::from_millis(20);

impl Fleet {
    /// Connects all devices to these gateways, and waits until each has its place in its user's log. Nothing is sent yet.
    ///
    /// # Errors
    /// If they are not let in.
    pub async fn start(plan: &Plan, gateways: &[String]) -> Result<Self> {
        let mut users: Vec<User> = (0..plan.users).map(User).collect();
        users.extend((0..plan.with_second_device.min(plan.users)).map(User));
        let shared = Arc::new(Shared::new(gateways, &users));
        let mut tasks = JoinSet::new();
        let mut rng = fastrand::Rng::with_seed(plan.seed);
        let devices = users.len();
        #[expect(clippy::cast_precision_loss, reason = "a few hundred devices")]
        let pace = Duration::from_secs_f64(devices as f64 / plan.rate.max(0.001));
        for (number, user) in users.into_iter().enumerate() {
            let device = Device::new(number, user, plan, pace, rng.fork(), shared.clone());
            tasks.spawn(device.run());
        }
        let fleet = Self { shared, tasks };
        eventually("all devices are connected", START, async || {
            let ready = fleet.shared.stats().ready;
            ensure!(ready == devices, "{ready} of {devices}");
            Ok(())
        })
        .await?;
        Ok(fleet)
    }

    /// Lets the clients write, and vanish; or leave it.
    pub fn write(&self, is_on: bool) {
        self.shared.set_writing(is_on);
    }

    /// How it goes.
    pub fn stats(&self) -> shared::Stats {
        self.shared.stats()
    }

    /// Milliseconds since the fleet began, as its history counts them.
    pub fn now(&self) -> u32 {
        self.shared.now()
    }

    /// Waits until that many messages were answered.
    ///
    /// # Errors
    /// If that takes longer than `patience`.
    pub async fn until_answered(&self, messages: u64, patience: Duration) -> Result<()> {
        eventually("messages are answered", patience, async || {
            let answered = self.stats().messages;
            ensure!(answered >= messages, "{answered} of {messages}");
            Ok(())
        })
        .await
    }

    /// Waits until as many messages more were answered as the service would answer in a moment when it is well.
    ///
    /// # Errors
    /// As [`Self::until_answered`].
    pub async fn until_answered_more(&self, messages: u64, patience: Duration) -> Result<()> {
        self.until_answered(self.stats().messages + messages, patience).await
    }

    /// Leaves off writing, and waits until everything sent was answered and has come, or until `patience` is over.
    pub async fn settle(&self, patience: Duration) -> Verdict {
        self.write(false);
        let end = Instant::now() + patience;
        loop {
            while Instant::now() < end && !(self.stats().open == 0 && self.shared.is_quiet(QUIET)) {
                sleep(LOOK).await;
            }
            let verdict = check(&self.history());
            if !verdict.is_incomplete() || Instant::now() >= end {
                return verdict;
            }
            sleep(QUIET).await;
        }
    }

    /// What was written down so far.
    pub fn history(&self) -> History {
        self.shared.history()
    }

    /// Ends all sessions and gives the history.
    pub async fn stop(mut self) -> History {
        self.shared.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.shared.history()
    }
}
