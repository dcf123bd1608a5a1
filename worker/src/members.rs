//! Which workers are alive, as this one sees it, and which partitions fall to it.
//!
//! Nothing depends on two workers agreeing: the broker pins one worker to a partition's consumer, and the fence in the
//! database decides. Agreement only spreads the work, and tells a worker when another is gone.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use async_nats::{Client, Subscriber};
use futures::{FutureExt, StreamExt};
use herald_proto::{metrics::Gauge, subject, wire::Heartbeat};
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::error::Error;

mod share;

/// How often a worker says that it is alive.
const BEAT: Duration = Duration::from_millis(500);
/// How long a worker counts as alive after it was last heard of.
pub(crate) const LAPSE: Duration = Duration::from_secs(2);
/// How long a worker that has just started listens for others before it takes its share.
const LISTEN: Duration = Duration::from_millis(250);
const PAUSE: Duration = Duration::from_secs(1);

/// The partitions that are one worker's, kept up to date. Clones see the same.
#[derive(Clone)]
pub struct Share(watch::Receiver<Vec<bool>>);

impl Share {
    /// Waits until a partition is this worker's.
    pub async fn gained(&mut self, partition: u16) {
        self.wait(partition, true).await;
    }

    /// Waits until a partition is no longer this worker's.
    pub async fn lost(&mut self, partition: u16) {
        self.wait(partition, false).await;
    }

    async fn wait(&mut self, partition: u16, mine: bool) {
        let is_so = |share: &Vec<bool>| share.get(usize::from(partition)) == Some(&mine);
        if self.0.wait_for(is_so).await.is_err() {
            // The worker is stopping: nothing changes any more.
            std::future::pending::<()>().await;
        }
    }
}

/// Says that this worker is alive and listens to the others.
pub struct Members {
    client: Client,
    me: String,
    partitions: u16,
    seen_at: HashMap<String, Instant>,
    share: watch::Sender<Vec<bool>>,
    /// How many there are.
    count: Gauge,
}

impl Members {
    /// This worker among the others, without a share so far.
    pub fn new(client: Client, me: String, partitions: u16, count: Gauge) -> (Self, Share) {
        let (share, seen) = watch::channel(vec![false; usize::from(partitions)]);
        (Self { client, me, partitions, seen_at: HashMap::new(), share, count }, Share(seen))
    }

    /// Runs until told to stop, then says goodbye, so that the others need not wait for the lapse.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            if let Err(error) = self.meet(&stop).await {
                tracing::warn!(%error, "can't hear of other workers, trying again");
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    () = stop.cancelled() => {}
                }
            }
        }
        if let Err(error) = self.say(true).await {
            tracing::warn!(%error, "the other workers are not told that this one goes");
        }
    }

    async fn meet(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        let mut others = self
            .client
            .subscribe(subject::HEARTBEATS)
            .await
            .map_err(Error::broker("subscribe to heartbeats"))?;
        self.say(false).await?;
        let listen = tokio::time::Instant::now() + LISTEN;
        let mut beat = tokio::time::interval_at(listen, BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = beat.tick() => {
                    self.say(false).await?;
                    self.hear_waiting(&mut others).await?;
                    self.divide();
                }
                heard = others.next() => {
                    let heard = heard.ok_or_else(|| Error::broker("hear heartbeats")("the subscription ended"))?;
                    if self.hear(&heard).await? && tokio::time::Instant::now() > listen {
                        self.divide();
                    }
                }
            }
        }
    }

    /// Takes what has been said already: a worker that was frozen must not divide by what it knew before.
    async fn hear_waiting(&mut self, others: &mut Subscriber) -> Result<(), Error> {
        while let Some(Some(heard)) = others.next().now_or_never() {
            self.hear(&heard).await?;
        }
        Ok(())
    }

    /// Returns whether a worker came or went.
    async fn hear(&mut self, message: &async_nats::Message) -> Result<bool, Error> {
        let heard: Heartbeat = match serde_json::from_slice(&message.payload) {
            Ok(heard) => heard,
            Err(error) => {
                tracing::warn!(%error, "a heartbeat is not readable");
                return Ok(false);
            }
        };
        if heard.worker == self.me {
            return Ok(false);
        }
        if heard.leaving {
            return Ok(self.seen_at.remove(&heard.worker).is_some());
        }
        let is_new = self.seen_at.insert(heard.worker, Instant::now()).is_none();
        if is_new {
            // So that it need not wait for the next beat to know of this one.
            self.say(false).await?;
        }
        Ok(is_new)
    }

    async fn say(&self, leaving: bool) -> Result<(), Error> {
        let heartbeat = Heartbeat { worker: self.me.clone(), leaving };
        let body = serde_json::to_vec(&heartbeat)
            .map_err(|error| Error::Unreadable("a heartbeat", error))?;
        Ok(self.client.publish(subject::HEARTBEATS, body.into()).await?)
    }

    fn divide(&mut self) {
        self.seen_at.retain(|_, seen_at| seen_at.elapsed() < LAPSE);
        let mut workers: Vec<String> = self.seen_at.keys().cloned().collect();
        workers.push(self.me.clone());
        let share = share::share(&self.me, &workers, self.partitions);
        let workers = workers.len();
        self.count.set(i64::try_from(workers).unwrap_or(i64::MAX));
        self.share.send_if_modified(|known| {
            let changed = *known != share;
            if changed {
                let mine = share.iter().filter(|mine| **mine).count();
                tracing::info!(
                    herald.workers = workers,
                    herald.partitions = mine,
                    "partitions are shared out"
                );
                *known = share;
            }
            changed
        });
    }
}
