//! What a fleet of clients has seen, and what it proves about the service.
//!
//! Clients write down what they send, are answered, get and ack, each device in a [`Log`] of its own. [`check()`] decides
//! from these logs, and from what the database holds at the end, whether every promise was kept: it is pure, so that each
//! of its rules is itself tested, on histories that break it.

use std::fmt;

pub mod check;
pub mod failover;
pub mod record;
pub mod stored;
pub mod verdict;

pub use check::check;
pub use record::{Answer, Event, Key, Millis, Record, Request, What};
pub use stored::Stored;
pub use verdict::{Rule, Verdict};

/// A user, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct User(pub u16);

/// Two users' chat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Chat {
    /// The user with the lower number.
    pub low: User,
    /// The user with the higher number.
    pub high: User,
}

/// What all devices have seen, and what the database holds at the end.
#[derive(Debug, Default)]
pub struct History {
    /// Each device's log.
    pub devices: Vec<Log>,
    /// The database at the end, if it was looked at.
    pub stored: Option<Stored>,
    /// Whether something was done that can cost users their logs.
    pub may_lose_logs: bool,
}

/// What one device has seen, in the order in which it has. It was there before the first message was sent, so every
/// event of its user belongs in it.
#[derive(Debug)]
pub struct Log {
    /// Whose device it is.
    pub user: User,
    /// What it has seen.
    pub records: Vec<Record>,
}

impl User {
    /// Its id in the protocol: needs no escapes anywhere.
    pub fn name(self) -> String {
        self.to_string()
    }

    /// The user with that id.
    pub fn named(name: &str) -> Option<Self> {
        name.strip_prefix('u')?.parse().ok().map(Self)
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "u{}", self.0)
    }
}

impl Chat {
    /// The chat of these two.
    pub fn of(one: User, other: User) -> Self {
        Self { low: one.min(other), high: one.max(other) }
    }

    /// The other member.
    pub fn peer(self, user: User) -> User {
        if user == self.low { self.high } else { self.low }
    }
}

impl fmt::Display for Chat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.low, self.high)
    }
}
