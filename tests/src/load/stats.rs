//! What is measured: how many, how fast, and which errors. Time is passed in.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use serde::Serialize;

/// Latencies above count as this.
const LONGEST: Duration = Duration::from_secs(120);

/// What takes time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// From when a message should have been sent to when it was.
    Lag,
    /// To the response.
    Response,
    /// To the recipient's event.
    Event,
    /// To the receipt.
    Receipt,
}

/// The counts and latencies of a run. Latencies are those of the messages sent within the measured window, however late
/// they end; completions are those that fall into it.
#[derive(Debug)]
pub struct Stats {
    from: Option<Instant>,
    to: Option<Instant>,
    lag: Histogram<u32>,
    response: Histogram<u32>,
    event: Histogram<u32>,
    receipt: Histogram<u32>,
    /// Messages sent in all.
    pub sent: u64,
    /// Messages completed in all.
    pub completed: u64,
    /// Messages sent within the window.
    pub sent_in_window: u64,
    /// Messages completed within the window.
    pub completed_in_window: u64,
    /// Error responses in all, by code.
    pub errors: BTreeMap<String, Errors>,
    /// Why sessions ended early.
    pub endings: BTreeMap<String, u64>,
}

/// The error responses of a code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Errors {
    /// How many.
    pub count: u64,
    /// What the first of them said.
    pub first: String,
}

/// A distribution of latencies, in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// The median.
    pub p50_us: u64,
    /// The 95th percentile.
    pub p95_us: u64,
    /// The 99th percentile.
    pub p99_us: u64,
    /// The largest.
    pub max_us: u64,
}

impl Stats {
    /// Nothing measured.
    ///
    /// # Errors
    /// Never: the histograms' bounds are fixed and valid.
    pub fn new() -> anyhow::Result<Self> {
        let longest = u64::try_from(LONGEST.as_micros())?;
        let histogram = Histogram::new_with_bounds(1, longest, 3)?;
        Ok(Self {
            from: None,
            to: None,
            lag: histogram.clone(),
            response: histogram.clone(),
            event: histogram.clone(),
            receipt: histogram,
            sent: 0,
            completed: 0,
            sent_in_window: 0,
            completed_in_window: 0,
            errors: BTreeMap::new(),
            endings: BTreeMap::new(),
        })
    }

    /// The window begins.
    pub fn begin(&mut self, now: Instant) {
        self.from = Some(now);
    }

    /// The window ends.
    pub fn end(&mut self, now: Instant) {
        self.to = Some(now);
    }

    /// How long the window was.
    pub fn window(&self) -> Duration {
        self.from.zip(self.to).map_or(Duration::ZERO, |(from, to)| to - from)
    }

    fn in_window(&self, at: Instant) -> bool {
        self.from.is_some_and(|from| from <= at) && self.to.is_none_or(|to| at < to)
    }

    /// A message that should have been sent at `due` is sent.
    pub fn sent(&mut self, due: Instant, now: Instant) {
        self.sent += 1;
        if self.in_window(due) {
            self.sent_in_window += 1;
            self.record(Span::Lag, due, now);
        }
    }

    /// Something that began with the sending of a message at `since` has ended.
    pub fn record(&mut self, span: Span, since: Instant, now: Instant) {
        if !self.in_window(since) {
            return;
        }
        let micros = now.saturating_duration_since(since).as_micros();
        let histogram = match span {
            Span::Lag => &mut self.lag,
            Span::Response => &mut self.response,
            Span::Event => &mut self.event,
            Span::Receipt => &mut self.receipt,
        };
        histogram.saturating_record(u64::try_from(micros).unwrap_or(u64::MAX));
    }

    /// Messages have become complete.
    pub fn complete(&mut self, messages: u64, now: Instant) {
        self.completed += messages;
        if self.in_window(now) {
            self.completed_in_window += messages;
        }
    }

    /// A request was answered with an error.
    pub fn error(&mut self, code: &str, message: &str) {
        if let Some(errors) = self.errors.get_mut(code) {
            errors.count += 1;
        } else {
            let errors = Errors { count: 1, first: message.to_owned() };
            self.errors.insert(code.to_owned(), errors);
        }
    }

    /// A session has ended early.
    pub fn ending(&mut self, why: &str) {
        *self.endings.entry(why.to_owned()).or_default() += 1;
    }

    /// The latencies of a kind.
    pub fn latency(&self, span: Span) -> Latency {
        let histogram = match span {
            Span::Lag => &self.lag,
            Span::Response => &self.response,
            Span::Event => &self.event,
            Span::Receipt => &self.receipt,
        };
        Latency {
            count: histogram.len(),
            p50_us: histogram.value_at_quantile(0.5),
            p95_us: histogram.value_at_quantile(0.95),
            p99_us: histogram.value_at_quantile(0.99),
            max_us: histogram.max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_those_of_messages_sent_in_the_window_and_completions_those_that_fall_into_it()
    {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut stats = Stats::new().unwrap();
        stats.sent(at(0), at(0));
        stats.begin(at(1));
        stats.record(Span::Response, at(0), at(2));
        stats.sent(at(2), at(3));
        stats.complete(4, at(2));
        stats.end(at(5));
        stats.record(Span::Response, at(4), at(90));
        stats.record(Span::Response, at(5), at(6));
        stats.complete(2, at(5));
        assert_eq!((stats.sent, stats.sent_in_window), (2, 1));
        assert_eq!((stats.completed, stats.completed_in_window), (6, 4));
        assert_eq!(stats.window(), Duration::from_secs(4));
        let response = stats.latency(Span::Response);
        assert_eq!(response.count, 1, "only the one that was sent within the window");
        assert!((85_900_000..86_100_000).contains(&response.p50_us), "however late it ended");
        assert!((990_000..1_010_000).contains(&stats.latency(Span::Lag).max_us));
    }

    #[test]
    fn what_takes_for_ever_is_not_left_out() {
        let start = Instant::now();
        let mut stats = Stats::new().unwrap();
        stats.begin(start);
        stats.record(Span::Event, start, start + Duration::from_secs(1000));
        assert_eq!(stats.latency(Span::Event).count, 1);
        assert!(stats.latency(Span::Event).max_us >= 119_000_000);
    }
}
