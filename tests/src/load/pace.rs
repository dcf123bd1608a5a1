//! When a sender sends its next message, pure: time is passed in.

use std::time::{Duration, Instant};

/// When to send.
#[derive(Debug, Clone)]
pub enum Pace {
    /// As soon as fewer than that many messages are open, and not before `resume`.
    Closed {
        /// How many may be open.
        in_flight: usize,
        /// Set when the service asked for patience.
        resume: Option<Instant>,
    },
    /// At fixed times, however many are open.
    Open {
        /// The next of them.
        next: Instant,
        /// The time between two.
        interval: Duration,
    },
}

impl Pace {
    /// A closed loop.
    pub fn closed(in_flight: usize) -> Self {
        Self::Closed { in_flight, resume: None }
    }

    /// The share of pair `number` in a rate of so many messages a second over all `pairs`, evenly spread.
    pub fn open(start: Instant, rate: f64, number: u32, pairs: u32) -> Self {
        let interval = Duration::from_secs_f64(f64::from(pairs) / rate);
        let offset = interval.mul_f64(f64::from(number) / f64::from(pairs));
        Self::Open { next: start + offset, interval }
    }

    /// If a message is due, the time that it counts as sent at; to be asked again until there is none.
    pub fn due(&mut self, now: Instant, open: usize) -> Option<Instant> {
        match self {
            Self::Closed { in_flight, resume } => {
                let paused = resume.is_some_and(|at| now < at);
                (!paused && open < *in_flight).then_some(now)
            }
            Self::Open { next, interval } => {
                let at = *next;
                (at <= now).then(|| {
                    *next += *interval;
                    at
                })
            }
        }
    }

    /// When time alone makes a message due.
    pub fn wake(&self, now: Instant) -> Option<Instant> {
        match self {
            Self::Closed { resume, .. } => resume.filter(|at| now < *at),
            Self::Open { next, .. } => Some(*next),
        }
    }

    /// The service asks for patience. An open loop has none.
    pub fn pause(&mut self, until: Instant) {
        if let Self::Closed { resume, .. } = self {
            *resume = Some(until.max(resume.unwrap_or(until)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_closed_loop_keeps_so_many_open_and_waits_when_asked() {
        let now = Instant::now();
        let mut pace = Pace::closed(2);
        assert_eq!(pace.due(now, 1), Some(now));
        assert_eq!(pace.due(now, 2), None);
        pace.pause(now + 5 * MS);
        pace.pause(now + 3 * MS);
        assert_eq!((pace.due(now + 4 * MS, 0), pace.wake(now)), (None, Some(now + 5 * MS)));
        assert_eq!(pace.due(now + 5 * MS, 0), Some(now + 5 * MS));
        assert_eq!(pace.wake(now + 5 * MS), None);
    }

    #[test]
    fn an_open_loop_keeps_its_times_even_when_it_is_late() {
        let start = Instant::now();
        let mut pace = Pace::open(start, 100.0, 1, 2);
        assert_eq!(pace.due(start, 0), None);
        assert_eq!(pace.wake(start), Some(start + 10 * MS));
        let late = start + 55 * MS;
        let sent: Vec<Duration> =
            std::iter::from_fn(|| pace.due(late, 1000)).map(|at| at - start).collect();
        assert_eq!(sent, [10 * MS, 30 * MS, 50 * MS]);
    }

    #[test]
    fn the_pairs_of_an_open_loop_share_the_rate() {
        let start = Instant::now();
        let end = start + Duration::from_secs(2);
        let sent: usize = (0..7)
            .map(|number| {
                let mut pace = Pace::open(start, 350.0, number, 7);
                std::iter::from_fn(|| pace.due(end, 0).filter(|at| *at < end)).count()
            })
            .sum();
        assert_eq!(sent, 700);
    }
}
