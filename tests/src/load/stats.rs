//! What is measured: how many, how fast, and which errors. Time is passed in.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::slowdown::{Slowdowns, Steady};

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

/// The counts of a run, and what was measured in its windows.
#[derive(Debug, Default)]
pub struct Stats {
    slowdowns: Slowdowns,
    windows: Vec<Window>,
    /// Messages sent in all.
    pub sent: u64,
    /// Messages completed in all.
    pub completed: u64,
    /// Error responses in all, by code.
    pub errors: BTreeMap<String, Errors>,
    /// Why sessions ended early.
    pub endings: BTreeMap<String, u64>,
}

/// What was measured between two times. Latencies are those of the messages sent within the window, however late they
/// end; completions and deliveries are those that fall into it.
#[derive(Debug)]
pub struct Window {
    from: Instant,
    to: Option<Instant>,
    lag: Histogram<u32>,
    response: Histogram<u32>,
    event: Histogram<u32>,
    receipt: Histogram<u32>,
    steady: Steady,
    /// Messages sent.
    pub sent: u64,
    /// Messages completed.
    pub completed: u64,
    /// `new` events that came to a device.
    pub delivered: u64,
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

impl Window {
    fn new(from: Instant, slowdowns: Slowdowns) -> anyhow::Result<Self> {
        let longest = u64::try_from(LONGEST.as_micros())?;
        let histogram = Histogram::new_with_bounds(1, longest, 3)?;
        Ok(Self {
            from,
            to: None,
            lag: histogram.clone(),
            response: histogram.clone(),
            event: histogram.clone(),
            receipt: histogram.clone(),
            steady: Steady::new(slowdowns, histogram),
            sent: 0,
            completed: 0,
            delivered: 0,
        })
    }

    fn holds(&self, at: Instant) -> bool {
        self.from <= at && self.to.is_none_or(|to| at < to)
    }

    /// How long it was; nothing as long as it has not ended.
    pub fn length(&self) -> Duration {
        self.to.map_or(Duration::ZERO, |to| to - self.from)
    }

    /// The latencies of a kind.
    pub fn latency(&self, span: Span) -> Latency {
        let histogram = match span {
            Span::Lag => &self.lag,
            Span::Response => &self.response,
            Span::Event => &self.event,
            Span::Receipt => &self.receipt,
        };
        Latency::of(histogram)
    }

    /// The latencies to the recipient's event of those messages that had nothing to do with a time in which the machine
    /// was slow.
    pub fn steady(&self) -> Latency {
        self.steady.latency()
    }
}

impl Latency {
    /// The percentiles of a histogram of microseconds.
    pub fn of(histogram: &Histogram<u32>) -> Self {
        Self {
            count: histogram.len(),
            p50_us: histogram.value_at_quantile(0.5),
            p95_us: histogram.value_at_quantile(0.95),
            p99_us: histogram.value_at_quantile(0.99),
            max_us: histogram.max(),
        }
    }

    /// The percentiles of some times.
    ///
    /// # Errors
    /// Never: the histogram's bounds are fixed and valid.
    pub fn of_all(times: impl IntoIterator<Item = Duration>) -> anyhow::Result<Self> {
        let mut histogram =
            Histogram::<u32>::new_with_bounds(1, u64::try_from(LONGEST.as_micros())?, 3)?;
        times.into_iter().for_each(|time| histogram.saturating_record(micros(time)));
        Ok(Self::of(&histogram))
    }
}

impl Stats {
    /// Nothing yet, on such a machine.
    pub fn new(slowdowns: Slowdowns) -> Self {
        Self { slowdowns, ..Self::default() }
    }

    /// A window begins, and ends the one before.
    ///
    /// # Errors
    /// Never: the histograms' bounds are fixed and valid.
    pub fn begin(&mut self, now: Instant) -> anyhow::Result<()> {
        self.end(now);
        self.windows.push(Window::new(now, self.slowdowns.clone())?);
        Ok(())
    }

    /// The window ends, if one is open.
    pub fn end(&mut self, now: Instant) {
        if let Some(window) = self.windows.last_mut() {
            window.to.get_or_insert(now);
        }
    }

    /// The windows, oldest first.
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    fn window(&mut self, at: Instant) -> Option<&mut Window> {
        self.windows.iter_mut().rev().find(|window| window.holds(at))
    }

    /// A message that should have been sent at `due` is sent.
    pub fn sent(&mut self, due: Instant, now: Instant) {
        self.sent += 1;
        if let Some(window) = self.window(due) {
            window.sent += 1;
            self.record(Span::Lag, due, now);
        }
    }

    /// Something that began with the sending of a message at `since` has ended.
    pub fn record(&mut self, span: Span, since: Instant, now: Instant) {
        let Some(window) = self.window(since) else { return };
        let histogram = match span {
            Span::Lag => &mut window.lag,
            Span::Response => &mut window.response,
            Span::Event => &mut window.event,
            Span::Receipt => &mut window.receipt,
        };
        histogram.saturating_record(micros(now.saturating_duration_since(since)));
        if span == Span::Event {
            window.steady.record(since, now);
        }
    }

    /// Messages have become complete.
    pub fn complete(&mut self, messages: u64, now: Instant) {
        self.completed += messages;
        if let Some(window) = self.window(now) {
            window.completed += messages;
        }
    }

    /// A message's event has come to one of its recipient's devices.
    pub fn delivered(&mut self, now: Instant) {
        if let Some(window) = self.window(now) {
            window.delivered += 1;
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
}

/// In whole microseconds.
pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_those_of_messages_sent_in_the_window_and_completions_those_that_fall_into_it()
    {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut stats = Stats::default();
        stats.sent(at(0), at(0));
        stats.begin(at(1)).unwrap();
        stats.record(Span::Response, at(0), at(2));
        stats.sent(at(2), at(3));
        stats.complete(4, at(2));
        stats.delivered(at(2));
        stats.end(at(5));
        stats.record(Span::Response, at(4), at(90));
        stats.record(Span::Response, at(5), at(6));
        stats.complete(2, at(5));
        stats.delivered(at(5));
        let [window] = stats.windows() else { panic!("one window") };
        assert_eq!((stats.sent, window.sent), (2, 1));
        assert_eq!((stats.completed, window.completed), (6, 4));
        assert_eq!(window.delivered, 1);
        assert_eq!(window.length(), Duration::from_secs(4));
        let response = window.latency(Span::Response);
        assert_eq!(response.count, 1, "only the one that was sent within the window");
        assert!((85_900_000..86_100_000).contains(&response.p50_us), "however late it ended");
        assert!((990_000..1_010_000).contains(&window.latency(Span::Lag).max_us));
    }

    #[test]
    fn a_message_counts_in_the_window_that_it_was_sent_in_though_it_ends_in_the_next() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut stats = Stats::default();
        stats.begin(at(0)).unwrap();
        stats.begin(at(10)).unwrap();
        stats.record(Span::Event, at(9), at(12));
        stats.record(Span::Event, at(10), at(11));
        stats.end(at(20));
        let max = |window: &Window| window.latency(Span::Event).max_us / 100_000;
        assert_eq!(stats.windows().iter().map(max).collect::<Vec<_>>(), [30, 10]);
    }

    #[test]
    fn what_takes_for_ever_is_not_left_out() {
        let start = Instant::now();
        let mut stats = Stats::default();
        stats.begin(start).unwrap();
        stats.record(Span::Event, start, start + Duration::from_secs(1000));
        let latency = stats.windows()[0].latency(Span::Event);
        assert_eq!(latency.count, 1);
        assert!(latency.max_us >= 119_000_000);
    }
}
