//! What a worker counts and measures. Every handle is resolved once, here.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering::Relaxed},
};

use herald_proto::{
    frame::Answer,
    metrics::{
        AnswerCode, BATCH, By, By2, Counter, Gauge, Histogram, Kind, ROUND_TRIP, Registry,
        RequestKind,
    },
};

use crate::frame::Frame;

pub mod lag;

herald_proto::labels! {
    /// How a transaction ended.
    pub enum Transaction = "outcome" {
        /// All of it is stored.
        Committed = "committed",
        /// Another worker has moved one of its partitions: nothing is stored.
        Fenced = "fenced",
        /// The database failed or was away: nothing is stored, and it is tried again.
        Failed = "failed",
        /// Something in it can't be stored: it is split.
        Refused = "refused",
    }

    /// How publishing events ended.
    pub enum Publishing = "outcome" {
        /// The broker has them all.
        Confirmed = "confirmed",
        /// The broker did not say so; they are published again.
        Failed = "failed",
    }

    /// Why a frame was put aside.
    pub enum DeadLetterCause = "cause" {
        /// It is not readable.
        Unreadable = "unreadable",
        /// It can't be applied.
        Unappliable = "unappliable",
    }
}

/// A worker's metrics.
pub struct Metrics {
    /// Frames that were settled, by what they were answered with.
    pub frames: By2<RequestKind, AnswerCode, Counter>,
    /// Frames that had been applied before.
    pub replays: Counter,
    /// How many frames go in one transaction.
    pub batch: Histogram,
    /// Transactions.
    pub transactions: By<Transaction, Counter>,
    /// How long looking up, applying and committing takes.
    pub transaction: Histogram,
    /// Events of settled frames.
    pub events: By<RequestKind, Counter>,
    /// Publishing to users' logs.
    pub publishes: By<Publishing, Counter>,
    /// How long the broker takes to confirm a batch's events.
    pub publish: Histogram,
    /// Frames that were put aside.
    pub dead_letters: By<DeadLetterCause, Counter>,
    /// Workers that are heard of, this one included.
    pub members: Gauge,
    /// Event streams found below their marks.
    pub jumps: Counter,
    /// What this worker reads.
    pub partitions: Partitions,
}

/// What is known of each partition. Clones share it.
#[derive(Clone)]
pub struct Partitions(Arc<[Partition]>);

#[derive(Default)]
struct Partition {
    /// 1 while this worker reads it.
    owned: Gauge,
    /// Frames that wait, while this worker reads it.
    lag: AtomicI64,
}

/// The lag of a partition that is not this worker's.
const UNKNOWN: i64 = -1;

impl Metrics {
    /// A worker's metrics for that many partitions, in `registry` from now on.
    pub fn new(registry: &mut Registry, partitions: u16) -> Self {
        let partitions = Partitions((0..partitions).map(|_| Partition::new()).collect());
        partitions.register(registry);
        Self {
            frames: registry.counters2(
                "herald_worker_frames",
                "Requests that were settled, by what they were answered with.",
            ),
            replays: registry.counter(
                "herald_worker_replays",
                "Requests that had been applied before, and were answered again.",
            ),
            batch: registry.histogram(
                "herald_worker_batch_frames",
                "How many requests were settled in one transaction.",
                BATCH,
            ),
            transactions: registry
                .counters("herald_worker_transactions", "Transactions, by how they ended."),
            transaction: registry.histogram(
                "herald_worker_transaction_duration_seconds",
                "How long looking up, applying and committing a batch took.",
                ROUND_TRIP,
            ),
            events: registry.counters(
                "herald_worker_events",
                "Events that committed requests caused, by the kind of the request.",
            ),
            publishes: registry.counters(
                "herald_worker_publishes",
                "Batches of events to users' logs, by whether the broker confirmed them.",
            ),
            publish: registry.histogram(
                "herald_worker_publish_duration_seconds",
                "How long the broker took to confirm a batch's events, or not to.",
                ROUND_TRIP,
            ),
            dead_letters: registry
                .counters("herald_worker_dead_letters", "Messages that were put into DEADLETTER."),
            members: registry.gauge(
                "herald_worker_members",
                "Workers that this one knows to be alive, itself included.",
            ),
            jumps: registry.counter(
                "herald_worker_event_jumps",
                "Event streams that were found below what was given out: every device reloads.",
            ),
            partitions,
        }
    }

    /// A frame was applied and answered.
    pub fn settled(&self, frame: &Frame, answer: &Answer) {
        let code = match answer {
            Answer::Failed(error) => error.code.into(),
            _ => AnswerCode::Ok,
        };
        self.frames.inc((&frame.command.request).into(), code);
        if frame.replay {
            self.replays.inc();
        }
    }
}

impl Partition {
    fn new() -> Self {
        Self { owned: Gauge::default(), lag: AtomicI64::new(UNKNOWN) }
    }
}

impl Partitions {
    #[expect(clippy::cast_precision_loss, reason = "Prometheus' numbers are f64")]
    fn register(&self, registry: &mut Registry) {
        let partitions = self.0.clone();
        registry.read_each(
            "herald_worker_partition_owned",
            "Whether this worker reads the partition.",
            Kind::Gauge,
            move |sample| {
                for (number, partition) in partitions.iter().enumerate() {
                    let labels = vec![("partition", number.to_string())];
                    sample(labels, partition.owned.get() as f64);
                }
            },
        );
        let partitions = self.0.clone();
        registry.read_each(
            "herald_worker_partition_lag",
            "Messages in FRAMES that wait for this worker: not delivered, or delivered and not acknowledged. Only of partitions that it reads.",
            Kind::Gauge,
            move |sample| {
                for (number, partition) in partitions.iter().enumerate() {
                    let lag = partition.lag.load(Relaxed);
                    if lag != UNKNOWN && partition.owned.get() > 0 {
                        sample(vec![("partition", number.to_string())], lag as f64);
                    }
                }
            },
        );
    }

    /// Counts the partition as this worker's until what it returns is dropped.
    #[must_use]
    pub fn own(&self, partition: u16) -> Owned {
        let found = self.0.get(usize::from(partition));
        Owned {
            _counted: found.map(|found| found.owned.one()).unwrap_or_default(),
            partitions: self.clone(),
            partition,
        }
    }

    fn set_lag(&self, partition: u16, lag: i64) {
        if let Some(found) = self.0.get(usize::from(partition)) {
            found.lag.store(lag, Relaxed);
        }
    }

    fn owned(&self) -> impl Iterator<Item = u16> {
        let owned =
            |(number, partition): (u16, &Partition)| (partition.owned.get() > 0).then_some(number);
        (0..).zip(self.0.iter()).filter_map(owned)
    }
}

/// A partition that is this worker's.
pub struct Owned {
    _counted: herald_proto::metrics::Part,
    partitions: Partitions,
    partition: u16,
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.partitions.set_lag(self.partition, UNKNOWN);
    }
}
