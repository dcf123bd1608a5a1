//! Settles frames: applies what all of the worker's partitions have waiting in one database transaction, answers it,
//! publishes its events. While one batch is settled the next one gathers, so batches grow under load and nothing lingers.
//! While a small batch's events are on their way, the next one's transaction may run already. A partition has one batch
//! here at a time, so the two have nothing to do with each other.
//!
//! The fence: the transaction moves each partition's `applied` sequence from where this worker believes it to be; if
//! another worker was there first, nothing is committed. The outbox: the same statement stores the batch's events, so
//! whoever takes a partition over publishes them again, under the same message ids.

use std::{
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use async_nats::jetstream;
use foldhash::{HashMap, HashMapExt};
use herald_proto::{
    clock::now_ms,
    frame::Response,
    telemetry::{Ended, Span},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    chats::{Chats, Remembered},
    error::Error,
    events::Events,
    failpoint,
    frame::{Frame, Outgoing},
    handler,
    metrics::{Metrics, Transaction},
    publisher::{Answered, Publisher},
    spans,
    store::{self, Store},
    working_set::{Outcome, WorkingSet},
};

mod aside;
mod fence;
mod underway;

use fence::Fences;
use underway::{Underway, confirmed, tell};

/// What a partition's reader hands over, in order.
pub struct Batch {
    /// The partition.
    pub partition: u16,
    /// Its frames.
    pub frames: Vec<Frame>,
    /// Told when all of them are settled; dropped if the worker stops before.
    pub done: oneshot::Sender<()>,
}

/// What a settler works with.
pub struct Parts {
    /// The record of messages.
    pub store: Store,
    /// Takes answers and dead letters.
    pub publisher: Publisher,
    /// Takes events.
    pub events: Events,
    /// The stream `FRAMES`.
    pub frames: jetstream::stream::Stream<()>,
    /// When it was created, in nanoseconds since the Unix epoch.
    pub created: i64,
    /// About how many frames go into a transaction.
    pub max_frames: usize,
    /// How long JetStream remembers message ids.
    pub duplicate_window: Duration,
    /// How many chats are remembered.
    pub remembered_chats: NonZeroUsize,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Ends the waiting for a database or broker that is away.
    pub stop: CancellationToken,
}

/// Settles the batches of all partitions of one worker.
pub struct Settler {
    parts: Parts,
    fences: Fences,
    chats: Chats,
    /// The batch whose events are on their way.
    underway: Option<Underway>,
    /// Parts of the spans of the frames that are being settled.
    parts_of_spans: Vec<Ended>,
}

/// From how many frames on a batch's events are waited for before the next one's transaction: that one grows meanwhile,
/// and one large transaction costs less than two.
const LARGE: usize = 64;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// How often an idle settler looks whether the connection was lost.
const LOOK: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Settler {
    /// A settler that knows nothing yet.
    pub fn new(parts: Parts) -> Self {
        let fences = Fences::new(parts.created, parts.duplicate_window);
        let chats = Chats::new(parts.remembered_chats);
        Self { parts, fences, chats, underway: None, parts_of_spans: Vec::new() }
    }

    /// Settles until all readers are gone.
    pub async fn run(mut self, mut batches: mpsc::Receiver<Batch>) {
        loop {
            let first = tokio::select! {
                biased;
                first = batches.recv() => first,
                () = confirmed(&mut self.parts.events, &mut self.underway), if self.underway.is_some() => {
                    self.finish_or_warn().await;
                    continue;
                }
                () = tokio::time::sleep(LOOK), if self.underway.is_none() => {
                    if let Err(error) = self.parts.events.look_if_due().await {
                        tracing::warn!(%error, "can't look at the event streams, trying again");
                    }
                    continue;
                }
            };
            let Some(first) = first else { return self.finish_or_warn().await };
            let mut frames = first.frames.len();
            let mut waiting = vec![first];
            while frames < self.parts.max_frames
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
        let is_large = frames.len() >= LARGE;
        self.settle_or_split(frames).await?;
        match &mut self.underway {
            Some(underway) => underway.waiters.extend(waiters),
            None => tell(waiters),
        }
        if is_large { self.finish().await } else { Ok(()) }
    }

    /// Learns where a partition stands, trying until it is known.
    async fn learn_at_last(&mut self, partition: u16) -> Result<(), Error> {
        if self.fences.get(partition).is_none() {
            // What its last owner left may have to be published.
            self.finish().await?;
        }
        self.learn(partition).await
    }

    async fn learn(&mut self, partition: u16) -> Result<(), Error> {
        let mut pause = FIRST_PAUSE;
        loop {
            let Parts { store, frames, events, .. } = &mut self.parts;
            match self.fences.learn(partition, store, frames, events).await {
                Ok(()) => return Ok(()),
                Err(error) => self.pause(&mut pause, &error, &Span::none()).await?,
            }
        }
    }

    /// Applies the frames. If they can't be applied together for what is in them, halves them until the one to blame
    /// is alone: its neighbours are applied, and it is put aside.
    async fn settle_or_split(&mut self, frames: Vec<Frame>) -> Result<(), Error> {
        // A stack instead of recursion: a future that holds itself would have to be boxed.
        let mut todo = vec![frames];
        while let Some(mut frames) = todo.pop() {
            // A partition's next step overwrites what it has to publish.
            let is_of = |partition: &u16| frames.iter().any(|frame| frame.partition == *partition);
            if self.underway.as_ref().is_some_and(|underway| underway.partitions.iter().any(is_of))
            {
                self.finish().await?;
            }
            match self.settle_together(&mut frames).await {
                Ok(applied_at) => self.publish(frames, applied_at).await?,
                Err(error) if error.is_transient() || matches!(error, Error::Stopping) => {
                    return Err(error);
                }
                Err(error) if frames.len() > 1 => {
                    tracing::warn!(%error, herald.frames = frames.len(), "a batch can't be applied, splitting it");
                    let second = frames.split_off(frames.len() / 2);
                    todo.push(second);
                    todo.push(frames);
                }
                Err(error) => {
                    self.put_aside(frames, &error).await?;
                    self.parts_of_spans.clear();
                }
            }
        }
        Ok(())
    }

    /// Applies the frames, and returns when that was done.
    async fn settle_together(&mut self, frames: &mut [Frame]) -> Result<Instant, Error> {
        let mut span = spans::apply(frames);
        let (mut pause, mut has_repeats) = (FIRST_PAUSE, false);
        loop {
            let tried_at = Instant::now();
            let applied = self.apply(frames, has_repeats).await;
            self.count(&applied, frames.len(), tried_at);
            match applied {
                Ok(()) => {
                    self.parts_of_spans.extend(span.end());
                    return Ok(Instant::now());
                }
                Err(Error::Store(store::Error::Taken)) if !has_repeats => has_repeats = true,
                Err(error) if error.is_transient() => {
                    // Whatever happened, the database knows best how far each partition is.
                    for frame in frames.iter() {
                        self.fences.forget(frame.partition);
                    }
                    self.pause(&mut pause, &error, &span).await?;
                    for partition in partitions(frames) {
                        self.learn_at_last(partition).await?;
                    }
                }
                Err(error) => {
                    span.fail("not_applied");
                    return Err(error);
                }
            }
        }
    }

    /// Counts a transaction.
    fn count(&self, applied: &Result<(), Error>, frames: usize, tried_at: Instant) {
        let metrics = &self.parts.metrics;
        let outcome = match applied {
            Ok(()) => {
                metrics.batch.observe_size(frames);
                metrics.transaction.observe(tried_at.elapsed(), None);
                Transaction::Committed
            }
            Err(Error::Store(store::Error::Fenced)) => Transaction::Fenced,
            Err(error) if error.is_transient() => Transaction::Failed,
            Err(_) => Transaction::Refused,
        };
        metrics.transactions.inc(outcome);
    }

    /// One transaction: all frames, or none.
    async fn apply(&mut self, frames: &mut [Frame], has_repeats: bool) -> Result<(), Error> {
        let has_replays = self.fences.mark_replays(frames);
        for frame in frames.iter_mut().filter(|frame| frame.replay) {
            frame.span.set("herald.replay", true);
        }
        let remembered = self.remembered(frames);
        failpoint::step("after-begin");
        let store = &self.parts.store;
        let began_at = SystemTime::now();
        let is_repeat = has_replays || has_repeats;
        let loaded = WorkingSet::load(store, frames, remembered, is_repeat, now_ms()).await;
        if loaded.as_ref().map_or(true, WorkingSet::has_looked_up) {
            let mut look_ups = spans::look_ups(frames, store, began_at);
            if let Err(error) = &loaded {
                look_ups.iter_mut().for_each(|span| span.fail(error.kind()));
            }
            self.parts_of_spans.extend(look_ups.into_iter().filter_map(Span::end));
        }
        let mut set = loaded?;
        let mut answers = Vec::with_capacity(frames.len());
        for frame in frames.iter_mut() {
            if failpoint::is_poisoned(&frame.command) {
                return Err(store::Error::Corrupt("a test wants it so").into());
            }
            let answer = {
                let _logs = frame.span.enter();
                handler::handle(&mut set, frame)?
            };
            spans::answered(frame, &answer);
            let id = Some(frame.command.id.as_str().to_owned());
            let response = Response { id, timestamp: set.now, answer };
            answers.push(Answered {
                gateway: frame.gateway.clone(),
                session: frame.command.session,
                response,
            });
        }
        let Outcome { mut changes, events, told, chats } = set.finish();
        let mut outbox: HashMap<u16, Vec<Outgoing>> = HashMap::new();
        for (partition, event) in events {
            outbox.entry(partition).or_default().push(event);
        }
        changes.moves = self.fences.moves(frames, &outbox)?;
        let mut transactions = spans::transactions(frames, &self.parts.store);
        let committed = self.parts.store.commit(&changes).await;
        if let Err(error) = &committed {
            transactions.iter_mut().for_each(|span| span.fail(error.kind()));
        }
        self.parts_of_spans.extend(transactions.into_iter().filter_map(Span::end));
        committed?;
        failpoint::step("after-commit");
        for (frame, answered) in frames.iter().zip(&answers) {
            self.parts.metrics.settled(frame, &answered.response.answer);
        }
        for kind in told {
            self.parts.metrics.events.inc(kind);
        }
        self.fences.moved(&changes.moves, &mut outbox);
        self.remember(frames, chats);
        self.parts.publisher.replies(answers);
        failpoint::step("after-reply");
        Ok(())
    }

    /// Takes out what is remembered of the frames' chats.
    fn remembered(&mut self, frames: &[Frame]) -> Vec<(herald_proto::Chat, Remembered)> {
        let mut taken = Vec::new();
        for frame in frames {
            let tenure = self.fences.get(frame.partition).map(|fence| fence.tenure);
            let known = tenure.and_then(|tenure| self.chats.take(&frame.chat, tenure));
            taken.extend(known.map(|known| (frame.chat.clone(), known)));
        }
        taken
    }

    /// Remembers the chats as they were committed.
    fn remember(&mut self, frames: &[Frame], chats: Vec<(herald_proto::Chat, Remembered)>) {
        let partitions: HashMap<&herald_proto::Chat, u16> =
            frames.iter().map(|frame| (&frame.chat, frame.partition)).collect();
        for (chat, remembered) in chats {
            let fence = partitions.get(&chat).and_then(|partition| self.fences.get(*partition));
            if let Some(tenure) = fence.map(|fence| fence.tenure) {
                self.chats.put(chat, tenure, remembered);
            }
        }
    }

    /// Waits before the next try, longer each time; an error if the worker stops meanwhile.
    /// What is logged about it belongs to `span`.
    async fn pause(&self, pause: &mut Duration, error: &Error, span: &Span) -> Result<(), Error> {
        let logs = span.enter();
        if matches!(error, Error::Store(store::Error::Fenced)) {
            tracing::warn!("another worker has moved a partition of this batch; looking again");
        } else {
            tracing::warn!(%error, herald.pause_ms = pause.as_millis(), "can't settle, trying again");
        }
        drop(logs);
        let jittered = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
        *pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        tokio::select! {
            () = tokio::time::sleep(jittered) => Ok(()),
            () = self.parts.stop.cancelled() => Err(Error::Stopping),
        }
    }
}

fn partitions(frames: &[Frame]) -> Vec<u16> {
    let mut partitions: Vec<u16> = frames.iter().map(|frame| frame.partition).collect();
    partitions.sort_unstable();
    partitions.dedup();
    partitions
}
