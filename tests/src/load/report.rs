//! The result, as data and as a table.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::{
    args::Args,
    faults::Faults,
    stats::{Errors, Latency},
    usage::{Usage, Watched},
};

pub mod figure;
mod table;

use figure::Figure;

/// What was done and what came of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub struct Report {
    /// What was done, in a line.
    pub what: String,
    /// Whether nothing was lost, doubled, out of order or otherwise wrong.
    pub clean: bool,
    /// What matters, to be compared with another run's.
    pub figures: Vec<Figure>,
    /// The result.
    pub outcome: Outcome,
    /// What else is worth knowing.
    pub notes: Vec<String>,
}

/// A result, by mode.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Of messages.
    Traffic(Traffic),
    /// Of idle connections.
    Idle(Idle),
    /// Of anything else.
    Measured(Measured),
}

/// What came of messages.
#[derive(Debug, Serialize)]
pub struct Traffic {
    /// How long was measured.
    pub window_seconds: f64,
    /// Messages sent in all, the warm-up's too.
    pub sent: u64,
    /// Messages completed in all.
    pub completed: u64,
    /// Messages sent while measuring.
    pub sent_in_window: u64,
    /// Messages completed while measuring.
    pub completed_in_window: u64,
    /// Events of messages that came to a device while measuring.
    pub delivered_in_window: u64,
    /// On how many devices each recipient was connected.
    pub devices: u16,
    /// The logins before.
    pub logins: Logins,
    /// By name.
    pub latencies: Vec<(&'static str, Latency)>,
    /// What each process used while measuring.
    pub processes: Vec<Process>,
    /// What was wrong.
    pub faults: Faults,
    /// Error responses by code.
    pub errors: BTreeMap<String, Errors>,
    /// Sessions that ended early, by reason.
    pub endings: BTreeMap<String, u64>,
}

/// What came of idle connections.
#[derive(Debug, Serialize)]
pub struct Idle {
    /// The logins.
    pub logins: Logins,
    /// How long the connections were left alone.
    pub settle_seconds: f64,
    /// What each process used from before the logins until after them.
    pub logging_in: Vec<Process>,
    /// The same until the connections had settled.
    pub settled: Vec<Process>,
    /// Processor time of each process while the connections were left alone.
    pub idle_cpu_seconds: Vec<f64>,
    /// Sessions that ended before they should.
    pub ended_early: u64,
}

/// What came of what was neither.
#[derive(Debug, Default, Serialize)]
pub struct Measured {
    /// What matters; told as the report's.
    #[serde(skip)]
    pub figures: Vec<Figure>,
    /// How long was measured.
    pub seconds: f64,
    /// What each process used while measuring.
    pub processes: Vec<Process>,
    /// What the processes' time is divided by: how many, and of what.
    pub per: (u64, &'static str),
    /// What was wrong.
    pub faults: Faults,
    /// Error responses by code.
    pub errors: BTreeMap<String, Errors>,
    /// Sessions that ended early, by reason.
    pub endings: BTreeMap<String, u64>,
}

/// How fast users were let in.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Logins {
    /// How many.
    pub count: u64,
    /// In how many seconds, all together.
    pub seconds: f64,
}

/// What a process used.
#[derive(Debug, Clone, Serialize)]
pub struct Process {
    /// Its name.
    pub name: String,
    /// Processor time in microseconds.
    pub cpu_us: u64,
    /// Resident memory in bytes before.
    pub memory_before: u64,
    /// And after.
    pub memory_after: u64,
}

impl Logins {
    /// So many in that time.
    pub fn new(count: u64, time: Duration) -> Self {
        Self { count, seconds: time.as_secs_f64() }
    }

    /// Logins a second.
    pub fn per_second(&self) -> f64 {
        ratio(self.count, self.seconds)
    }
}

impl Process {
    /// What they used between two looks.
    pub fn of_all(watched: &[Watched], before: &[Usage], after: &[Usage]) -> Vec<Self> {
        let looks = before.iter().zip(after);
        watched.iter().zip(looks).map(|(w, (a, b))| Self::new(&w.name, *a, *b)).collect()
    }

    /// What it used between two looks.
    pub fn new(name: &str, before: Usage, after: Usage) -> Self {
        let cpu = after.cpu.saturating_sub(before.cpu);
        Self {
            name: name.to_owned(),
            cpu_us: u64::try_from(cpu.as_micros()).unwrap_or(u64::MAX),
            memory_before: before.memory,
            memory_after: after.memory,
        }
    }
}

impl Report {
    /// A result and what it says.
    pub fn new(args: &Args, outcome: Outcome, notes: Vec<String>) -> Self {
        let (clean, figures) = match &outcome {
            Outcome::Traffic(traffic) => (traffic.faults.is_clean(), traffic.figures()),
            Outcome::Idle(idle) => (idle.ended_early == 0, idle.figures()),
            Outcome::Measured(measured) => (measured.faults.is_clean(), measured.figures()),
        };
        Self { what: table::what(args), clean, figures, outcome, notes }
    }
}

/// A part of something; 0 of nothing.
#[expect(clippy::cast_precision_loss, reason = "counts and sizes are far below 2^52")]
pub(super) fn ratio(count: u64, by: f64) -> f64 {
    if by > 0.0 { count as f64 / by } else { 0.0 }
}
