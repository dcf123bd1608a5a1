//! What all devices of a fleet share. Locks are held for moments, never across an await.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::history::{History, Log, Millis, Record, User, What};

/// A fleet's logs and counters.
#[derive(Debug)]
pub struct Shared {
    /// Where clients connect.
    pub gateways: Vec<String>,
    /// Cancelled at the end.
    pub stop: CancellationToken,
    begun: Instant,
    writing: AtomicBool,
    next: AtomicU32,
    logs: Vec<(User, Mutex<Vec<Record>>)>,
    /// The last time that something was sent, answered or came.
    last: AtomicU32,
    messages: AtomicU64,
    events: AtomicU64,
    open: AtomicU64,
    ready: AtomicU64,
    sessions: AtomicU64,
}

/// How it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Messages answered with an id.
    pub messages: u64,
    /// Events that have come, those that came again too.
    pub events: u64,
    /// Requests that are not answered.
    pub open: u64,
    /// Sessions opened so far.
    pub sessions: u64,
    /// Devices that have been served at least once.
    pub ready: usize,
}

impl Shared {
    /// A fleet that has not begun.
    pub fn new(gateways: &[String], users: &[User]) -> Self {
        Self {
            gateways: gateways.to_vec(),
            stop: CancellationToken::new(),
            begun: Instant::now(),
            writing: AtomicBool::new(false),
            next: AtomicU32::new(1),
            logs: users.iter().map(|user| (*user, Mutex::default())).collect(),
            last: AtomicU32::new(0),
            messages: AtomicU64::new(0),
            events: AtomicU64::new(0),
            open: AtomicU64::new(0),
            ready: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
        }
    }

    /// Milliseconds since the fleet began.
    pub fn now(&self) -> Millis {
        u32::try_from(self.begun.elapsed().as_millis()).unwrap_or(u32::MAX)
    }

    /// A number that no other request, and no other message, has.
    pub fn number(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether clients write.
    pub fn is_writing(&self) -> bool {
        self.writing.load(Ordering::Relaxed)
    }

    /// Lets clients write, or not.
    pub fn set_writing(&self, is_on: bool) {
        self.writing.store(is_on, Ordering::Relaxed);
    }

    /// A device has done or seen something.
    pub fn note(&self, device: usize, what: What) {
        let at = self.now();
        match what {
            What::Opened => {
                self.sessions.fetch_add(1, Ordering::Relaxed);
            }
            What::Got { .. } => {
                self.events.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
        self.last.store(at, Ordering::Relaxed);
        if let Some((_, log)) = self.logs.get(device) {
            log.lock().unwrap_or_else(PoisonError::into_inner).push(Record { at, what });
        }
    }

    /// A request was made.
    pub fn asked(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// A request was answered for good; `is_message` if it was a message that is stored now.
    pub fn answered(&self, is_message: bool) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.messages.fetch_add(u64::from(is_message), Ordering::Relaxed);
    }

    /// A device was served for the first time.
    pub fn is_ready(&self) {
        self.ready.fetch_add(1, Ordering::Relaxed);
    }

    /// How it goes.
    pub fn stats(&self) -> Stats {
        Stats {
            messages: self.messages.load(Ordering::Relaxed),
            events: self.events.load(Ordering::Relaxed),
            open: self.open.load(Ordering::Relaxed),
            sessions: self.sessions.load(Ordering::Relaxed),
            ready: usize::try_from(self.ready.load(Ordering::Relaxed)).unwrap_or(usize::MAX),
        }
    }

    /// Whether nothing has happened for so long.
    pub fn is_quiet(&self, time: Duration) -> bool {
        let since = self.now().saturating_sub(self.last.load(Ordering::Relaxed));
        Duration::from_millis(since.into()) >= time
    }

    /// A copy of everything written down.
    pub fn history(&self) -> History {
        let copy = |(user, log): &(User, Mutex<Vec<Record>>)| Log {
            user: *user,
            records: log.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        };
        History { devices: self.logs.iter().map(copy).collect(), ..History::default() }
    }
}
