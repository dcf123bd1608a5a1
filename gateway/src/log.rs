//! Users' event logs and devices' cursors, as the broker keeps them.
//!
//! A device's log is read by direct gets (ADR-31), a crowd's by a consumer. Any replica may answer: a read can lag
//! behind a live event, so a session subscribes first, reads then, and merges by id.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::jetstream::{Context, kv};
use herald_proto::{DeviceId, EventId, UserId, metrics::Gauge, subject, topology::Topology};
use tokio::sync::Mutex;

use crate::{error::Error, gather::Gather, inbox::Fetched};

mod alone;
pub mod bucket;
mod crowd;
mod direct;
mod scan;
mod tail;

use alone::Log;
pub use bucket::BucketKey;
use crowd::{Crowd, Turn};
pub use direct::Reads;
use direct::{DirectGet, Stored};

/// The logs. Clones share everything.
#[derive(Clone)]
pub struct EventLog {
    reads: Arc<Reads>,
    jetstream: Context,
    cursors: Arc<kv::Store>,
    topology: Topology,
    /// For each event stream a sequence that it has reached: where a device without any event begins.
    reached: Arc<[AtomicU64]>,
    /// Who asks for each stream's last message of a user.
    ends: Arc<[Last]>,
    /// Who asks for cursors.
    stored: Arc<Last>,
    /// What each stream's extent was when it was asked for last.
    extents: Arc<[Mutex<Option<Extent>>]>,
    /// Who reads each stream.
    crowds: Arc<[Crowd]>,
    /// How many are about to read.
    opening: Gauge,
    /// The bucket that says which logs are void.
    jumps: Arc<kv::Store>,
}

/// How far a stream reaches.
#[derive(Clone, Copy)]
struct Extent {
    asked_at: Instant,
    first: u64,
    last: u64,
    /// The most events that a user can have in it, if that is bounded.
    per_user: Option<u64>,
}

/// What a read has found.
#[derive(Default)]
struct Found {
    /// Events after the one read from, oldest first.
    events: Vec<Stored>,
    /// Whether the event read from is there.
    is_there: bool,
    /// How many events there are after it, given here or not.
    later: u64,
    /// Whether some are not given here.
    more: bool,
}

/// Look-ups of subjects' last messages.
type Last = Gather<String, Option<Stored>>;

/// Where a device's log goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Up to here the device has acked everything.
    pub cursor: EventId,
    /// If the device was never here before, the user's last event, [`EventId::NONE`] if there is none: nothing waits for
    /// it, what comes next comes live.
    pub begins_after: Option<EventId>,
}

impl Place {
    /// The place of a device that was here before, and has acked everything up to `cursor`.
    pub fn after(cursor: EventId) -> Self {
        Self { cursor, begins_after: None }
    }
}

/// The most subjects whose last messages are looked up at once.
const TOGETHER: usize = 64;
/// The most bytes read from a log at once.
const MAX_BYTES: usize = 256 * 1024;
/// The most events read from a log at once: the broker does nothing else for this connection meanwhile.
const MAX_EVENTS: usize = 1024;
/// How long what the broker has said of a stream will do where it need not be exact.
const RECENT: Duration = Duration::from_millis(100);

impl EventLog {
    /// The logs, which are read through `reads`. `opening` is how many sessions begin: they are about to read theirs.
    ///
    /// # Errors
    /// If the streams or buckets are missing.
    pub async fn open(
        reads: Arc<Reads>,
        jetstream: Context,
        topology: Topology,
        opening: Gauge,
    ) -> Result<Self, Error> {
        let cursors = jetstream
            .get_key_value(subject::CURSORS)
            .await
            .map_err(Error::broker("open CURSORS"))?
            .into();
        let reached = (0..topology.event_streams).map(|_| AtomicU64::new(0)).collect();
        let jumps = jetstream
            .get_key_value(subject::TOPOLOGY)
            .await
            .map_err(Error::broker("open TOPOLOGY"))?
            .into();
        let crowds = (0..topology.event_streams).map(|_| Crowd::new()).collect();
        let extents = (0..topology.event_streams).map(|_| Mutex::default()).collect();
        let last = || Last::new("look up last messages", TOGETHER);
        let ends = (0..topology.event_streams).map(|_| last()).collect();
        let stored = Arc::new(last());
        let log = Self {
            reads,
            jetstream,
            cursors,
            topology,
            reached,
            ends,
            stored,
            extents,
            crowds,
            opening,
            jumps,
        };
        log.refresh().await?;
        Ok(log)
    }

    /// Whether logs can be read: there is a connection.
    pub fn is_connected(&self) -> bool {
        self.reads.is_connected()
    }

    /// Learns how far the streams are.
    ///
    /// # Errors
    /// If the broker does not tell.
    pub async fn refresh(&self) -> Result<(), Error> {
        for stream in 0..self.topology.event_streams {
            self.extent(stream).await?;
        }
        Ok(())
    }

    /// Up to which id a stream's logs are void: a worker has found that the broker lost what was in them. 0 if never.
    ///
    /// # Errors
    /// If the broker fails.
    async fn void(&self, stream: u16) -> Result<EventId, Error> {
        let value = self.jumps.get(subject::jumped_key(stream)).await;
        let value = value.map_err(Error::broker("read up to where logs are void"))?;
        value.map_or(Ok(EventId::NONE), |value| parse_cursor(&value))
    }

    /// Where a device's log goes on. A device never seen before begins after the user's last event.
    ///
    /// # Errors
    /// If the broker fails.
    pub async fn place(&self, user: &UserId, device: &DeviceId) -> Result<Place, Error> {
        let key = subject::cursor_key(user, device);
        let subject = format!("{}{key}", self.cursors.prefix);
        let known = |value: &[u8]| parse_cursor(value).map(Place::after);
        let stored = self.last(&self.stored, &self.cursors.stream_name, &subject).await?;
        if let Some(stored) = stored.filter(|stored| !stored.is_removed) {
            return known(&stored.payload);
        }
        let last = self.last_event(user).await?;
        let cursor = last.unwrap_or_else(|| self.reached(self.topology.event_stream(user)));
        match self.cursors.create(&key, cursor.to_string().into()).await {
            Ok(_) => Ok(Place { cursor, begins_after: Some(last.unwrap_or(EventId::NONE)) }),
            // The read above may have been answered by a replica that lags: the leader knows better.
            Err(error) if error.kind() == kv::CreateErrorKind::AlreadyExists => {
                let stored = self.cursors.stream.get_last_raw_message_by_subject(&subject).await;
                known(&stored.map_err(Error::broker("read a cursor"))?.payload)
            }
            Err(error) => Err(Error::broker("create a cursor")(error)),
        }
    }

    fn reached(&self, stream: u16) -> EventId {
        let reached = self.reached.get(usize::from(stream));
        EventId(reached.map_or(0, |reached| reached.load(Ordering::Relaxed)))
    }

    /// For each event stream an id that it has reached.
    pub fn reached_by_all(&self) -> Vec<EventId> {
        (0..self.topology.event_streams).map(|stream| self.reached(stream)).collect()
    }

    async fn last_event(&self, user: &UserId) -> Result<Option<EventId>, Error> {
        let (stream, subject) =
            (self.topology.event_stream(user), self.topology.event_subject(user));
        let ends = self.ends.get(usize::from(stream)).ok_or(Error::Unreadable("a stream"))?;
        let last = self.last(ends, &subject::events(stream), &subject).await?;
        Ok(last.map(|last| EventId(last.sequence)))
    }

    /// A subject's last message, asked for together with others of the stream.
    async fn last(&self, who: &Last, stream: &str, subject: &str) -> Result<Option<Stored>, Error> {
        let look_up = async |subjects: Vec<String>| {
            let batch = Some(subjects.len());
            let request = DirectGet { multi_last: &subjects, batch, ..DirectGet::default() };
            let found = self.reads.get(stream, &request).await?.into_iter();
            let mut found: HashMap<_, _> =
                found.map(|found| (found.subject.clone(), found)).collect();
            Ok(subjects.iter().map(|subject| found.remove(subject.as_str())).collect())
        };
        who.ask(subject.to_owned(), look_up).await
    }

    /// Stores a cursor.
    ///
    /// # Errors
    /// If the broker does not confirm it.
    pub async fn store_cursor(&self, key: &str, cursor: EventId) -> Result<(), Error> {
        let stored = self.cursors.put(key, cursor.to_string().into()).await;
        stored.map(drop).map_err(Error::broker("store a cursor"))
    }

    /// Reads up to `limit` events after `after`. A read `goes_on` where another has left something. Once its reader is `gone`
    /// it may be given up.
    ///
    /// # Errors
    /// If the broker fails.
    pub async fn fetch(
        &self,
        user: &UserId,
        after: EventId,
        limit: usize,
        goes_on: bool,
        gone: impl Future<Output = ()>,
    ) -> Result<Fetched, Error> {
        let limit = limit.min(MAX_EVENTS);
        let (subject, stream) =
            (self.topology.event_subject(user), self.topology.event_stream(user));
        let log = Log { stream, subject: &subject, after, limit };
        let found = match self.turn(log).await? {
            Turn::Served(found) => found,
            Turn::Alone(place) => self.read(log, goes_on, place, gone).await?,
        };
        let resync = if found.is_there || self.reaches_back(stream, after, found.later).await? {
            None
        } else {
            let first = found.events.first().map(|first| EventId(first.sequence - 1));
            let place = first.unwrap_or_else(|| self.reached(stream));
            tracing::warn!(
                event.id = after.0,
                herald.place = place.0,
                "a log no longer reaches back to a cursor: resync"
            );
            Some(place)
        };
        let Found { events, more, is_there, .. } = found;
        let traced = |event: &Stored| Some((EventId(event.sequence), event.traceparent?));
        let traces = events.iter().filter_map(traced).collect();
        let events = events
            .into_iter()
            .map(|event| (EventId(event.sequence), event.payload, event.origin))
            .collect();
        Ok(Fetched { events, traces, more, is_there, resync })
    }

    /// Whether everything after `after` is still there, although `after` itself is not an event of this user: nothing
    /// was dropped for its age after it, and nothing for the user's number of events, of which `later` are after it.
    /// What is dropped for that is a user's oldest event: a user that has as many as it may, all of them later, may have
    /// had others between.
    async fn reaches_back(&self, stream: u16, after: EventId, later: u64) -> Result<bool, Error> {
        let extent = self.extent(stream).await?;
        let is_full = extent.per_user.is_some_and(|most| later >= most);
        Ok(extent.first <= after.0 + 1 && after.0 <= extent.last && !is_full)
    }

    /// How far a stream reaches, asked for after this was called. Whoever comes while the broker is asked shares the
    /// next answer: a crowd that comes back at once asks twice.
    async fn extent(&self, number: u16) -> Result<Extent, Error> {
        let called_at = Instant::now();
        let shared = self.extents.get(usize::from(number)).ok_or(Error::Unreadable("a stream"))?;
        let mut shared = shared.lock().await;
        if let Some(extent) = *shared
            && extent.asked_at >= called_at
        {
            return Ok(extent);
        }
        let asked_at = Instant::now();
        let stream = self.jetstream.get_stream(subject::events(number)).await;
        let stream = stream.map_err(Error::broker("get an event stream"))?;
        let info = stream.cached_info();
        let extent = Extent {
            asked_at,
            first: info.state.first_sequence,
            last: info.state.last_sequence,
            per_user: u64::try_from(info.config.max_messages_per_subject).ok().filter(|n| *n > 0),
        };
        if let Some(reached) = self.reached.get(usize::from(number)) {
            reached.fetch_max(extent.last, Ordering::Relaxed);
        }
        *shared = Some(extent);
        Ok(extent)
    }

    /// How far a stream reached a moment ago.
    async fn recent_extent(&self, number: u16) -> Result<Extent, Error> {
        let shared = self.extents.get(usize::from(number)).ok_or(Error::Unreadable("a stream"))?;
        let recent = *shared.lock().await;
        match recent.filter(|extent| extent.asked_at.elapsed() < RECENT) {
            Some(extent) => Ok(extent),
            None => self.extent(number).await,
        }
    }

    /// For each of these users a place that its sessions must have reached: the id of its last event, or the end of
    /// what is void. Of events up to `since`, by stream, nothing need be told: the broker reads each one that it tells of.
    ///
    /// # Errors
    /// If the broker fails.
    pub async fn ends(
        &self,
        users: &[UserId],
        since: &[EventId],
    ) -> Result<Vec<(UserId, EventId)>, Error> {
        let mut ends = Vec::new();
        for stream in 0..self.topology.event_streams {
            let mut by_subject: HashMap<String, &UserId> = users
                .iter()
                .filter(|user| self.topology.event_stream(user) == stream)
                .map(|user| (self.topology.event_subject(user), user))
                .collect();
            if by_subject.is_empty() {
                continue;
            }
            let void = self.void(stream).await?;
            let subjects: Vec<String> = by_subject.keys().cloned().collect();
            let request = DirectGet {
                seq: since.get(usize::from(stream)).map(|since| since.0 + 1),
                multi_last: &subjects,
                batch: Some(subjects.len()),
                ..DirectGet::default()
            };
            for found in self.reads.get(&subject::events(stream), &request).await? {
                if let Some(user) = by_subject.remove(&*found.subject) {
                    ends.push((user.clone(), void.max(EventId(found.sequence))));
                }
            }
            if void > EventId::NONE {
                ends.extend(by_subject.into_values().map(|user| (user.clone(), void)));
            }
        }
        Ok(ends)
    }
}

fn parse_cursor(value: &[u8]) -> Result<EventId, Error> {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .map(EventId)
        .ok_or(Error::Unreadable("a cursor"))
}
