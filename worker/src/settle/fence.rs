//! Where partitions stand, as far as this worker knows. The database decides: a batch is committed only if all of its
//! partitions stand where this says.

use async_nats::jetstream;
use foldhash::{HashMap, HashMapExt};
use herald_proto::{clock::now_ms, subject};

use crate::{
    error::Error,
    events::Events,
    frame::{Frame, Outgoing, end_of, message_of},
    store::{self, Move, Store},
};

/// Where a partition stands.
pub(super) struct Fence {
    /// What `applied` counts in.
    pub(super) epoch: i64,
    pub(super) applied: i64,
    /// When the newest applied frame came into the stream.
    pub(super) seen_at: i64,
    /// Tells what was learned now from what was learned before another worker may have had the partition.
    pub(super) tenure: u64,
    /// Events that were committed and may not be published yet.
    pub(super) unpublished: Vec<Outgoing>,
}

/// The partitions of one worker.
pub(super) struct Fences {
    known: HashMap<u16, Fence>,
    /// Up to which place, and in which epoch, this worker has itself published a partition's events.
    published: HashMap<u16, (i64, i64)>,
    tenures: u64,
    /// When `FRAMES` was created.
    created: i64,
    /// Half the time for which JetStream remembers message ids, in milliseconds.
    fresh: i64,
}

impl Fences {
    pub(super) fn new(created: i64, duplicate_window: std::time::Duration) -> Self {
        let fresh = i64::try_from(duplicate_window.as_millis() / 2).unwrap_or(i64::MAX);
        Self { known: HashMap::new(), published: HashMap::new(), tenures: 0, created, fresh }
    }

    pub(super) fn get(&self, partition: u16) -> Option<&Fence> {
        self.known.get(&partition)
    }

    /// Forgets where a partition stands: it is learned anew before anything else is done with it.
    pub(super) fn forget(&mut self, partition: u16) {
        self.known.remove(&partition);
    }

    /// Reads a partition's state and publishes what its last owner may have left unpublished: a batch is acknowledged
    /// only after its events are published, so what is acknowledged needs nothing.
    pub(super) async fn learn(
        &mut self,
        partition: u16,
        store: &Store,
        frames: &jetstream::stream::Stream<()>,
        events: &mut Events,
    ) -> Result<(), Error> {
        if self.known.contains_key(&partition) {
            return Ok(());
        }
        let state = store.partition(partition, self.created).await?;
        let consumer = frames.consumer_info(subject::consumer(partition)).await;
        let consumer = consumer.map_err(Error::broker("get a consumer's state"))?;
        let acknowledged = end_of(consumer.ack_floor.stream_sequence);
        let own = match self.published.get(&partition) {
            Some((epoch, published)) if *epoch == state.epoch => *published,
            _ => 0,
        };
        let mut left: Vec<Outgoing> = if state.applied > own.max(acknowledged) {
            serde_json::from_str(&state.events)
                .map_err(|error| Error::Unreadable("the outbox", error))?
        } else {
            Vec::new()
        };
        if !left.is_empty() && now_ms() - state.moved_at > self.fresh {
            let there = events.already_there(&left, state.moved_at).await?;
            left.retain(|event| !there.contains(&event.id));
        }
        events.append(&left.iter().collect::<Vec<_>>()).await?;
        tracing::info!(
            messaging.destination.partition.id = partition,
            herald.applied = message_of(state.applied),
            herald.republished = left.len(),
            "learned where a partition stands"
        );
        self.published.insert(partition, (state.epoch, state.applied));
        self.tenures += 1;
        let fence = Fence {
            epoch: state.epoch,
            applied: state.applied,
            seen_at: state.seen_at,
            tenure: self.tenures,
            unpublished: Vec::new(),
        };
        self.known.insert(partition, fence);
        Ok(())
    }

    /// Tells which frames are replays: they were applied before, and are answered again. Returns whether there are any.
    ///
    /// A frame that was applied has its place, and came in no later than the newest frame that was applied. One that
    /// has an applied frame's place but came in later shows that `FRAMES` has lost its newest frames and counts the
    /// same sequences again: from there on places count in a new epoch.
    pub(super) fn mark_replays(&self, frames: &mut [Frame]) -> bool {
        let mut epochs: HashMap<u16, (i64, i64)> = HashMap::new();
        let mut has_replays = false;
        for frame in frames {
            let Some(fence) = self.known.get(&frame.partition) else { continue };
            let (epoch, applied) =
                epochs.entry(frame.partition).or_insert((fence.epoch, fence.applied));
            if *epoch == fence.epoch && frame.place <= *applied && frame.came_at > fence.seen_at {
                tracing::error!(
                    messaging.destination.partition.id = frame.partition,
                    herald.sequence = message_of(frame.place),
                    herald.applied = message_of(*applied),
                    "FRAMES has lost its newest frames: it counts the same sequences again"
                );
                (*epoch, *applied) = (fence.epoch + 1, 0);
            }
            frame.epoch = *epoch;
            frame.replay = frame.place <= *applied;
            has_replays |= frame.replay;
        }
        has_replays
    }

    /// The steps that these frames take their partitions forward; `outbox` has their events.
    pub(super) fn moves(
        &self,
        frames: &[Frame],
        outbox: &HashMap<u16, Vec<Outgoing>>,
    ) -> Result<Vec<Move>, Error> {
        let mut steps: HashMap<u16, Move> = HashMap::new();
        for frame in frames.iter().filter(|frame| !frame.replay) {
            let Some(fence) = self.known.get(&frame.partition) else {
                return Err(store::Error::Fenced.into());
            };
            let step = steps.entry(frame.partition).or_insert_with(|| Move {
                id: frame.partition,
                epoch: frame.epoch,
                expected_epoch: fence.epoch,
                expected: fence.applied,
                applied: 0,
                seen_at: fence.seen_at,
                moved_at: now_ms(),
                events: String::new(),
            });
            step.epoch = frame.epoch;
            step.applied = frame.place;
            step.seen_at = step.seen_at.max(frame.came_at);
        }
        let mut steps: Vec<Move> = steps.into_values().collect();
        // One order for every worker: rows locked in the same order can't deadlock.
        steps.sort_unstable_by_key(|step| step.id);
        for step in &mut steps {
            let events = outbox.get(&step.id).map_or(&[][..], Vec::as_slice);
            step.events = serde_json::to_string(events)
                .map_err(|error| Error::Unreadable("the outbox", error))?;
        }
        Ok(steps)
    }

    /// Notes what was committed.
    pub(super) fn moved(&mut self, steps: &[Move], outbox: &mut HashMap<u16, Vec<Outgoing>>) {
        for step in steps {
            if let Some(fence) = self.known.get_mut(&step.id) {
                (fence.epoch, fence.applied, fence.seen_at) =
                    (step.epoch, step.applied, step.seen_at);
                fence.unpublished = outbox.remove(&step.id).unwrap_or_default();
            }
        }
    }

    /// Notes that a partition's events are published.
    pub(super) fn published(&mut self, partition: u16) {
        if let Some(fence) = self.known.get_mut(&partition) {
            fence.unpublished.clear();
            self.published.insert(partition, (fence.epoch, fence.applied));
        }
    }
}
