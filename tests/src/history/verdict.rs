//! What the checker says: each rule with how often it was broken, and the first examples.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
};

/// What must always hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// What was answered without error comes to all devices of whom it concerns.
    Kept,
    /// What was answered without error is in the database, and nothing else.
    Stored,
    /// Every request is answered in the end, and none with an error that is not for the client to solve.
    Answered,
    /// One key has one message id and one event, and one mark or deletion one event, whatever is sent again.
    OneEffect,
    /// A chat's message ids count up from 1 without holes.
    NoHoles,
    /// Messages come in the order of their ids, and are accepted in the order in which clients could know it.
    ChatOrder,
    /// `missed` equals a naive recount.
    Counts,
    /// Marks move forward only.
    Marks,
    /// What a device has not acked comes to its next session first of all.
    Again,
    /// What a device has not seen before has a higher id than all it has seen.
    IdOrder,
    /// Every event names the one before it.
    Prev,
    /// No device is told to reload although its log was never lost.
    LogsLast,
    /// Nothing contradicts anything else: texts, keys, copies of an event.
    Consistent,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Kept,
        Self::Stored,
        Self::Answered,
        Self::OneEffect,
        Self::NoHoles,
        Self::ChatOrder,
        Self::Counts,
        Self::Marks,
        Self::Again,
        Self::IdOrder,
        Self::Prev,
        Self::LogsLast,
        Self::Consistent,
    ];

    /// What a breach of it is called.
    pub fn breach(self) -> &'static str {
        match self {
            Self::Kept => "lost: answered, never came",
            Self::Stored => "lost: answered, not in the database as answered",
            Self::Answered => "never answered, or refused for good",
            Self::OneEffect => "double effects",
            Self::NoHoles => "holes in message ids",
            Self::ChatOrder => "out of order in a chat",
            Self::Counts => "wrong counts",
            Self::Marks => "marks that moved back",
            Self::Again => "not acked, not sent again",
            Self::IdOrder => "event ids that did not increase",
            Self::Prev => "broken prev",
            Self::LogsLast => "resync, though no log was lost",
            Self::Consistent => "contradictions",
        }
    }
}

/// How much was looked at.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Messages that were answered with an id.
    pub messages: u64,
    /// Requests of all kinds that were answered.
    pub answered: u64,
    /// Requests that were sent more than once.
    pub asked_again: u64,
    /// Sessions that were opened.
    pub sessions: u64,
    /// Events that came to a device for the first time.
    pub events: u64,
    /// Events that a device had not acked, and that came again.
    pub came_again: u64,
    /// Events that came although the device had acked them before: allowed, the client drops them.
    pub duplicates: u64,
    /// Sessions that began with `resync`.
    pub resyncs: u64,
}

/// The result.
#[derive(Debug, Default)]
pub struct Verdict {
    /// How much was looked at.
    pub tally: Tally,
    breaches: BTreeMap<Rule, Breaches>,
}

#[derive(Debug, Default)]
struct Breaches {
    count: u64,
    examples: Vec<String>,
}

/// Examples of each breach that are kept.
const EXAMPLES: usize = 8;

impl Verdict {
    /// Notes a breach; `what` is only written out for the first of them.
    pub fn breach(&mut self, rule: Rule, what: impl FnOnce() -> String) {
        let breaches = self.breaches.entry(rule).or_default();
        breaches.count += 1;
        if breaches.examples.len() < EXAMPLES {
            breaches.examples.push(what());
        }
    }

    /// How often a rule was broken.
    pub fn count(&self, rule: Rule) -> u64 {
        self.breaches.get(&rule).map_or(0, |breaches| breaches.count)
    }

    /// Whether no rule was broken.
    pub fn is_clean(&self) -> bool {
        self.breaches.is_empty()
    }

    /// Whether something may only not have come yet.
    pub fn is_incomplete(&self) -> bool {
        [Rule::Kept, Rule::Answered, Rule::Again].iter().any(|rule| self.count(*rule) > 0)
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Tally { messages, answered, asked_again, .. } = self.tally;
        let Tally { sessions, events, came_again, duplicates, resyncs, .. } = self.tally;
        for (what, count) in [
            ("messages answered", messages),
            ("requests answered", answered),
            ("requests sent more than once", asked_again),
            ("sessions", sessions),
            ("events", events),
            ("events not acked, sent again", came_again),
            ("events acked, sent again (dropped)", duplicates),
            ("resyncs", resyncs),
        ] {
            writeln!(f, "  {what:<48}{count:>10}")?;
        }
        for rule in Rule::ALL {
            writeln!(f, "  {:<48}{:>10}", rule.breach(), self.count(rule))?;
            for example in self.breaches.get(&rule).into_iter().flat_map(|found| &found.examples) {
                writeln!(f, "      {example}")?;
            }
        }
        write!(f, "{}", if self.is_clean() { "every promise kept" } else { "PROMISES BROKEN" })
    }
}
