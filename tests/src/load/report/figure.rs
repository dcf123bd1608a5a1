//! The few numbers of a run that matter: what two runs are compared by.

use serde::{Deserialize, Serialize};

use super::{Idle, Measured, Process, Traffic, ratio};
use crate::load::stats::Latency;

/// A number and what it says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What it says.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: String,
}

impl Figure {
    /// A number.
    pub fn new(name: impl Into<String>, value: f64, unit: &str) -> Self {
        Self { name: name.into(), value, unit: unit.to_owned() }
    }

    /// A count.
    pub fn count(name: impl Into<String>, count: u64, unit: &str) -> Self {
        Self::new(name, number(count), unit)
    }
}

/// A count or a number of bytes as a number to reckon with.
pub fn number(count: u64) -> f64 {
    ratio(count, 1.0)
}

/// The generator itself costs what it costs: it is no part of the service.
const GENERATOR: &str = "load";

/// The processor time of the service's processes in microseconds.
pub fn server_cpu(processes: &[Process]) -> u64 {
    let service = processes.iter().filter(|process| process.name != GENERATOR);
    service.map(|process| process.cpu_us).sum()
}

/// Median, 99th percentile and maximum, if there is anything.
pub fn percentiles(name: &str, latency: &Latency) -> Vec<Figure> {
    let parts = [("p50", latency.p50_us), ("p99", latency.p99_us), ("max", latency.max_us)];
    let figure = |(part, micros)| Figure::new(format!("{name} {part}"), ratio(micros, 1e3), "ms");
    if latency.count == 0 { Vec::new() } else { parts.map(figure).into() }
}

/// The processor time of each process, and of the service in all, for each of so many.
pub fn cpu(processes: &[Process], count: u64, unit: &str) -> Vec<Figure> {
    let each = |name: &str, cpu: u64| {
        Figure::new(format!("{name} CPU"), ratio(cpu, number(count)), &format!("us/{unit}"))
    };
    let all = each("server", server_cpu(processes));
    processes.iter().map(|process| each(&process.name, process.cpu_us)).chain([all]).collect()
}

impl Traffic {
    /// What matters.
    pub fn figures(&self) -> Vec<Figure> {
        let rate = ratio(self.completed_in_window, self.window_seconds);
        let mut figures = vec![Figure::new("messages", rate, "/s")];
        for (name, latency) in &self.latencies {
            figures.extend(percentiles(name, latency));
        }
        figures.extend(cpu(&self.processes, self.completed_in_window, "message"));
        if self.devices > 1 {
            let rate = ratio(self.delivered_in_window, self.window_seconds);
            figures.push(Figure::new("events delivered", rate, "/s"));
            let events = number(self.delivered_in_window);
            let cost = ratio(server_cpu(&self.processes), events);
            figures.push(Figure::new("server CPU of an event", cost, "us"));
        }
        for process in &self.processes {
            let (name, bytes) = (&process.name, process.memory_after);
            figures.push(Figure::new(format!("{name} memory"), ratio(bytes, 1e6), "MB"));
        }
        figures.push(Figure::new("logins", self.logins.per_second(), "/s"));
        figures
    }
}

impl Idle {
    /// What matters.
    pub fn figures(&self) -> Vec<Figure> {
        let connections = number(self.logins.count);
        let mut figures = vec![Figure::new("logins", self.logins.per_second(), "/s")];
        for process in &self.settled {
            let grown = process.memory_after.saturating_sub(process.memory_before);
            let name = format!("{} memory", process.name);
            figures.push(Figure::new(name, ratio(grown, connections), "bytes/connection"));
        }
        figures.extend(cpu(&self.logging_in, self.logins.count, "login"));
        figures
    }
}

impl Measured {
    /// What matters.
    pub fn figures(&self) -> Vec<Figure> {
        let (count, unit) = self.per;
        let mut figures = self.figures.clone();
        if count > 0 {
            figures.extend(cpu(&self.processes, count, unit));
        }
        figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(name: &str, cpu_us: u64) -> Process {
        Process { name: name.into(), cpu_us, memory_before: 0, memory_after: 0 }
    }

    #[test]
    fn the_generator_is_no_part_of_what_the_service_costs() {
        let figures = cpu(&[process("gateway", 300), process("load", 900)], 10, "message");
        let values: Vec<(&str, f64)> =
            figures.iter().map(|figure| (figure.name.as_str(), figure.value)).collect();
        assert_eq!(values, [("gateway CPU", 30.0), ("load CPU", 90.0), ("server CPU", 30.0)]);
        assert_eq!(figures[0].unit, "us/message");
    }

    #[test]
    fn what_never_happened_has_no_percentiles() {
        assert!(percentiles("x", &Latency::of_all([]).unwrap()).is_empty());
        let latency = Latency::of_all([std::time::Duration::from_millis(7)]).unwrap();
        let figures = percentiles("x", &latency);
        assert_eq!((figures[1].name.as_str(), figures[1].value.round()), ("x p99", 7.0));
    }
}
