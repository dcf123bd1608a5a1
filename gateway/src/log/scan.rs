//! Scans of a stream: all of its messages from one on, whomever they are for.
//!
//! For what it returns by direct gets, the broker puts each of a message's headers in one by one, and writes all of them
//! anew each time. What it delivers by a consumer goes out as it is stored, which costs it a third, and nothing is counted
//! before and after each batch.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_nats::jetstream::{
    Context,
    consumer::{AckPolicy, DeliverPolicy, pull},
};
use herald_proto::link::command;
use tokio::time::{Instant, timeout};

use super::{
    DirectGet, MAX_BYTES,
    direct::{Form, Reads, Stored},
};
use crate::error::Error;

/// What all scans of a stream have to know of each other.
#[derive(Default)]
pub(super) struct Scans {
    /// When the broker last had no consumer to give, or was silent about one.
    failed_at: Mutex<Option<Instant>>,
}

/// A scan under way.
pub(super) struct Scan<'a> {
    scans: &'a Scans,
    jetstream: &'a Context,
    reads: &'a Reads,
    stream: String,
    way: Way<'a>,
}

/// How a scan goes on.
enum Way<'a> {
    /// By a direct get, which tells how much is left.
    AtFirst,
    /// By a consumer that is to be made.
    Far,
    /// By its consumer.
    Delivered(Consumer<'a>),
    /// By direct gets. Where the stream ends only they tell: what a consumer counts as left can be wrong for a moment.
    AtLast,
}

/// A consumer of a scan's own. Dropping it removes it, and so does the broker, after a while, if that can't be.
struct Consumer<'a> {
    reads: &'a Reads,
    stream: String,
    name: String,
    /// The number of the message that it delivers next.
    next: u64,
}

/// How many messages must be left for a consumer to be worth its while.
const MANY: u64 = 1024;
/// How long the broker may take to make a consumer: a crowd waits.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long there are no consumers after one could not be had.
const PAUSE: Duration = Duration::from_secs(60);
/// How long the broker keeps a consumer of which nothing is heard.
const FORSAKEN: Duration = Duration::from_secs(30);

impl Scans {
    fn failed_at(&self) -> MutexGuard<'_, Option<Instant>> {
        // Any time will do, whoever panicked while holding the lock.
        self.failed_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn have_failed(&self) {
        *self.failed_at() = Some(Instant::now());
    }

    fn may_have_consumers(&self) -> bool {
        self.failed_at().is_none_or(|at| at.elapsed() >= PAUSE)
    }
}

impl<'a> Scan<'a> {
    /// A scan that has not begun.
    pub(super) fn new(
        scans: &'a Scans,
        jetstream: &'a Context,
        reads: &'a Reads,
        stream: String,
    ) -> Self {
        Self { scans, jetstream, reads, stream, way: Way::AtFirst }
    }

    /// The next messages, at most so many, and whether the stream ends with them. `from` is where the scan begins, and then
    /// where it has come to.
    ///
    /// # Errors
    /// If the broker fails or is silent. Without a consumer a scan goes on all the same.
    pub(super) async fn next(
        &mut self,
        from: u64,
        most: usize,
    ) -> Result<(Vec<Stored>, bool), Error> {
        match self.deliver(from, most).await {
            Ok(found) if !found.is_empty() => return Ok((found, false)),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "a log is read without a consumer");
                if let Error::Silent(_) = error {
                    self.scans.have_failed();
                }
                self.way = Way::AtLast;
            }
        }
        let request = DirectGet {
            seq: Some(from),
            batch: Some(most),
            max_bytes: Some(MAX_BYTES),
            ..DirectGet::default()
        };
        let found = self.reads.get(&self.stream, &request).await?;
        let left = found.last().map_or(0, |last| last.pending);
        if let Way::AtFirst = self.way
            && left >= MANY
            && self.scans.may_have_consumers()
        {
            self.way = Way::Far;
        }
        Ok((found, left == 0))
    }

    /// What the consumer delivers next; nothing without one.
    async fn deliver(&mut self, from: u64, most: usize) -> Result<Vec<Stored>, Error> {
        if let Way::Far = self.way {
            let stream = self.stream.clone();
            let consumer = Consumer::make(self.jetstream, self.reads, stream, from).await?;
            self.way = Way::Delivered(consumer);
        }
        let Way::Delivered(consumer) = &mut self.way else { return Ok(Vec::new()) };
        let found = consumer.next(most).await?;
        if found.last().is_none_or(|last| last.pending == 0) {
            self.way = Way::AtLast;
        }
        Ok(found)
    }
}

impl<'a> Consumer<'a> {
    async fn make(
        jetstream: &Context,
        reads: &'a Reads,
        stream: String,
        from: u64,
    ) -> Result<Self, Error> {
        let name = format!("scan-{:016x}", fastrand::u64(..));
        // If this is given up meanwhile, the broker is told so.
        let consumer = Self { reads, stream, name: name.clone(), next: 1 };
        let config = pull::Config {
            name: Some(name),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
            ack_policy: AckPolicy::None,
            inactive_threshold: FORSAKEN,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let made = jetstream.create_consumer_on_stream(config, &consumer.stream);
        match timeout(PATIENCE, made).await {
            Ok(Ok(_)) => Ok(consumer),
            Ok(Err(error)) => Err(Error::broker("scan a log")(error)),
            Err(_) => Err(Error::Silent("scan a log")),
        }
    }

    /// The next messages, at most so many; none if there are none.
    ///
    /// # Errors
    /// If the broker fails or is silent, a part was lost, or the next message is larger than what is read at once.
    async fn next(&mut self, most: usize) -> Result<Vec<Stored>, Error> {
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.stream, self.name);
        let body = format!("{{\"batch\":{most},\"max_bytes\":{MAX_BYTES},\"no_wait\":true}}");
        let form = Form::Delivered { consumer: self.name.clone(), next: self.next, most };
        let found = self.reads.ask(form, &subject, body.as_bytes()).await?;
        self.next += found.len() as u64;
        Ok(found)
    }
}

impl Drop for Consumer<'_> {
    fn drop(&mut self) {
        let subject = format!("$JS.API.CONSUMER.DELETE.{}.{}", self.stream, self.name);
        self.reads.tell(|commands| command::publish(commands, &subject, b""));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn after_a_consumer_that_could_not_be_had_there_are_none_for_some_time() {
        let scans = Scans::default();
        assert!(scans.may_have_consumers());
        scans.have_failed();
        tokio::time::advance(PAUSE / 2).await;
        assert!(!scans.may_have_consumers());
        tokio::time::advance(PAUSE / 2).await;
        assert!(scans.may_have_consumers());
    }
}
