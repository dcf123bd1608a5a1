//! Reads of a log by one device.

use std::time::Duration;

use futures::TryStreamExt;
use herald_proto::{EventId, subject};
use tokio::{
    sync::SemaphorePermit,
    time::{Instant, sleep},
};

use super::{DirectGet, EventLog, Found, MAX_BYTES, Stored};
use crate::error::Error;

/// How many events are no longer few, and are read at once: most devices have missed fewer.
const FEW: usize = 16;
/// How many messages of a stream may come after what is read at once: they lie in a block or two.
const NEAR: u64 = 1 << 14;
/// How long the broker takes for an event that it has in memory, at most, and how long it is left alone for one that it has
/// not, at most.
const MOMENT: Duration = Duration::from_millis(3);
const LONGEST: Duration = Duration::from_millis(50);

/// A user's log that is read.
#[derive(Clone, Copy)]
pub(super) struct Log<'a> {
    pub(super) stream: u16,
    pub(super) subject: &'a str,
    pub(super) after: EventId,
    pub(super) limit: usize,
}

impl EventLog {
    /// Reads a user's events alone, in `place`.
    ///
    /// While the broker answers, it appends nothing to the stream, and it reads a block of it from disk for each event that
    /// lies in another one: some ten milliseconds. For a batch it does that for all of them, and once more to count what is
    /// pending. So few events are read one by one, unless the read `goes_on`, and so is what lies far back: with rests
    /// between, and by one device at a time, or all who chat would wait for those who come back.
    pub(super) async fn read(
        &self,
        log: Log<'_>,
        goes_on: bool,
        place: SemaphorePermit<'_>,
        gone: impl Future<Output = ()>,
    ) -> Result<Found, Error> {
        let extent = self.recent_extent(log.stream).await?;
        if extent.last.saturating_sub(log.after.0) > NEAR {
            // Those who have little to read need not wait for it.
            drop(place);
            return tokio::select! {
                found = self.read_far(log) => found,
                () = gone => Err(Error::Silent("read a log for one that is gone")),
            };
        }
        if !goes_on && let Some(found) = self.read_few(log).await? {
            return Ok(found);
        }
        self.read_many(log).await
    }

    /// The next event of a user from `sequence` on.
    async fn next(&self, log: Log<'_>, sequence: u64) -> Result<Option<Stored>, Error> {
        let (seq, next_by_subj) = (Some(sequence.max(1)), Some(log.subject));
        let request = DirectGet { seq, next_by_subj, ..DirectGet::default() };
        Ok(self.reads.get(&subject::events(log.stream), &request).await?.pop())
    }

    /// Reads a user's next events one by one, at most so many; returns too whether there are more, as far as is known. Where
    /// the broker has to read from disk, it is left alone for as long as that took.
    async fn one_by_one(&self, log: Log<'_>, most: usize) -> Result<(Vec<Stored>, bool), Error> {
        let (mut events, mut last, mut bytes) = (Vec::new(), log.after.0, 0);
        while events.len() < most && bytes < MAX_BYTES {
            let asked_at = Instant::now();
            let Some(event) = self.next(log, last + 1).await? else { return Ok((events, false)) };
            let took = asked_at.elapsed();
            (last, bytes) = (event.sequence, bytes + event.payload.len());
            events.push(event);
            if took > MOMENT {
                sleep(took.min(LONGEST)).await;
            }
        }
        Ok((events, true))
    }

    /// Reads all of a user's events if they are few and small: `None` if they are not.
    async fn read_few(&self, log: Log<'_>) -> Result<Option<Found>, Error> {
        let (events, more) = self.one_by_one(log, FEW.min(log.limit)).await?;
        if more {
            return Ok(None);
        }
        let is_there = self.is_there(log).await?;
        let later = events.len() as u64;
        Ok(Some(Found { events, is_there, later, more }))
    }

    /// Whether the event that is read from is there. Asked for last: its presence proves that nothing after it had been
    /// dropped when the others were read.
    async fn is_there(&self, log: Log<'_>) -> Result<bool, Error> {
        let own = self.next(log, log.after.0).await?;
        Ok(own.is_some_and(|own| own.sequence == log.after.0))
    }

    /// Reads the next events of a user that lie far back.
    async fn read_far(&self, log: Log<'_>) -> Result<Found, Error> {
        let crowd =
            self.crowds.get(usize::from(log.stream)).ok_or(Error::Unreadable("a stream"))?;
        let _turn = crowd.far.acquire().await.map_err(Error::broker("read a log"))?;
        let (events, more) = self.one_by_one(log, log.limit).await?;
        let is_there = self.is_there(log).await?;
        // Where the one that was read from has been dropped, so have all before it: the others come after it.
        let is_known = is_there || !more;
        let later = if is_known { events.len() as u64 } else { self.count(log).await? };
        Ok(Found { events, is_there, later, more })
    }

    /// How many events a user has. The broker knows it without reading them.
    async fn count(&self, log: Log<'_>) -> Result<u64, Error> {
        let what = "count a user's events";
        let stream = self.jetstream.get_stream_no_info(subject::events(log.stream)).await;
        let stream = stream.map_err(Error::broker(what))?;
        let counts = stream.info_with_subjects(log.subject).await.map_err(Error::broker(what))?;
        let counts: Vec<(String, usize)> =
            counts.try_collect().await.map_err(Error::broker(what))?;
        Ok(counts.into_iter().map(|(_, count)| count as u64).sum())
    }

    /// Reads the next events of a user at once.
    async fn read_many(&self, log: Log<'_>) -> Result<Found, Error> {
        let Log { stream, subject, after, limit } = log;
        // From the event itself on: its presence proves that nothing after it was dropped.
        let from = |sequence: u64| DirectGet {
            seq: Some(sequence.max(1)),
            next_by_subj: Some(subject),
            batch: Some(limit + 2),
            max_bytes: Some(MAX_BYTES),
            ..DirectGet::default()
        };
        let name = subject::events(stream);
        let mut events = self.reads.get(&name, &from(after.0)).await?;
        let is_there = events.first().is_some_and(|first| first.sequence == after.0);
        if is_there {
            let own = events.remove(0);
            if events.is_empty() && own.pending > 0 {
                // As large as an answer may be.
                events = self.reads.get(&name, &from(after.0 + 1)).await?;
            }
        }
        // The answer ends where its bytes do, if not before.
        let pending = events.last().map_or(0, |last| last.pending);
        let later = events.len() as u64 + pending;
        let more = events.len() > limit || pending > 0;
        events.truncate(limit);
        Ok(Found { events, is_there, later, more })
    }
}
