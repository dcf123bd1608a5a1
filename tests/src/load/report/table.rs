//! The result as a table for people.

use std::fmt::{self, Display, Formatter};

use super::{Idle, Outcome, Process, Report, Traffic, ratio};
use crate::load::args::{Args, Kind, Mode};

/// What is done, in a line.
pub(super) fn what(args: &Args) -> String {
    let target = if args.url.is_empty() {
        let backend = match args.backend {
            Kind::Postgres => "postgres",
            Kind::Sqlite => "sqlite",
        };
        format!("{} gateways, {} workers, {backend}", args.gateways, args.workers)
    } else {
        args.url.join(" ")
    };
    let load = match (args.mode, args.rate) {
        (Mode::Idle, _) => format!("{} idle connections", args.connections),
        (mode, rate) => {
            let mode = if mode == Mode::Cycle { "full cycles" } else { "new only" };
            let pace = match rate {
                Some(rate) => format!("open loop at {rate}/s"),
                None => format!("closed loop with {} in flight", args.in_flight),
            };
            format!("{mode}, {} pairs, {pace}, {} bytes", args.pairs, args.size)
        }
    };
    format!("{load}; {target}")
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}\n", self.what)?;
        match &self.outcome {
            Outcome::Traffic(traffic) => traffic.fmt(f)?,
            Outcome::Idle(idle) => idle.fmt(f)?,
        }
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        writeln!(f, "\n{}", if self.clean { "clean" } else { "NOT CLEAN: see above" })
    }
}

impl Display for Traffic {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let rate = ratio(self.completed_in_window, self.window_seconds);
        writeln!(
            f,
            "{rate:.0} messages/s: {} completed in {:.2} s ({} sent); in all {} sent, {} completed",
            self.completed_in_window,
            self.window_seconds,
            self.sent_in_window,
            self.sent,
            self.completed,
        )?;
        writeln!(
            f,
            "{:.0} logins/s: {} in {:.2} s\n",
            self.logins.per_second(),
            self.logins.count,
            self.logins.seconds
        )?;
        writeln!(
            f,
            "{:<20}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "latency, ms", "p50", "p95", "p99", "max", "count"
        )?;
        for (name, latency) in &self.latencies {
            let [p50, p95, p99, max] =
                [latency.p50_us, latency.p95_us, latency.p99_us, latency.max_us]
                    .map(|micros| ratio(micros, 1000.0));
            let count = latency.count;
            writeln!(f, "{name:<20}{p50:>10.2}{p95:>10.2}{p99:>10.2}{max:>10.2}{count:>10}")?;
        }
        writeln!(f, "\n{:<20}{:>14}{:>10}{:>14}", "process", "CPU us/msg", "cores", "memory, MB")?;
        let messages = ratio(self.completed_in_window, 1.0);
        for process in &self.processes {
            row(f, process, messages, self.window_seconds)?;
        }
        let total = Process {
            name: "all".into(),
            cpu_us: self.processes.iter().map(|process| process.cpu_us).sum(),
            memory_before: 0,
            memory_after: self.processes.iter().map(|process| process.memory_after).sum(),
        };
        row(f, &total, messages, self.window_seconds)?;
        writeln!(f)?;
        let faults = self.faults.rows();
        let faults: Vec<_> = faults.iter().filter(|(_, count)| *count > 0).collect();
        if faults.is_empty() {
            writeln!(f, "nothing lost, doubled, out of order or unanswered")?;
        }
        for (what, count) in faults {
            writeln!(f, "{what:<42}{count:>10}")?;
        }
        if self.errors.is_empty() {
            writeln!(f, "no error responses")?;
        }
        for (code, errors) in &self.errors {
            let (what, count) = (format!("error response {code}"), errors.count);
            writeln!(f, "{what:<42}{count:>10}  first: {}", errors.first)?;
        }
        for (why, count) in &self.endings {
            writeln!(f, "{count} sessions ended: {why}")?;
        }
        Ok(())
    }
}

fn row(f: &mut Formatter<'_>, process: &Process, messages: f64, seconds: f64) -> fmt::Result {
    writeln!(
        f,
        "{:<20}{:>14.1}{:>10.2}{:>14.1}",
        process.name,
        ratio(process.cpu_us, messages),
        ratio(process.cpu_us, seconds * 1e6),
        megabytes(process.memory_after),
    )
}

impl Display for Idle {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (logins, count) = (&self.logins, ratio(self.logins.count, 1.0));
        writeln!(
            f,
            "{:.0} logins/s: {} in {:.2} s; settled for {:.1} s\n",
            logins.per_second(),
            logins.count,
            logins.seconds,
            self.settle_seconds
        )?;
        writeln!(
            f,
            "{:<20}{:>12}{:>12}{:>14}{:>16}{:>12}",
            "process", "before, MB", "after, MB", "bytes/conn", "CPU us/login", "idle cores"
        )?;
        let rows = self.settled.iter().zip(&self.logging_in).zip(&self.idle_cpu_seconds);
        for ((settled, logging_in), idle) in rows {
            let grown = settled.memory_after.saturating_sub(settled.memory_before);
            writeln!(
                f,
                "{:<20}{:>12.1}{:>12.1}{:>14.0}{:>16.1}{:>12.3}",
                settled.name,
                megabytes(settled.memory_before),
                megabytes(settled.memory_after),
                ratio(grown, count),
                ratio(logging_in.cpu_us, count),
                idle / self.settle_seconds.max(f64::MIN_POSITIVE),
            )?;
        }
        writeln!(f, "\n{} sessions ended early", self.ended_early)
    }
}

fn megabytes(bytes: u64) -> f64 {
    ratio(bytes, 1e6)
}
