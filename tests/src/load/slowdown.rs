//! When the machine did not keep its pace, and what messages took in all other times. A virtual machine shares its
//! processors with others, and can lose most of its speed for tens of milliseconds at a time. None of its own counters
//! needs to tell, but every percentile does. Time is passed in.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use super::stats::{Latency, micros};

/// How long after a slow time messages still wait for what has piled up in it.
const AFTERMATH: Duration = Duration::from_millis(30);
/// How long after it was sent a slow time still has to do with a message. The same for all of them, however long each one
/// took: those that took long would else be left out for that.
const AHEAD: Duration = Duration::from_millis(30);
/// How far apart the slow times may be that are taken for one.
const GAP: Duration = Duration::from_millis(15);
/// How soon after a slow time all that is to be known of it is known: a probe may have to wait for its processor.
const KNOWN: Duration = Duration::from_millis(200);
/// How many slow times are remembered: those of ten minutes on a bad machine.
const REMEMBERED: usize = 1024;

/// When a processor was slow. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Slowdowns(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    pieces: u32,
    slow_pieces: u32,
    /// In the order of their ends.
    slow: VecDeque<(Instant, Instant)>,
}

impl Slowdowns {
    /// A piece of work was done at the machine's pace.
    pub fn kept_pace(&self) {
        self.seen().pieces += 1;
    }

    /// A piece of work took far too long between two times.
    pub fn slow(&self, from: Instant, to: Instant) {
        let mut seen = self.seen();
        seen.pieces += 1;
        seen.slow_pieces += 1;
        if let Some(last) = seen.slow.back_mut().filter(|last| from <= last.1 + GAP) {
            last.0 = last.0.min(from);
            last.1 = last.1.max(to);
            return;
        }
        if seen.slow.len() == REMEMBERED {
            seen.slow.pop_front();
        }
        seen.slow.push_back((from, to));
    }

    /// Whether a message that was sent then had to do with a slow time.
    fn touch(&self, sent_at: Instant) -> bool {
        let seen = self.seen();
        let recent = seen.slow.iter().rev().take_while(|(_, to)| sent_at <= *to + AFTERMATH);
        recent.into_iter().any(|(from, _)| *from <= sent_at + AHEAD)
    }

    /// What has to be known of figures that were measured meanwhile.
    pub fn note(&self) -> Option<String> {
        let seen = self.seen();
        let share = 100.0 * f64::from(seen.slow_pieces) / f64::from(seen.pieces.max(1));
        (share >= 0.5).then(|| {
            format!(
                "each {:.0}th look found a processor at less than a third of its speed (others' work, most likely): see the \
                 percentiles that are said to be of steady times",
                100.0 / share
            )
        })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The latencies of the messages that had nothing to do with a slow time.
#[derive(Debug)]
pub struct Steady {
    slowdowns: Slowdowns,
    /// When those began and ended of which it is not known yet.
    recent: VecDeque<(Instant, Instant)>,
    latencies: Histogram<u32>,
}

impl Steady {
    /// None yet, to be taken down in such a histogram of microseconds.
    pub fn new(slowdowns: Slowdowns, empty: Histogram<u32>) -> Self {
        Self { slowdowns, recent: VecDeque::new(), latencies: empty }
    }

    /// A message was sent at `since` and has come at `now`.
    pub fn record(&mut self, since: Instant, now: Instant) {
        while let Some(message) =
            self.recent.pop_front_if(|(_, ended)| *ended + AHEAD + KNOWN <= now)
        {
            judge(&self.slowdowns, message, &mut self.latencies);
        }
        self.recent.push_back((since, now));
    }

    /// Their latencies.
    pub fn latency(&self) -> Latency {
        let mut latencies = self.latencies.clone();
        self.recent.iter().for_each(|message| judge(&self.slowdowns, *message, &mut latencies));
        Latency::of(&latencies)
    }
}

fn judge(slowdowns: &Slowdowns, message: (Instant, Instant), latencies: &mut Histogram<u32>) {
    let (since, now) = message;
    if !slowdowns.touch(since) {
        latencies.saturating_record(micros(now.saturating_duration_since(since)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(slow: u32, of: u32) -> Option<String> {
        let (slowdowns, now) = (Slowdowns::default(), Instant::now());
        (0..slow).for_each(|_| slowdowns.slow(now, now));
        (slow..of).for_each(|_| slowdowns.kept_pace());
        slowdowns.note()
    }

    #[test]
    fn a_machine_that_is_slow_for_some_of_the_time_is_told_of() {
        assert!(told(5, 100).is_some_and(|note| note.starts_with("each 20th look")));
        assert_eq!(told(0, 100), None);
        assert_eq!(told(1, 1000), None, "that happens");
        assert_eq!(told(0, 0), None);
    }

    fn steady_of(slow: &[(u64, u64)], messages: &[(u64, u64)]) -> Vec<u64> {
        let start = Instant::now();
        let at = |millis: &u64| start + Duration::from_millis(*millis);
        let slowdowns = Slowdowns::default();
        let each = |message: &(u64, u64)| {
            let histogram = Histogram::new_with_bounds(1, 1_000_000, 3).unwrap();
            let mut steady = Steady::new(slowdowns.clone(), histogram);
            steady.record(at(&message.0), at(&message.1));
            steady
        };
        let steady: Vec<_> = messages.iter().map(each).collect();
        // A probe tells of it when it is over.
        slow.iter().for_each(|(from, to)| slowdowns.slow(at(from), at(to)));
        steady.iter().map(|steady| steady.latency().count).collect()
    }

    #[test]
    fn a_message_counts_that_has_nothing_to_do_with_a_slow_time() {
        let messages = [(69, 70), (69, 900), (70, 71), (110, 120), (150, 160), (151, 160)];
        assert_eq!(steady_of(&[(100, 120)], &messages), [1, 1, 0, 0, 0, 1], "however long it took");
        assert_eq!(steady_of(&[], &messages), [1; 6]);
        let among = [(100, 120), (300, 320)];
        let messages = [(99, 301), (200, 210), (340, 400), (351, 352)];
        assert_eq!(steady_of(&among, &messages), [0, 1, 0, 1]);
    }

    #[test]
    fn the_probes_of_two_processors_tell_of_one_slow_time() {
        let messages = [(49, 50), (85, 86), (120, 121), (141, 142), (161, 162)];
        assert_eq!(steady_of(&[(100, 110), (80, 130)], &messages), [1, 0, 0, 0, 1]);
        let (slowdowns, now) = (Slowdowns::default(), Instant::now());
        let (at, later) = (now + GAP, now + GAP * 3);
        for (from, to) in [(now, now), (at, at), (later, later)] {
            slowdowns.slow(from, to);
        }
        assert_eq!(slowdowns.seen().slow, [(now, at), (later, later)]);
    }

    #[test]
    fn what_is_known_of_is_not_kept_and_nor_are_more_slow_times_than_matter() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let slowdowns = Slowdowns::default();
        let histogram = Histogram::new_with_bounds(1, 1_000_000, 3).unwrap();
        let mut steady = Steady::new(slowdowns.clone(), histogram);
        for second in 0..5000 {
            slowdowns.slow(at(second * 1000), at(second * 1000 + 10));
            steady.record(at(second * 1000), at(second * 1000 + 5));
            steady.record(at(second * 1000 + 500), at(second * 1000 + 502));
        }
        assert!(steady.recent.len() <= 2, "{}", steady.recent.len());
        assert_eq!(slowdowns.seen().slow.len(), REMEMBERED);
        let latency = steady.latency();
        assert_eq!((latency.count, latency.max_us), (5000, 2000));
    }
}
