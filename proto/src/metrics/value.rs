//! The metrics' values: atomics that a registry reads and any number of clones change.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::TraceId;
use crate::clock::now_ms;

/// A number that only grows.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Counts one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Counts some.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// What was counted so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Clone, Default)]
pub struct Gauge(Arc<AtomicI64>);

impl Gauge {
    /// Now it is this.
    pub fn set(&self, now: i64) {
        self.0.store(now, Relaxed);
    }

    /// What it is.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }

    /// A part of it, 0 so far.
    pub fn part(&self) -> Part {
        Part { gauge: self.clone(), own: 0 }
    }

    /// A part of it that is 1 until it is dropped.
    pub fn one(&self) -> Part {
        let mut part = self.part();
        part.set(1);
        part
    }
}

/// What one of many adds to a gauge; dropping it takes it back.
#[derive(Debug, Default)]
pub struct Part {
    gauge: Gauge,
    own: i64,
}

impl Part {
    /// Now it is this.
    pub fn set(&mut self, now: usize) {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        if now != self.own {
            self.gauge.0.fetch_add(now - self.own, Relaxed);
            self.own = now;
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Where a histogram's buckets end, in the steps it counts in.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Upper bounds, inclusive, rising.
    pub uppers: &'static [u64],
    /// How many steps make one of the metric's unit.
    pub per_unit: u64,
}

impl Bounds {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53 for all that is measured")]
    pub(super) fn in_units(&self, steps: u64) -> f64 {
        steps as f64 / self.per_unit as f64
    }
}

/// How often what size came.
#[derive(Debug, Clone)]
pub struct Histogram(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bounds: Bounds,
    /// One for each bound, and one for what is larger.
    buckets: Box<[Bucket]>,
    sum: AtomicU64,
}

#[derive(Debug, Default)]
struct Bucket {
    count: AtomicU64,
    /// Only looked at for what is traced, and never waited for.
    exemplar: Mutex<Option<Exemplar>>,
}

/// One that was counted, and its trace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exemplar {
    /// Its size, in the metric's unit.
    pub value: f64,
    /// Its trace.
    pub trace: TraceId,
    /// When it came, in milliseconds since the Unix epoch.
    pub at: i64,
}

/// What a histogram holds at a moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Upper bounds, in the metric's unit.
    pub uppers: Vec<f64>,
    /// How many came in each bucket, not cumulated; the last one is for those above all bounds.
    pub counts: Vec<u64>,
    /// The sum of all, in the metric's unit.
    pub sum: f64,
    /// The newest traced one in each bucket.
    pub exemplars: Vec<Option<Exemplar>>,
}

impl Histogram {
    pub(super) fn new(bounds: Bounds) -> Self {
        let buckets = (0..=bounds.uppers.len()).map(|_| Bucket::default()).collect();
        Self(Arc::new(Inner { bounds, buckets, sum: AtomicU64::new(0) }))
    }

    /// Takes a duration; bounds are in nanoseconds. An exemplar is kept if it is traced.
    pub fn observe(&self, duration: Duration, trace: Option<TraceId>) {
        self.take(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), trace);
    }

    /// Takes a number.
    pub fn observe_size(&self, size: usize) {
        self.take(u64::try_from(size).unwrap_or(u64::MAX), None);
    }

    fn take(&self, steps: u64, trace: Option<TraceId>) {
        let Inner { bounds, buckets, sum } = &*self.0;
        let index = bounds.uppers.iter().position(|upper| steps <= *upper);
        let Some(bucket) = buckets.get(index.unwrap_or(bounds.uppers.len())) else { return };
        bucket.count.fetch_add(1, Relaxed);
        sum.fetch_add(steps, Relaxed);
        if let Some(trace) = trace
            && let Ok(mut exemplar) = bucket.exemplar.try_lock()
        {
            *exemplar = Some(Exemplar { value: bounds.in_units(steps), trace, at: now_ms() });
        }
    }

    /// What it holds now.
    pub fn read(&self) -> Reading {
        let Inner { bounds, buckets, sum } = &*self.0;
        let exemplar = |bucket: &Bucket| {
            // It is replaced as a whole, whoever panicked while holding the lock.
            *bucket.exemplar.lock().unwrap_or_else(PoisonError::into_inner)
        };
        Reading {
            uppers: bounds.uppers.iter().map(|upper| bounds.in_units(*upper)).collect(),
            counts: buckets.iter().map(|bucket| bucket.count.load(Relaxed)).collect(),
            sum: bounds.in_units(sum.load(Relaxed)),
            exemplars: buckets.iter().map(exemplar).collect(),
        }
    }
}
