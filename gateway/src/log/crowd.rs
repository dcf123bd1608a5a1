//! Reads of logs by a crowd.
//!
//! The broker finds a user's next event by looking at one message after the other, within a block of some ten thousand.
//! For one reader that is nothing. For N devices that come back at once, and whose events lie among each other's, it is
//! N times N. So when more reads are asked for than may be under way, those that wait are served together: the stream
//! is read once ([`Scan`]), whoever its events are for, and everyone takes their own. What was read is kept for a moment,
//! for those who come next.

use std::{
    cmp::Reverse,
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use herald_proto::{EventId, subject};
use tokio::{
    sync::{Semaphore, SemaphorePermit, oneshot},
    time::{Instant, sleep},
};

use super::{
    EventLog, Found, Log, Stored,
    scan::{Scan, Scans},
    tail::Tail,
};
use crate::{error::Error, turns::Rests};

/// Who reads one stream.
pub(super) struct Crowd {
    /// One for each read that may be under way.
    places: Semaphore,
    /// For the one that reads what lies far back.
    pub(super) far: Semaphore,
    waiting: Mutex<Waiting>,
    /// What was read for a crowd. Whoever holds it reads for all who wait.
    tail: tokio::sync::Mutex<Tail>,
    scans: Scans,
}

#[derive(Default)]
struct Waiting {
    readers: Vec<Reader>,
    /// When the last crowd was last read for.
    crowded_at: Option<Instant>,
    /// When the reads began that are counted now.
    counted_from: Option<Instant>,
    /// How many were asked for since, and how many in the time before.
    asked: (u64, u64),
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

/// A crowd that is read for. Once it is dropped, what was read is kept for a moment, however long reading took.
struct Reading<'a> {
    crowd: &'a Crowd,
    tail: tokio::sync::MutexGuard<'a, Tail>,
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
/// How many are answered before others have their turn, for as long as that took: those who are answered write all of it
/// to their clients.
const AT_A_TIME: usize = 16;
/// How many are served from what is kept before others have their turn.
const SERVED_AT_A_TIME: usize = 16;
/// How much of what is not needed any more is given back at a time, in events, and how long others have until the next.
const FORGOTTEN_AT_A_TIME: usize = 256;
const PAUSE: Duration = Duration::from_millis(2);
/// How many events are read at once: while the broker answers a direct get, it takes nothing new for the stream.
const READ_AT_A_TIME: usize = 256;
/// The part of the time that a read took for which the broker is left alone after it: those who chat need it too.
const REST: u32 = 2;
/// About how much one reader is given at once, in bytes. Who has more to read asks again.
const SHARE: usize = 16 * 1024;
/// How many messages may be read for each reader, as whoever is further behind reads alone. Those that came in the last
/// second or whose sessions begin are counted too, for more will come.
const REACH: u64 = 512;
/// For so many readers more may be read. For one that reads alone the broker looks at each message up to the one that it
/// finds, which costs a fiftieth of reading it.
const MANY: u64 = 32;
/// How many messages may be read for that many: some seconds of it, which all of them wait.
const FAR: u64 = 1 << 18;
/// For how long reads are counted.
const COUNTED: Duration = Duration::from_secs(1);
/// How long after the last crowd what was read for it is kept.
const KEPT: Duration = Duration::from_secs(3);

impl Crowd {
    pub(super) fn new() -> Self {
        let (waiting, tail) = (Mutex::default(), tokio::sync::Mutex::default());
        let (places, far) = (Semaphore::new(AT_ONCE), Semaphore::new(1));
        Self { places, far, waiting, tail, scans: Scans::default() }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Every change is whole, whoever panicked while holding the lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a read that is asked for; returns whether a crowd was here a moment ago.
    fn asked(&self) -> bool {
        let mut waiting = self.waiting();
        match waiting.counted_from.map(|from| from.elapsed()) {
            Some(time) if time < COUNTED => {}
            time => {
                let is_next = time.is_some_and(|time| time < COUNTED * 2);
                waiting.asked = (0, if is_next { waiting.asked.0 } else { 0 });
                waiting.counted_from = Some(Instant::now());
            }
        }
        waiting.asked.0 += 1;
        waiting.crowded_at.is_some()
    }

    /// Takes those who wait and for whom nothing or little has to be read: what they need is kept, or lies close enough
    /// to the stream's end, `last`. Those who came first go first: whoever has the turn is one of them. And the place of
    /// the one that is furthest behind, taken or next in line. `coming` are about to join them.
    fn take(&self, last: u64, tail: &Tail, coming: usize) -> (Vec<Reader>, EventId) {
        let (kept, waiting) = (tail.from(), &mut *self.waiting());
        let (now, before) = waiting.asked;
        let expected = if tail.has_room() { now + before + coming as u64 } else { 0 };
        let readers = &mut waiting.readers;
        readers.retain(|reader| !reader.answer.is_closed());
        let mut places: Vec<EventId> = readers.iter().map(|reader| reader.after).collect();
        places.sort_unstable_by_key(|after| Reverse(*after));
        let is_kept = |after: EventId| kept.is_some_and(|from| from <= after.0);
        let is_close = |count: usize, after: EventId| {
            let reach = reach(expected.max(count as u64));
            count.max(coming) >= FEWEST && last.saturating_sub(after.0) <= reach
        };
        let served =
            |(count, after): &(usize, EventId)| is_kept(*after) || is_close(*count, *after);
        let Some((_, first)) = (1..).zip(places).filter(served).last() else {
            return (Vec::new(), EventId::NONE);
        };
        (readers.extract_if(.., |reader| reader.after >= first).take(MOST).collect(), first)
    }

    /// Begins to read for a crowd; returns too whether it is the first one for some time.
    fn begin<'a>(&'a self, tail: tokio::sync::MutexGuard<'a, Tail>) -> (Reading<'a>, bool) {
        // Whoever comes meanwhile joins it.
        let before = self.waiting().crowded_at.replace(Instant::now());
        (Reading { crowd: self, tail }, before.is_none())
    }

    /// Forgets what was read, once no crowd has come for some time.
    async fn cool(&self) {
        loop {
            sleep(KEPT).await;
            let mut tail = self.tail.lock().await;
            let mut waiting = self.waiting();
            if waiting.crowded_at.is_none_or(|at| at.elapsed() >= KEPT) {
                waiting.crowded_at = None;
                forget(&mut tail);
                return;
            }
        }
    }
}

impl EventLog {
    /// How many are about to read their logs.
    fn coming(&self) -> usize {
        usize::try_from(self.opening.get()).unwrap_or(0)
    }

    /// Waits for a turn to read a user's events after `after`; whoever gets one when a crowd waits reads for it first.
    pub(super) async fn turn(&self, log: Log<'_>) -> Result<Turn<'_>, Error> {
        let Log { stream, subject, after, limit } = log;
        let crowd = self.crowds.get(usize::from(stream)).ok_or(Error::Unreadable("a stream"))?;
        if !crowd.asked()
            && self.coming() < FEWEST
            && let Ok(place) = crowd.places.try_acquire()
        {
            return Ok(Turn::Alone(place));
        }
        let (answer, mut answered) = oneshot::channel();
        let (found, subject) = (Found::default(), subject.to_owned());
        crowd.waiting().readers.push(Reader { subject, after, limit, found, bytes: 0, answer });
        let served = |found: Result<Found, _>| {
            found.map(Turn::Served).map_err(|_| Error::Silent("read a log"))
        };
        let place = tokio::select! {
            biased;
            found = &mut answered => return served(found),
            place = crowd.places.acquire() => place.map_err(Error::broker("read a log"))?,
        };
        let mut tail = tokio::select! {
            biased;
            found = &mut answered => return served(found),
            tail = crowd.tail.lock() => tail,
        };
        let extent = self.extent(stream).await?;
        tail.fit(extent.first, extent.last);
        let (readers, first) = crowd.take(extent.last, &tail, self.coming());
        if readers.is_empty() {
            drop(tail);
        } else {
            let (mut reading, is_first) = crowd.begin(tail);
            if is_first {
                let (crowds, stream) = (self.crowds.clone(), usize::from(stream));
                tokio::spawn(async move {
                    if let Some(crowd) = crowds.get(stream) {
                        crowd.cool().await;
                    }
                });
            }
            let first = first.0.max(extent.first).max(1);
            self.read_together(stream, &mut reading.tail, readers, first).await?;
        }
        Ok(answered.try_recv().map_or_else(|_| Turn::Alone(place), Turn::Served))
    }

    /// Reads the stream from `first` on, as far as it is not kept, and gives each reader its events.
    async fn read_together(
        &self,
        stream: u16,
        tail: &mut Tail,
        readers: Vec<Reader>,
        first: u64,
    ) -> Result<(), Error> {
        tracing::debug!(
            herald.readers = readers.len(),
            herald.from = first,
            herald.kept = tail.from(),
            "reading a log for a crowd"
        );
        let mut by_subject: Readers = HashMap::new();
        for reader in readers {
            by_subject.entry(reader.subject.clone()).or_default().push(reader);
        }
        match tail.from() {
            None => tail.restart(first),
            Some(kept) if first < kept => {
                let mut older = Tail::default();
                older.restart(first);
                self.read_on(stream, &mut older, Some(kept), &mut by_subject).await?;
                serve(tail, &mut by_subject).await;
                while tail.prepend(&mut older, READ_AT_A_TIME) {
                    tokio::task::yield_now().await;
                }
                forget(&mut older);
            }
            Some(_) => serve(tail, &mut by_subject).await,
        }
        self.read_on(stream, tail, None, &mut by_subject).await?;
        let mut rests = Rests::begin();
        for (count, reader) in (1..).zip(by_subject.into_values().flatten()) {
            // One that is gone needs no answer.
            let _ = reader.answer.send(reader.found);
            if count % AT_A_TIME == 0 {
                rests.rest().await;
            }
        }
        Ok(())
    }

    /// Reads from where a tail ends up to `until`, or to the stream's end.
    async fn read_on(
        &self,
        stream: u16,
        tail: &mut Tail,
        until: Option<u64>,
        readers: &mut Readers,
    ) -> Result<(), Error> {
        let crowd = self.crowds.get(usize::from(stream)).ok_or(Error::Unreadable("a stream"))?;
        let name = subject::events(stream);
        let mut scan = Scan::new(&crowd.scans, &self.jetstream, &self.reads, name);
        while until.is_none_or(|until| tail.next() < until) {
            let began_at = Instant::now();
            let (mut found, is_end) = scan.next(tail.next(), READ_AT_A_TIME).await?;
            let next = cut(&mut found, until, tail.next());
            if is_end && until.is_some_and(|until| next < until) {
                return Err(Error::broker("read a log")("a replica that lags has answered"));
            }
            found.iter().for_each(|event| hand(readers, event));
            // What comes next may begin further on.
            tail.append(found, next);
            if is_end {
                return Ok(());
            }
            sleep(began_at.elapsed() / REST).await;
        }
        Ok(())
    }
}

/// How many messages may be read for so many readers.
fn reach(readers: u64) -> u64 {
    let reach = REACH * readers;
    if readers < MANY { reach } else { reach.max(FAR) }
}

/// Cuts what was read from `next` on where something kept begins, at `until`. Returns what has to be read next.
fn cut(found: &mut Vec<Stored>, until: Option<u64>, next: u64) -> u64 {
    let next = found.last().map_or(next, |last| last.sequence + 1);
    let Some(until) = until else { return next };
    found.retain(|event| event.sequence < until);
    next.min(until)
}

/// Those who are read for, by whose events they want.
type Readers = HashMap<String, Vec<Reader>>;

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.crowd.waiting().crowded_at = Some(Instant::now());
    }
}

/// Forgets what was kept. To give so much memory back takes long, and keeps whoever needs some waiting, on other threads too.
fn forget(tail: &mut Tail) {
    let mut all = std::mem::take(tail);
    tokio::spawn(async move {
        while all.shrink(FORGOTTEN_AT_A_TIME) {
            sleep(PAUSE).await;
        }
    });
}

/// Gives each reader its events of those that are kept.
async fn serve(tail: &Tail, readers: &mut Readers) {
    let mut rests = Rests::begin();
    for (count, reader) in (1..).zip(readers.values_mut().flatten()) {
        tail.of(&reader.subject.clone(), reader.after.0).for_each(|event| reader.take(event));
        if count % SERVED_AT_A_TIME == 0 {
            rests.rest().await;
        }
    }
}

fn hand(readers: &mut Readers, event: &Stored) {
    let readers = readers.get_mut(&*event.subject).into_iter().flatten();
    readers.for_each(|reader| reader.take(event));
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
        self.found.events.push(event.clone());
    }
}

#[cfg(test)]
mod tests;
