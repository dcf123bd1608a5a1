//! Settles frames: applies what all of the worker's partitions have waiting in one database transaction, answers it,
//! publishes its events. While one batch is settled the next one gathers, so batches grow under load and nothing lingers.
//!
//! The fence: the transaction moves each partition's `applied` sequence from where this worker believes it to be; if
//! another worker was there first, nothing is committed. The outbox: the same statement stores the batch's events, so
//! whoever takes a partition over publishes them again, under the same message ids.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use async_nats::jetstream;
use herald_proto::{
    clock::now_ms,
    frame::{Answer, Response},
    subject,
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    error::Error,
    failpoint,
    frame::{Frame, Outgoing},
    handler,
    publisher::{Answered, DeadLetter, Publisher},
    store::{self, Move, Store},
    working_set::WorkingSet,
};

/// What a partition's reader hands over, in order.
pub struct Batch {
    /// The partition.
    pub partition: u16,
    /// Its frames.
    pub frames: Vec<Frame>,
    /// Told when all of them are settled; dropped if the worker stops before.
    pub done: oneshot::Sender<()>,
}

/// Where a partition stands, as far as this worker knows.
struct Fence {
    applied: i64,
    /// Events that were committed and may not be published yet.
    unconfirmed: Vec<Outgoing>,
}

/// Settles the batches of all partitions of one worker.
pub struct Settler {
    store: Store,
    publisher: Publisher,
    frames: jetstream::stream::Stream<()>,
    /// When `FRAMES` was created.
    epoch: i64,
    fences: HashMap<u16, Fence>,
    /// Up to which sequence this worker has itself published a partition's events.
    published: HashMap<u16, i64>,
    max_frames: usize,
    stop: CancellationToken,
}

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Settler {
    /// A settler that takes about `max_frames` frames into a transaction. `stop` ends the waiting for a database or
    /// broker that is away.
    pub fn new(
        store: Store,
        publisher: Publisher,
        frames: jetstream::stream::Stream<()>,
        epoch: i64,
        max_frames: usize,
        stop: CancellationToken,
    ) -> Self {
        Self {
            store,
            publisher,
            frames,
            epoch,
            fences: HashMap::new(),
            published: HashMap::new(),
            max_frames,
            stop,
        }
    }

    /// Settles until all readers are gone.
    pub async fn run(mut self, mut batches: mpsc::Receiver<Batch>) {
        while let Some(first) = batches.recv().await {
            let mut frames = first.frames.len();
            let mut waiting = vec![first];
            while frames < self.max_frames
                && let Ok(next) = batches.try_recv()
            {
                frames += next.frames.len();
                waiting.push(next);
            }
            if let Err(error) = self.settle(waiting).await {
                tracing::warn!(%error, "frames stay unacknowledged");
            }
        }
    }

    async fn settle(&mut self, batches: Vec<Batch>) -> Result<(), Error> {
        let mut frames = Vec::new();
        let mut waiters = Vec::new();
        for batch in batches {
            self.learn_at_last(batch.partition).await?;
            frames.extend(batch.frames);
            waiters.push(batch.done);
        }
        self.settle_or_split(frames).await?;
        for waiter in waiters {
            // A reader that is gone has nothing to acknowledge.
            let _ = waiter.send(());
        }
        Ok(())
    }

    /// Learns where a partition stands, trying until it is known.
    async fn learn_at_last(&mut self, partition: u16) -> Result<(), Error> {
        let mut pause = FIRST_PAUSE;
        while let Err(error) = self.learn(partition).await {
            self.pause(&mut pause, &error).await?;
        }
        Ok(())
    }

    /// Reads a partition's state and publishes what its last owner may have left unpublished: a batch is acknowledged
    /// only after its events are published, so what is acknowledged needs nothing.
    async fn learn(&mut self, partition: u16) -> Result<(), Error> {
        if self.fences.contains_key(&partition) {
            return Ok(());
        }
        let state = self.store.partition(partition, self.epoch).await?;
        let consumer = self.frames.consumer_info(subject::consumer(partition)).await;
        let consumer = consumer.map_err(Error::broker("get a consumer's state"))?;
        let acknowledged = consumer.ack_floor.stream_sequence.cast_signed();
        let published = self.published.get(&partition).copied().unwrap_or(0).max(acknowledged);
        let left: Vec<Outgoing> = if state.applied > published {
            serde_json::from_str(&state.events)
                .map_err(|error| Error::Unreadable("the outbox", error))?
        } else {
            Vec::new()
        };
        self.publisher.events(&left.iter().collect::<Vec<_>>()).await?;
        tracing::info!(
            messaging.destination.partition.id = partition,
            herald.applied = state.applied,
            herald.republished = left.len(),
            "learned where a partition stands"
        );
        self.published.insert(partition, state.applied);
        self.fences.insert(partition, Fence { applied: state.applied, unconfirmed: Vec::new() });
        Ok(())
    }

    /// Applies the frames. If they can't be applied together for what is in them, halves them until the one to blame
    /// is alone: its neighbours are applied, and it is put aside.
    async fn settle_or_split(&mut self, frames: Vec<Frame>) -> Result<(), Error> {
        // A stack instead of recursion: a future that holds itself would have to be boxed.
        let mut todo = vec![frames];
        while let Some(mut frames) = todo.pop() {
            match self.settle_together(&mut frames).await {
                Ok(()) => {}
                Err(error) if error.is_transient() || matches!(error, Error::Stopping) => {
                    return Err(error);
                }
                Err(error) if frames.len() > 1 => {
                    tracing::warn!(%error, herald.frames = frames.len(), "a batch can't be applied, splitting it");
                    let second = frames.split_off(frames.len() / 2);
                    todo.push(second);
                    todo.push(frames);
                }
                Err(error) => self.put_aside(frames, &error).await?,
            }
        }
        Ok(())
    }

    async fn settle_together(&mut self, frames: &mut [Frame]) -> Result<(), Error> {
        let began_at = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            match self.apply(frames).await {
                Err(error) if error.is_transient() => {
                    // Whatever happened, the database knows best how far each partition is.
                    for frame in frames.iter() {
                        self.fences.remove(&frame.partition);
                    }
                    self.pause(&mut pause, &error).await?;
                    for partition in partitions(frames) {
                        self.learn_at_last(partition).await?;
                    }
                }
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        let applied_at = Instant::now();
        self.publish(frames).await?;
        tracing::debug!(
            herald.frames = frames.len(),
            herald.apply_ms = (applied_at - began_at).as_secs_f64() * 1e3,
            herald.publish_ms = applied_at.elapsed().as_secs_f64() * 1e3,
            "settled"
        );
        Ok(())
    }

    /// Publishes the events of all these frames' partitions, in one go: what one partition's events are among another's
    /// does not matter.
    async fn publish(&mut self, frames: &[Frame]) -> Result<(), Error> {
        let partitions = partitions(frames);
        let mut pause = FIRST_PAUSE;
        loop {
            let fences = partitions.iter().filter_map(|partition| self.fences.get(partition));
            let events: Vec<&Outgoing> = fences.flat_map(|fence| &fence.unconfirmed).collect();
            match self.publisher.events(&events).await {
                Ok(()) => break,
                Err(error) => self.pause(&mut pause, &error).await?,
            }
        }
        failpoint::step("after-publish");
        for partition in partitions {
            if let Some(fence) = self.fences.get_mut(&partition) {
                fence.unconfirmed.clear();
                self.published.insert(partition, fence.applied);
            }
        }
        Ok(())
    }

    /// One transaction: all frames, or none.
    async fn apply(&mut self, frames: &mut [Frame]) -> Result<(), Error> {
        for frame in frames.iter_mut() {
            frame.replay = self
                .fences
                .get(&frame.partition)
                .is_some_and(|fence| frame.sequence <= fence.applied);
        }
        let txn = self.store.begin().await?;
        failpoint::step("after-begin");
        let mut set = WorkingSet::load(&txn, frames, self.epoch, now_ms()).await?;
        let mut answers = Vec::with_capacity(frames.len());
        for frame in frames.iter() {
            if failpoint::is_poisoned(&frame.command) {
                return Err(store::Error::Corrupt("a test wants it so").into());
            }
            let answer = frame.span.in_scope(|| handler::handle(&mut set, frame))?;
            let id = Some(frame.command.id.as_str().to_owned());
            let response = Response { id, timestamp: set.now, answer };
            answers.push(Answered {
                gateway: frame.command.gateway.clone(),
                session: frame.command.session,
                response,
            });
        }
        let mut events: HashMap<u16, Vec<Outgoing>> = HashMap::new();
        for (partition, event) in set.save(&txn).await? {
            events.entry(partition).or_default().push(event);
        }
        let moves = self.moves(frames, &events)?;
        txn.commit(&moves).await?;
        failpoint::step("after-commit");
        for step in moves {
            let unconfirmed = events.remove(&step.id).unwrap_or_default();
            self.fences.insert(step.id, Fence { applied: step.applied, unconfirmed });
        }
        if let Err(error) = self.publisher.replies(answers).await {
            tracing::warn!(%error, "answers were lost, their clients will ask again");
        }
        failpoint::step("after-reply");
        Ok(())
    }

    fn moves(
        &self,
        frames: &[Frame],
        events: &HashMap<u16, Vec<Outgoing>>,
    ) -> Result<Vec<Move>, Error> {
        let mut steps: HashMap<u16, i64> = HashMap::new();
        for frame in frames.iter().filter(|frame| !frame.replay) {
            let step = steps.entry(frame.partition).or_default();
            *step = frame.sequence.max(*step);
        }
        let mut steps: Vec<(u16, i64)> = steps.into_iter().collect();
        // One order for every worker: rows locked in the same order can't deadlock.
        steps.sort_unstable();
        steps
            .into_iter()
            .map(|(id, applied)| {
                let expected = self.fences.get(&id).map_or(0, |fence| fence.applied);
                let events = match events.get(&id) {
                    Some(events) => serde_json::to_string(events)
                        .map_err(|error| Error::Unreadable("the outbox", error))?,
                    None => "[]".to_owned(),
                };
                Ok(Move { id, epoch: self.epoch, expected, applied, events })
            })
            .collect()
    }

    /// Puts frames that can't be applied for what is in them into `DEADLETTER`, tells their clients, and moves on.
    async fn put_aside(&mut self, frames: Vec<Frame>, reason: &Error) -> Result<(), Error> {
        for frame in frames {
            tracing::error!(
                error = %reason,
                messaging.destination.partition.id = frame.partition,
                herald.sequence = frame.sequence,
                "a frame can't be applied, it goes to DEADLETTER"
            );
            let mut pause = FIRST_PAUSE;
            while let Err(error) = self.put_one_aside(&frame, reason).await {
                self.fences.remove(&frame.partition);
                self.pause(&mut pause, &error).await?;
                self.learn_at_last(frame.partition).await?;
            }
        }
        Ok(())
    }

    async fn put_one_aside(&mut self, frame: &Frame, reason: &Error) -> Result<(), Error> {
        let body = serde_json::to_vec(&frame.command)
            .map_err(|error| Error::Unreadable("a frame", error))?;
        let letter = DeadLetter {
            partition: frame.partition,
            sequence: frame.sequence,
            origin: subject::frame(frame.partition, &frame.chat),
            reason: reason.to_string(),
            body: body.into(),
        };
        self.publisher.dead_letter(letter).await?;
        let expected = self.fences.get(&frame.partition).map_or(0, |fence| fence.applied);
        if frame.sequence > expected {
            let step = Move {
                id: frame.partition,
                epoch: self.epoch,
                expected,
                applied: frame.sequence,
                events: "[]".into(),
            };
            self.store.begin().await?.commit(&[step]).await?;
            self.fences.insert(
                frame.partition,
                Fence { applied: frame.sequence, unconfirmed: Vec::new() },
            );
        }
        let error = herald_proto::Error::unavailable(
            "the request could not be applied and was put aside",
            60_000,
        );
        let id = Some(frame.command.id.as_str().to_owned());
        let response = Response { id, timestamp: now_ms(), answer: Answer::Failed(error) };
        let (gateway, session) = (frame.command.gateway.clone(), frame.command.session);
        self.publisher.replies(vec![Answered { gateway, session, response }]).await
    }

    /// Waits before the next try, longer each time; an error if the worker stops meanwhile.
    async fn pause(&self, pause: &mut Duration, error: &Error) -> Result<(), Error> {
        if matches!(error, Error::Store(store::Error::Fenced)) {
            tracing::warn!("another worker has moved a partition of this batch; looking again");
        } else {
            tracing::warn!(%error, herald.pause_ms = pause.as_millis(), "can't settle, trying again");
        }
        let jittered = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
        *pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        tokio::select! {
            () = tokio::time::sleep(jittered) => Ok(()),
            () = self.stop.cancelled() => Err(Error::Stopping),
        }
    }
}

fn partitions(frames: &[Frame]) -> Vec<u16> {
    let mut partitions: Vec<u16> = frames.iter().map(|frame| frame.partition).collect();
    partitions.sort_unstable();
    partitions.dedup();
    partitions
}
