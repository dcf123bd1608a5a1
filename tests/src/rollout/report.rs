//! What a rolling update was like for those who were connected.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use super::{Plan, crowd::Seen};
use crate::pair;

/// The figures.
#[derive(Debug)]
pub struct Report {
    /// Sessions connected at once.
    pub sessions: usize,
    /// Sessions that were ended and came back.
    pub moved: usize,
    /// Sessions that ended in any other way than by 1012.
    pub cut: Vec<String>,
    /// The most sessions that came back within one second.
    pub peak_per_second: usize,
    /// Users who were told that another one went or came, though nobody did.
    pub false_presence: Vec<String>,
    /// Pods that had to be killed when their grace period was over.
    pub killed: usize,
    /// How long it took: gateways, workers.
    pub took: [Duration; 2],
    /// Answers before it, while gateways were rolled, and while workers were.
    pub answers: [Answers; 3],
    /// Requests that had to be sent again, to be stored once all the same.
    pub repeats: u32,
    /// Events that came again though their ack had been answered.
    pub again_though_acked: usize,
}

/// How long requests took to be answered, with all their repeats and reconnects.
#[derive(Debug)]
pub struct Answers(Vec<Duration>);

impl Answers {
    /// How many there were.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// So many of a hundred took no longer; nothing if there were none.
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).saturating_sub(1);
        self.0.get(rank).copied().unwrap_or_default()
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [half, most, all] = [50, 99, 100].map(|percent| self.percentile(percent));
        write!(f, "{} answers, p50 {half:.1?}, p99 {most:.1?}, longest {all:.1?}", self.count())
    }
}

impl Report {
    pub(super) fn new(
        plan: &Plan,
        killed: usize,
        [watched_from, began_at, gateways_until, ended_at]: [Instant; 4],
        pairs: &[pair::Report],
        seen: &Seen,
    ) -> Self {
        let mut per_second: BTreeMap<u64, usize> = BTreeMap::new();
        for back_at in &seen.back_at {
            *per_second.entry(back_at.duration_since(began_at).as_secs()).or_default() += 1;
        }
        let ends: Vec<&String> =
            pairs.iter().flat_map(|pair| &pair.ends).chain(&seen.ends).collect();
        let is_told = |end: &&&String| end.starts_with("closed: 1012");
        let answers = |from: Instant, until: Instant| {
            let stored = pairs.iter().flat_map(|pair| &pair.stored);
            let stored = stored.filter(|stored| (from..until).contains(&stored.sent_at));
            let took = stored.map(|stored| stored.answered_at.duration_since(stored.sent_at));
            let mut took: Vec<Duration> = took.collect();
            took.sort_unstable();
            Answers(took)
        };
        Self {
            sessions: plan.sessions + 2 * plan.pairs,
            moved: ends.iter().filter(is_told).count(),
            cut: ends.iter().filter(|end| !is_told(end)).map(|end| (*end).clone()).collect(),
            peak_per_second: per_second.values().copied().max().unwrap_or_default(),
            false_presence: seen
                .presence
                .iter()
                .filter(|(told_at, _)| *told_at > began_at)
                .map(|(told_at, text)| format!("after {:?}: {text}", *told_at - began_at))
                .collect(),
            killed,
            took: [gateways_until - began_at, ended_at - gateways_until],
            answers: [
                answers(watched_from, began_at),
                answers(began_at, gateways_until),
                answers(gateways_until, ended_at),
            ],
            repeats: pairs.iter().flat_map(|pair| &pair.stored).map(|stored| stored.repeats).sum(),
            again_though_acked: pairs.iter().map(|pair| pair.again_though_acked).sum(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [gateways, workers] = self.took;
        let [before, during_gateways, during_workers] = &self.answers;
        writeln!(f, "sessions          {} connected, moved {} times", self.sessions, self.moved)?;
        writeln!(f, "cut without 1012  {}", self.cut.len())?;
        writeln!(f, "came back         at most {} within a second", self.peak_per_second)?;
        let offline = self.false_presence.iter().filter(|event| event.contains("offline")).count();
        writeln!(f, "false offline     {offline}")?;
        writeln!(f, "false online      {}", self.false_presence.len() - offline)?;
        for event in self.false_presence.iter().take(3) {
            writeln!(f, "                  {event}")?;
        }
        writeln!(f, "killed pods       {}", self.killed)?;
        writeln!(f, "lost, doubled     0, 0 (anything else ends the rehearsal)")?;
        writeln!(f, "sent again        {} requests", self.repeats)?;
        writeln!(f, "came again        {} events that were acked", self.again_though_acked)?;
        writeln!(f, "before            {before}")?;
        writeln!(f, "gateways rolled   {during_gateways} ({gateways:.0?})")?;
        write!(f, "workers rolled    {during_workers} ({workers:.0?})")
    }
}
