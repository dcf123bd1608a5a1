//! Reads of a log by one device.

use herald_proto::{EventId, subject};

use super::{DirectGet, EventLog, Found, MAX_BYTES};
use crate::error::Error;

/// How many events are no longer few, and are read at once: most devices have missed fewer.
const FEW: usize = 16;

impl EventLog {
    /// Reads a user's events alone: one by one, unless it `goes_on` or they turn out to be many. Before it answers with a
    /// batch, and after it, the broker counts what is pending: it reads blocks of the stream for that, from disk if it has
    /// to, and takes nothing new for the stream meanwhile.
    pub(super) async fn read(
        &self,
        stream: u16,
        subject: &str,
        after: EventId,
        limit: usize,
        goes_on: bool,
    ) -> Result<Found, Error> {
        let few = if goes_on { None } else { self.read_few(stream, subject, after, limit).await? };
        match few {
            Some(found) => Ok(found),
            None => self.read_many(stream, subject, after, limit).await,
        }
    }

    /// Reads all of a user's events after `after` if they are few and small: `None` if they are not.
    async fn read_few(
        &self,
        stream: u16,
        subject: &str,
        after: EventId,
        limit: usize,
    ) -> Result<Option<Found>, Error> {
        let name = subject::events(stream);
        let get = async |sequence: u64| {
            let (seq, next_by_subj) = (Some(sequence.max(1)), Some(subject));
            let request = DirectGet { seq, next_by_subj, ..DirectGet::default() };
            Ok::<_, Error>(self.reads.get(&name, &request).await?.pop())
        };
        let (mut events, mut last, mut bytes) = (Vec::new(), after.0, 0);
        while let Some(event) = get(last + 1).await? {
            (last, bytes) = (event.sequence, bytes + event.payload.len());
            events.push(event);
            if events.len() >= FEW.min(limit) || bytes >= MAX_BYTES {
                return Ok(None);
            }
        }
        // Asked for last: its presence proves that nothing after it had been dropped when the others were read.
        let own = get(after.0).await?;
        let is_there = own.is_some_and(|own| own.sequence == after.0);
        let later = events.len() as u64;
        Ok(Some(Found { events, is_there, later, more: false }))
    }

    /// Reads the next events of a user at once.
    async fn read_many(
        &self,
        stream: u16,
        subject: &str,
        after: EventId,
        limit: usize,
    ) -> Result<Found, Error> {
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
