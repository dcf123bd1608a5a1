//! Reads of logs by a crowd.
//!
//! The broker finds a user's next event by looking at one message after the other, within a block of some ten thousand.
//! For one reader that is nothing. For N devices that come back at once, and whose events lie among each other's, it is
//! N times N. So when more reads are asked for than may be under way, those that wait are served together: the stream
//! is read once, whoever its events are for, and everyone takes their own.

use std::{
    cmp::Reverse,
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use herald_proto::{EventId, subject};
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

use super::{DirectGet, EventLog, Found, MAX_BYTES, MAX_EVENTS, Stored};
use crate::error::Error;

/// Who reads one stream.
pub(super) struct Crowd {
    /// One for each read that may be under way.
    places: Semaphore,
    waiting: Mutex<Vec<Reader>>,
}

/// Someone who waits.
struct Reader {
    subject: String,
    after: EventId,
    limit: usize,
    found: Found,
    bytes: usize,
    answer: oneshot::Sender<Found>,
}

/// What waiting came to.
pub(super) enum Turn<'a> {
    /// Others have read for this one too.
    Served(Found),
    /// It may read by itself.
    Alone(SemaphorePermit<'a>),
}

/// Reads of one stream under way at the same time.
const AT_ONCE: usize = 8;
/// The fewest readers that are served together.
const FEWEST: usize = 8;
/// The most: each may hold [`SHARE`].
const MOST: usize = 2048;
/// About how much one reader is given at once, in bytes. Who has more to read asks again.
const SHARE: usize = 16 * 1024;
/// How many messages may be read for each reader. Whoever is further behind reads alone.
const REACH: u64 = 64;

impl Crowd {
    pub(super) fn new() -> Self {
        Self { places: Semaphore::new(AT_ONCE), waiting: Mutex::default() }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Reader>> {
        // Every change is whole, whoever panicked while holding the lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes those who wait and whose events lie close enough to the stream's end, `last`, to be read together.
    fn take(&self, last: u64) -> Vec<Reader> {
        let mut waiting = self.waiting();
        waiting.retain(|reader| !reader.answer.is_closed());
        waiting.sort_unstable_by_key(|reader| Reverse(reader.after));
        let reach = |count: usize| REACH * count as u64;
        let close = (1..).zip(waiting.iter().take(MOST));
        let count = close
            .filter(|(count, reader)| last.saturating_sub(reader.after.0) <= reach(*count))
            .map(|(count, _)| count)
            .last()
            .filter(|count| *count >= FEWEST);
        waiting.drain(..count.unwrap_or(0)).collect()
    }
}

impl EventLog {
    /// Waits for a turn to read a user's events after `after`; whoever gets one when a crowd waits reads for it first.
    pub(super) async fn turn(
        &self,
        stream: u16,
        subject: &str,
        after: EventId,
        limit: usize,
    ) -> Result<Turn<'_>, Error> {
        let crowd = self.crowds.get(usize::from(stream)).ok_or(Error::Unreadable("a stream"))?;
        if let Ok(place) = crowd.places.try_acquire() {
            return Ok(Turn::Alone(place));
        }
        let (answer, mut answered) = oneshot::channel();
        let (found, subject) = (Found::default(), subject.to_owned());
        crowd.waiting().push(Reader { subject, after, limit, found, bytes: 0, answer });
        tokio::select! {
            biased;
            found = &mut answered => found.map(Turn::Served).map_err(|_| Error::Silent("read a log")),
            place = crowd.places.acquire() => {
                let place = place.map_err(Error::broker("read a log"))?;
                let last = self.extent(stream).await?.last;
                let readers = crowd.take(last);
                if !readers.is_empty() {
                    self.read_together(stream, readers).await?;
                }
                Ok(answered.try_recv().map_or_else(|_| Turn::Alone(place), Turn::Served))
            }
        }
    }

    /// Reads the stream from the place of the reader that is furthest behind, and gives each its events.
    async fn read_together(&self, stream: u16, readers: Vec<Reader>) -> Result<(), Error> {
        let first = readers.iter().map(|reader| reader.after.0).min().unwrap_or(0);
        let mut by_subject: HashMap<String, Vec<Reader>> = HashMap::new();
        for reader in readers {
            by_subject.entry(reader.subject.clone()).or_default().push(reader);
        }
        let (name, mut next) = (subject::events(stream), first.max(1));
        loop {
            let request = DirectGet {
                seq: Some(next),
                batch: Some(MAX_EVENTS),
                max_bytes: Some(MAX_BYTES),
                ..DirectGet::default()
            };
            let found = self.get(&name, &request).await?;
            let Some(last) = found.last() else { break };
            next = last.sequence + 1;
            let is_end = last.pending == 0;
            for event in &found {
                let readers = by_subject.get_mut(&event.subject).into_iter().flatten();
                readers.for_each(|reader| reader.take(event));
            }
            if is_end {
                break;
            }
        }
        for reader in by_subject.into_values().flatten() {
            // One that is gone needs no answer.
            let _ = reader.answer.send(reader.found);
        }
        Ok(())
    }
}

impl Reader {
    fn take(&mut self, event: &Stored) {
        if event.sequence == self.after.0 {
            self.found.is_there = true;
        }
        if event.sequence <= self.after.0 {
            return;
        }
        self.found.later += 1;
        if self.found.events.len() >= self.limit || self.bytes >= SHARE {
            self.found.more = true;
            return;
        }
        self.bytes += event.payload.len();
        // Copied: what was read is everybody's, and not to be kept for as long as one of them takes.
        let payload = Bytes::copy_from_slice(&event.payload);
        self.found.events.push(Stored { payload, ..event.clone() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(after: u64, limit: usize) -> (Reader, oneshot::Receiver<Found>) {
        let (answer, answered) = oneshot::channel();
        let (subject, after) = ("events.0.a".to_owned(), EventId(after));
        (Reader { subject, after, limit, found: Found::default(), bytes: 0, answer }, answered)
    }

    fn event(sequence: u64, size: usize) -> Stored {
        Stored {
            subject: "events.0.a".to_owned(),
            sequence,
            traceparent: None,
            is_removed: false,
            pending: 0,
            payload: vec![0; size].into(),
        }
    }

    fn crowd(places: &[u64]) -> (Crowd, Vec<oneshot::Receiver<Found>>) {
        let crowd = Crowd::new();
        let answered = places.iter().map(|after| {
            let (reader, answered) = reader(*after, 10);
            crowd.waiting().push(reader);
            answered
        });
        let answered = answered.collect();
        (crowd, answered)
    }

    #[test]
    fn a_reader_takes_what_comes_after_its_place_and_learns_whether_that_is_there() {
        let (mut there, _a) = reader(5, 2);
        let (mut not_there, _b) = reader(4, 10);
        for sequence in [3, 5, 7, 8, 9] {
            there.take(&event(sequence, 1));
            not_there.take(&event(sequence, SHARE / 2));
        }
        let ids = |reader: &Reader| {
            reader.found.events.iter().map(|event| event.sequence).collect::<Vec<_>>()
        };
        assert_eq!((ids(&there), there.found.is_there), (vec![7, 8], true));
        assert_eq!((there.found.more, there.found.later), (true, 3));
        assert_eq!((ids(&not_there), not_there.found.is_there), (vec![5, 7], false));
        assert_eq!((not_there.found.more, not_there.found.later), (true, 4));
    }

    #[test]
    fn few_readers_are_not_served_together() {
        let (crowd, _answered) = crowd(&[100; FEWEST - 1]);
        assert!(crowd.take(100).is_empty());
        assert_eq!(crowd.waiting().len(), FEWEST - 1);
    }

    #[test]
    fn who_is_far_behind_does_not_make_the_others_read_all_that() {
        let mut places = vec![1_000_000; 20];
        places.push(7);
        let (crowd, _answered) = crowd(&places);
        assert_eq!(crowd.take(1_000_100).len(), 20);
        assert_eq!(crowd.waiting().len(), 1);
    }

    #[test]
    fn who_is_gone_is_not_read_for() {
        let (crowd, answered) = crowd(&[100; 20]);
        drop(answered);
        assert!(crowd.take(100).is_empty());
        assert!(crowd.waiting().is_empty());
    }

    #[test]
    fn no_crowd_is_larger_than_what_memory_is_meant_for() {
        let (crowd, _answered) = crowd(&[100; MOST + 5]);
        assert_eq!(crowd.take(100).len(), MOST);
        assert_eq!(crowd.waiting().len(), 5);
    }
}
