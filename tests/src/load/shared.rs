//! What all connections of a run share. Locks are held for moments, never across an await.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Instant,
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{connection::Ended, faults::Faults, ledger::Ledger, slowdown::Slowdowns, stats::Stats};

/// A run.
#[derive(Debug)]
pub struct Shared {
    /// Whether recipients report what they have received.
    pub with_receipts: bool,
    /// The text of all messages.
    pub text: String,
    /// Cancelled at the end.
    pub stop: CancellationToken,
    stats: Mutex<Stats>,
    faults: Mutex<Faults>,
    sending: AtomicBool,
    /// How many more messages may be sent.
    budget: AtomicI64,
}

/// Two users: one writes, the other receives.
#[derive(Debug)]
pub struct Pair {
    /// Who writes.
    pub sender: String,
    /// Who receives.
    pub recipient: String,
    /// Tells the sender that it may have something to send.
    pub wake: Notify,
    /// How many further devices the recipient has.
    listeners: u64,
    /// How many messages have come to those, all together.
    heard: AtomicU64,
    ledger: Mutex<Ledger>,
}

impl Shared {
    /// A run that has not begun.
    pub fn new(with_receipts: bool, size: usize, slowdowns: Slowdowns) -> Self {
        const WORDS: &str = "Letters that no JSON escapes, and of no meaning. ";
        Self {
            with_receipts,
            text: WORDS.chars().cycle().take(size).collect(),
            stop: CancellationToken::new(),
            stats: Mutex::new(Stats::new(slowdowns)),
            faults: Mutex::default(),
            sending: AtomicBool::new(true),
            budget: AtomicI64::new(i64::MAX),
        }
    }

    /// What is measured.
    pub fn stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was wrong with frames that belong to no message.
    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets senders send so many messages.
    pub fn start_sending(&self, budget: i64) {
        self.budget.store(budget, Ordering::Relaxed);
        self.sending.store(true, Ordering::Relaxed);
    }

    /// Lets senders send nothing more.
    pub fn stop_sending(&self) {
        self.sending.store(false, Ordering::Relaxed);
    }

    /// Whether messages may be sent.
    pub fn is_sending(&self) -> bool {
        self.sending.load(Ordering::Relaxed) && self.budget.load(Ordering::Relaxed) > 0
    }

    /// Takes the permission to send one message; only after [`Self::is_sending`].
    pub fn take_permit(&self) {
        self.budget.fetch_sub(1, Ordering::Relaxed);
    }

    /// A session has ended before the end.
    pub fn ended(&self, user: &str, ended: &Ended) {
        eprintln!("the session of {user} has ended: {}", ended.why);
        self.faults().ended_sessions += 1;
        self.stats().ending(&ended.why);
    }

    /// A frame can't be read.
    pub fn unreadable(&self, text: &str, why: impl std::fmt::Display) {
        let mut faults = self.faults();
        faults.odd_frames += 1;
        // The first of them say enough.
        if faults.odd_frames <= 10 {
            eprintln!("a frame can't be explained: {why}: {text}");
        }
    }
}

impl Pair {
    /// Two users who have not written yet; who receives has that many further devices.
    pub fn new(run: &str, number: u32, with_receipts: bool, listeners: u16) -> Self {
        Self {
            sender: format!("load-{run}-{number}-a"),
            recipient: format!("load-{run}-{number}-b"),
            wake: Notify::new(),
            listeners: listeners.into(),
            heard: AtomicU64::new(0),
            ledger: Mutex::new(Ledger::new(with_receipts)),
        }
    }

    /// The same, in a chat in which the sender has written that many messages before.
    #[must_use]
    pub fn after(self, messages: u64) -> Self {
        let ledger = self.take_ledger().after(messages);
        Self { ledger: Mutex::new(ledger), ..self }
    }

    /// A message has come to one of the further devices.
    pub fn heard(&self) {
        self.heard.fetch_add(1, Ordering::Relaxed);
    }

    /// How many messages have yet to come to further devices.
    fn unheard(&self) -> u64 {
        let expected = self.listeners * self.ledger().arrivals();
        expected.saturating_sub(self.heard.load(Ordering::Relaxed))
    }

    /// Whether nothing is on its way.
    pub fn is_settled(&self) -> bool {
        self.ledger().is_settled() && self.unheard() == 0
    }

    /// The end: what is still on its way is lost. Returns all that was wrong.
    pub fn close(&self) -> Faults {
        let lost = self.unheard();
        let mut faults = self.take_ledger().close();
        faults.lost_events += lost;
        faults
    }

    /// The accounting.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_ledger(&self) -> Ledger {
        std::mem::replace(&mut *self.ledger(), Ledger::new(false))
    }

    /// Tells the run about messages that have become complete.
    pub fn settle(&self, shared: &Shared, now: Instant) -> bool {
        let completed = self.ledger().take_completed();
        if completed > 0 {
            shared.stats().complete(completed, now);
        }
        completed > 0
    }
}
