//! The result as a table for people.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
};

use super::{Figure, Idle, Measured, Outcome, Process, Report, Traffic, figure, ratio};
use crate::load::{
    args::{Args, Kind, Mode},
    faults::Faults,
    stats::Errors,
};

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
    let pace = match args.rate {
        Some(rate) => format!("open loop at {rate}/s"),
        None => format!("closed loop with {} in flight", args.in_flight),
    };
    let devices = match args.devices {
        1 => String::new(),
        devices => format!(" to {devices} devices each"),
    };
    let chat = format!("{} pairs{devices}, {pace}, {} bytes", args.pairs, args.size);
    let (connections, events) = (args.connections, args.events);
    let load = match args.mode {
        Mode::Cycle => format!("full cycles, {chat}"),
        Mode::New => format!("new only, {chat}"),
        Mode::Idle => format!("{connections} idle connections"),
        Mode::Storm => format!("{connections} logins"),
        Mode::Reconnect => format!("{connections} devices reconnect to {events} events each"),
        Mode::CatchUp => format!("{connections} devices come back to {events} events each"),
        Mode::Backlog => format!(
            "{} requests in {} chats, {} a message, wait for workers",
            args.frames, args.pairs, args.bundle
        ),
        Mode::GrowthUsers => format!("{:?} connected users, {} bytes", args.steps(), args.size),
        Mode::GrowthChat => format!("{:?} messages in the chat", args.steps()),
        Mode::Tracing => {
            format!("full cycles, {} of them traced and none in turn, {chat}", args.ratio)
        }
    };
    let aside = match (args.mode, args.rate) {
        (Mode::Storm | Mode::Reconnect | Mode::CatchUp, Some(_)) => format!(", beside {chat}"),
        _ => String::new(),
    };
    format!("{load}{aside}; {target}")
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}\n", self.what)?;
        match &self.outcome {
            Outcome::Traffic(traffic) => traffic.fmt(f)?,
            Outcome::Idle(idle) => idle.fmt(f)?,
            Outcome::Measured(measured) => measured.fmt(f)?,
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
            "{:<24}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "latency, ms", "p50", "p95", "p99", "max", "count"
        )?;
        for (name, latency) in &self.latencies {
            let [p50, p95, p99, max] =
                [latency.p50_us, latency.p95_us, latency.p99_us, latency.max_us]
                    .map(|micros| ratio(micros, 1000.0));
            let count = latency.count;
            writeln!(f, "{name:<24}{p50:>10.2}{p95:>10.2}{p99:>10.2}{max:>10.2}{count:>10}")?;
        }
        processes(f, &self.processes, (self.completed_in_window, "msg"), self.window_seconds)?;
        if self.devices > 1 {
            let server = figure::server_cpu(&self.processes);
            writeln!(
                f,
                "{} events delivered, to {} devices each: {:.1} us of server CPU an event",
                self.delivered_in_window,
                self.devices,
                ratio(server, ratio(self.delivered_in_window, 1.0)),
            )?;
        }
        writeln!(f)?;
        wrongs(f, &self.faults, &self.errors, &self.endings)
    }
}

impl Display for Measured {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for Figure { name, value, unit } in &self.figures {
            writeln!(f, "{name:<40}{value:>14.2} {unit}")?;
        }
        if self.per.0 > 0 {
            processes(f, &self.processes, self.per, self.seconds)?;
        }
        writeln!(f)?;
        wrongs(f, &self.faults, &self.errors, &self.endings)
    }
}

/// What each process used, for each of so many and in all.
fn processes(
    f: &mut Formatter<'_>,
    processes: &[Process],
    (count, unit): (u64, &str),
    seconds: f64,
) -> fmt::Result {
    let cpu = format!("CPU us/{unit}");
    writeln!(f, "\n{:<20}{cpu:>16}{:>10}{:>14}", "process", "cores", "memory, MB")?;
    let total = Process {
        name: "all".into(),
        cpu_us: processes.iter().map(|process| process.cpu_us).sum(),
        memory_before: 0,
        memory_after: processes.iter().map(|process| process.memory_after).sum(),
    };
    for process in processes.iter().chain([&total]) {
        row(f, process, ratio(count, 1.0), seconds)?;
    }
    Ok(())
}

fn wrongs(
    f: &mut Formatter<'_>,
    faults: &Faults,
    errors: &BTreeMap<String, Errors>,
    endings: &BTreeMap<String, u64>,
) -> fmt::Result {
    let faults = faults.rows();
    let faults: Vec<_> = faults.iter().filter(|(_, count)| *count > 0).collect();
    if faults.is_empty() {
        writeln!(f, "nothing lost, doubled, out of order or unanswered")?;
    }
    for (what, count) in faults {
        writeln!(f, "{what:<42}{count:>10}")?;
    }
    if errors.is_empty() {
        writeln!(f, "no error responses")?;
    }
    for (code, errors) in errors {
        let (what, count) = (format!("error response {code}"), errors.count);
        writeln!(f, "{what:<42}{count:>10}  first: {}", errors.first)?;
    }
    for (why, count) in endings {
        writeln!(f, "{count} sessions ended: {why}")?;
    }
    Ok(())
}

fn row(f: &mut Formatter<'_>, process: &Process, messages: f64, seconds: f64) -> fmt::Result {
    writeln!(
        f,
        "{:<20}{:>16.1}{:>10.2}{:>14.1}",
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
