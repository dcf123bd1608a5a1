//! The newest part of a stream, kept in memory while a crowd comes back: what one of them needs, the next one needs too.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::Stored;

/// Every event of a stream from one sequence on up to another.
#[derive(Default)]
pub(super) struct Tail {
    /// Oldest first.
    events: VecDeque<Stored>,
    /// The sequences of each subject's events, oldest first.
    by_subject: HashMap<Arc<str>, VecDeque<u64>>,
    /// The first sequence that is kept.
    from: u64,
    /// The first sequence that was not read yet; 0 if nothing is kept.
    next: u64,
    bytes: usize,
}

/// The most that is kept, in bytes. While someone further behind is read for, and while what was kept is given back, there
/// can be as much again of each.
const LIMIT: usize = 64 << 20;
/// About what an event takes besides its payload.
const OVERHEAD: usize = 160;

impl Tail {
    /// The first sequence that is kept, if anything is.
    pub(super) fn from(&self) -> Option<u64> {
        (self.next > 0).then_some(self.from)
    }

    /// The first sequence that has to be read yet.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Begins anew at a sequence.
    pub(super) fn restart(&mut self, from: u64) {
        *self = Self { from, next: from, ..Self::default() };
    }

    /// Whether much more can be kept.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < LIMIT / 2
    }

    /// Forgets what the stream does not hold any more: all before `first`; everything, if it ends before what was read.
    pub(super) fn fit(&mut self, first: u64, last: u64) {
        if self.next > last + 1 {
            *self = Self::default();
        }
        while self.events.front().is_some_and(|oldest| oldest.sequence < first) {
            self.drop_oldest();
        }
    }

    /// Adds what was read next: everything before `next`.
    pub(super) fn append(&mut self, events: Vec<Stored>, next: u64) {
        for event in events {
            let subject = self.intern(&event);
            self.bytes += size(&event);
            self.by_subject.entry(subject.clone()).or_default().push_back(event.sequence);
            self.events.push_back(Stored { subject, ..event });
        }
        self.next = self.next.max(next);
        while self.bytes > LIMIT {
            self.drop_oldest();
        }
    }

    /// Takes over what lies directly before it, newest first, as far as there is room, at most so many events. Returns
    /// whether to go on. After it `older` is good for nothing else.
    pub(super) fn prepend(&mut self, older: &mut Self, at_most: usize) -> bool {
        for _ in 0..at_most {
            let Some(event) = older.events.pop_back() else {
                self.from = older.from;
                return false;
            };
            if self.bytes + size(&event) > LIMIT {
                return false;
            }
            let subject = self.intern(&event);
            self.from = event.sequence;
            self.bytes += size(&event);
            self.by_subject.entry(subject.clone()).or_default().push_front(event.sequence);
            self.events.push_front(Stored { subject, ..event });
        }
        true
    }

    /// Gives back so many of the oldest events; returns whether any are left. After it nothing can be read from it.
    pub(super) fn shrink(&mut self, count: usize) -> bool {
        (0..count).for_each(|_| self.drop_oldest());
        !self.events.is_empty()
    }

    /// A subject's events, from the first one at or after `from` on.
    pub(super) fn of(&self, subject: &str, from: u64) -> impl Iterator<Item = &Stored> {
        let sequences = self.by_subject.get(subject).into_iter().flatten();
        sequences.filter(move |sequence| **sequence >= from).filter_map(|sequence| {
            let place = self.events.binary_search_by_key(sequence, |event| event.sequence);
            self.events.get(place.ok()?)
        })
    }

    /// One text for all events of a subject.
    fn intern(&self, event: &Stored) -> Arc<str> {
        let known = self.by_subject.get_key_value(&event.subject);
        known.map_or_else(|| event.subject.clone(), |(subject, _)| subject.clone())
    }

    fn drop_oldest(&mut self) {
        let Some(oldest) = self.events.pop_front() else { return };
        self.bytes -= size(&oldest);
        self.from = oldest.sequence + 1;
        if let Some(sequences) = self.by_subject.get_mut(&oldest.subject) {
            sequences.pop_front();
            if sequences.is_empty() {
                self.by_subject.remove(&oldest.subject);
            }
        }
    }
}

fn size(event: &Stored) -> usize {
    OVERHEAD + event.payload.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Origin;

    fn event(subject: &str, sequence: u64, size: usize) -> Stored {
        Stored {
            subject: subject.into(),
            sequence,
            traceparent: None,
            origin: Origin::default(),
            is_removed: false,
            pending: 0,
            payload: vec![0; size].into(),
        }
    }

    fn tail(sequences: std::ops::Range<u64>) -> Tail {
        let mut tail = Tail::default();
        tail.restart(sequences.start);
        let subject = |n| if n % 2 == 0 { "even" } else { "odd" };
        let end = sequences.end;
        tail.append(sequences.map(|n| event(subject(n), n, 1)).collect(), end);
        tail
    }

    fn of(tail: &Tail, subject: &str, from: u64) -> Vec<u64> {
        tail.of(subject, from).map(|event| event.sequence).collect()
    }

    #[test]
    fn a_subjects_events_are_found_in_order_from_a_place_on() {
        let mut tail = tail(10..16);
        assert_eq!(of(&tail, "even", 0), [10, 12, 14]);
        assert_eq!(of(&tail, "even", 12), [12, 14]);
        assert_eq!(of(&tail, "nobody", 0), [0; 0]);
        tail.append(vec![event("even", 17, 1)], 19);
        assert_eq!(of(&tail, "even", 11), [12, 14, 17]);
        assert_eq!((tail.from(), tail.next()), (Some(10), 19));
    }

    #[test]
    fn what_the_stream_has_dropped_is_forgotten() {
        let mut tail = tail(10..16);
        tail.fit(13, 15);
        assert_eq!((of(&tail, "even", 0), of(&tail, "odd", 0)), (vec![14], vec![13, 15]));
        assert_eq!(tail.from(), Some(13));
    }

    #[test]
    fn a_stream_that_ends_before_what_was_read_counts_anew() {
        let mut tail = tail(10..16);
        tail.fit(1, 14);
        assert_eq!((tail.from(), of(&tail, "even", 0)), (None, vec![]));
    }

    #[test]
    fn what_lies_before_it_is_taken_over_step_by_step() {
        let (mut newer, mut older) = (tail(14..16), tail(10..14));
        assert!(newer.prepend(&mut older, 3));
        assert_eq!((newer.from(), of(&newer, "even", 0)), (Some(11), vec![12, 14]));
        assert!(!newer.prepend(&mut older, 3));
        assert_eq!((newer.from(), newer.next()), (Some(10), 16));
        assert_eq!(
            (of(&newer, "even", 0), of(&newer, "odd", 0)),
            (vec![10, 12, 14], vec![11, 13, 15])
        );
        // The first sequences can be nobody's.
        let mut empty = Tail::default();
        empty.restart(7);
        assert!(!newer.prepend(&mut empty, 3));
        assert_eq!(newer.from(), Some(7));
    }

    #[test]
    fn no_more_is_taken_over_than_there_is_room_for() {
        let large = |sequences: std::ops::Range<u64>, size| {
            let mut tail = Tail::default();
            tail.restart(sequences.start);
            let end = sequences.end;
            tail.append(sequences.map(|n| event("large", n, size)).collect(), end);
            tail
        };
        let (mut newer, mut older) = (large(14..15, LIMIT / 2), large(11..14, LIMIT / 4));
        assert!(!newer.prepend(&mut older, 9));
        assert_eq!((newer.from(), of(&newer, "large", 0)), (Some(13), vec![13, 14]));
        assert!(newer.bytes <= LIMIT);
    }

    #[test]
    fn only_the_newest_is_kept_when_there_is_no_room_for_more() {
        let mut tail = tail(10..12);
        tail.append((12..15).map(|n| event("large", n, LIMIT / 3)).collect(), 15);
        assert_eq!((of(&tail, "large", 0), tail.from()), (vec![13, 14], Some(13)));
        assert!(tail.bytes <= LIMIT);
    }
}
