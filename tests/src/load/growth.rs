//! What a message costs when more and more users are connected, or more and more messages lie in its chat.

use anyhow::{Context as _, Result};

use super::{
    args::Args,
    chat, history,
    report::{
        Measured, Traffic,
        figure::{self, Figure},
    },
    shared::Pair,
    target::Target,
    traffic,
};

/// Messages a second unless `--rate` says otherwise: the same at each step, for a busier service bundles more.
const RATE: f64 = 2000.0;
/// The same in one chat: below a session's rate limit.
const RATE_OF_A_CHAT: f64 = 500.0;

/// The same load with more and more users, all of whom chat.
///
/// # Errors
/// As [`traffic::run`].
pub async fn users(args: &Args, target: &Target) -> Result<Measured> {
    let mut measured = Measured::default();
    let mut costs = Vec::new();
    for users in args.steps() {
        let rate = Some(args.rate.unwrap_or(RATE));
        let args = Args { pairs: users.div_ceil(2).max(1), rate, ..args.clone() };
        let traffic = traffic::run(&args, target).await?;
        costs.push(step(&mut measured, &format!("{users} users"), traffic));
    }
    compare(&mut measured, &costs);
    Ok(measured)
}

/// The same load on a chat that holds more and more messages already.
///
/// # Errors
/// As [`traffic::run`], or if the database can't be filled.
pub async fn chat(args: &Args, target: &Target, database_url: &str) -> Result<Measured> {
    let mut measured = Measured::default();
    let mut costs = Vec::new();
    for messages in args.steps() {
        let rate = Some(args.rate.unwrap_or(RATE_OF_A_CHAT));
        let args = Args { pairs: 1, rate, ..args.clone() };
        let pair = chat::pairs(&args).pop().context("no pair")?;
        let text = "x".repeat(usize::try_from(args.size)?);
        let (sender, recipient) = (&pair.sender, &pair.recipient);
        Box::pin(history::write(database_url, sender, recipient, messages, &text)).await?;
        let pair = Pair::after(pair, u64::from(messages));
        let traffic = traffic::run_with(&args, target, vec![pair]).await?;
        costs.push(step(&mut measured, &format!("{messages} messages"), traffic));
    }
    compare(&mut measured, &costs);
    Ok(measured)
}

/// Adds a step to the result; what a message has cost in it.
fn step(measured: &mut Measured, name: &str, traffic: Traffic) -> f64 {
    let messages = figure::number(traffic.completed_in_window).max(1.0);
    let cost = figure::number(figure::server_cpu(&traffic.processes)) / messages;
    let rate = messages / traffic.window_seconds.max(1e-9);
    measured.figures.push(Figure::new(format!("{name}: server CPU"), cost, "us/message"));
    measured.figures.push(Figure::new(format!("{name}: messages"), rate, "/s"));
    for (span, latency) in &traffic.latencies {
        measured.figures.extend(figure::percentiles(&format!("{name}: {span}"), latency));
    }
    for process in &traffic.processes {
        let each = figure::number(process.cpu_us) / messages;
        let name = format!("{name}: {} CPU", process.name);
        measured.figures.push(Figure::new(name, each, "us/message"));
    }
    measured.faults += traffic.faults;
    measured.errors.extend(traffic.errors);
    measured.endings.extend(traffic.endings);
    cost
}

fn compare(measured: &mut Measured, costs: &[f64]) {
    if let ([first, ..], [.., last]) = (costs, costs)
        && *first > 0.0
    {
        let ratio = Figure::new("server CPU, last step / first", last / first, "times");
        measured.figures.push(ratio);
    }
}
