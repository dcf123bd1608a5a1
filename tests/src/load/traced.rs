//! What tracing costs: the same load in turn on a Herald that traces and on one that does not, within one run. A machine
//! that others use changes its speed from minute to minute; what is compared are turns that follow each other.

use anyhow::Result;

use super::{
    args::Args,
    parts::Parts,
    report::{
        Measured, Process, Traffic,
        figure::{self, Figure},
    },
    slowdown::Slowdowns,
    stats::Errors,
    target::Target,
    traffic,
};
use crate::otlp::Receiver;

/// What a message costs in one turn, in microseconds of processor time.
#[derive(Debug, Clone, Copy)]
struct Cost {
    /// Of the gateways and workers.
    programs: f64,
    /// Of the broker and the database, which tracing gives nothing to do: how fast the machine is just now.
    others: f64,
}

/// Puts the load on `untraced` and on another Herald like it, which sends its spans to this process by HTTP, in turn.
/// Returns what is worth knowing of that one, too.
///
/// # Errors
/// As [`traffic::run`].
pub async fn run(
    args: &Args,
    untraced: &Parts,
    slowdowns: &Slowdowns,
) -> Result<(Measured, Vec<String>)> {
    let receiver = Receiver::start().await?;
    let mut with_traces = args.clone();
    with_traces.gateway_flag.extend(receiver.http_flags());
    with_traces.gateway_flag.push(format!("--trace-ratio={}", args.ratio));
    with_traces.worker_flag.extend(receiver.http_flags());
    let traced = Box::pin(Parts::start(&with_traces)).await?;

    let mut measured = Measured::default();
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..args.rounds.get() {
        let mut turns = [(untraced, &mut without), (&traced, &mut with)];
        if round % 2 == 1 {
            // What follows what must not matter.
            turns.reverse();
        }
        for (parts, costs) in turns {
            let traffic =
                traffic::run(args, &Target::new(args, Some(parts), slowdowns.clone())).await?;
            costs.push(Cost::of(&traffic));
            measured.faults += traffic.faults;
            for (code, errors) in traffic.errors {
                let of_all = measured.errors.entry(code).or_insert(Errors { count: 0, ..errors });
                of_all.count += errors.count;
            }
            measured.endings.extend(traffic.endings);
        }
    }
    measured.figures = figures(&without, &with);
    let spans = u64::try_from(receiver.spans().all().len())?;
    measured.figures.push(Figure::count("spans received, the latest", spans, "spans"));
    Ok((measured, traced.stop().await?))
}

impl Cost {
    fn of(traffic: &Traffic) -> Self {
        let is_ours = |process: &&Process| process.name.starts_with("herald-");
        let ours: u64 = traffic.processes.iter().filter(is_ours).map(|own| own.cpu_us).sum();
        let others = figure::server_cpu(&traffic.processes) - ours;
        let messages = figure::number(traffic.completed_in_window).max(1.0);
        Self {
            programs: figure::number(ours) / messages,
            others: figure::number(others) / messages,
        }
    }

    fn all(self) -> f64 {
        self.programs + self.others
    }
}

/// The medians of the turns, and of what tracing adds in each pair of them.
fn figures(without: &[Cost], with: &[Cost]) -> Vec<Figure> {
    let cost = |name: &str, costs: &[Cost], of: fn(Cost) -> f64| {
        let median = median(costs.iter().map(|cost| of(*cost)).collect());
        Figure::new(name, median, "us/message")
    };
    let added = |name: &str, of: fn(Cost, Cost) -> f64| {
        let pairs = without.iter().zip(with);
        Figure::new(name, median(pairs.map(|(off, on)| of(*off, *on) * 100.0).collect()), "%")
    };
    vec![
        cost("not traced: server CPU", without, Cost::all),
        cost("traced: server CPU", with, Cost::all),
        cost("not traced: gateways and workers", without, |cost| cost.programs),
        cost("traced: gateways and workers", with, |cost| cost.programs),
        added("tracing adds, of all", |off, on| on.all() / off.all() - 1.0),
        // Measured by what the others took in the same turn: that takes the machine's changes of speed out.
        added("the same, by the others' time", |off, on| {
            (on.programs / on.others - off.programs / off.others) * off.others / off.all()
        }),
    ]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let at = |place: usize| values.get(place).copied().unwrap_or(0.0);
    if values.len() % 2 == 1 {
        at(middle)
    } else {
        f64::midpoint(at(middle.saturating_sub(1)), at(middle))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tracing_adds_is_told_whatever_the_machines_speed() {
        let cost = |programs, others| Cost { programs, others };
        // The second pair ran on a machine half as fast, and half of a turn of the third one did.
        let without = [cost(50.0, 50.0), cost(100.0, 100.0), cost(50.0, 50.0)];
        let with = [cost(55.0, 50.0), cost(110.0, 100.0), cost(82.5, 75.0)];
        let figures = figures(&without, &with);
        let of = |name: &str| figures.iter().find(|figure| figure.name == name).unwrap().value;
        assert!((of("tracing adds, of all") - 5.0).abs() < 1e-9);
        assert!((of("the same, by the others' time") - 5.0).abs() < 1e-9);
        assert!((of("not traced: server CPU") - 100.0).abs() < 1e-9);
    }

    #[test]
    fn the_median_lies_in_the_middle() {
        assert!((median(vec![9.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![9.0, 1.0, 2.0, 4.0]) - 3.0).abs() < 1e-9);
        assert!(median(Vec::new()).abs() < 1e-9);
    }
}
