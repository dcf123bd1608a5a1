//! Pairs that write to each other: a closed or an open loop of messages, measured for a while.

use std::time::Instant;

use anyhow::{Context as _, Result};
use tokio::time::sleep;

use super::{
    args::Args,
    chat::{self, Chat, LOOK},
    report::{Process, Traffic},
    shared::Pair,
    stats::Span,
    target::Target,
    usage::{self, Usage, Watched},
};

/// Puts the load on the gateways and measures.
///
/// # Errors
/// If the users can't connect or a measured process is gone.
pub async fn run(args: &Args, target: &Target) -> Result<Traffic> {
    run_with(args, target, chat::pairs(args)).await
}

/// The same with these pairs.
///
/// # Errors
/// If the users can't connect or a measured process is gone.
pub async fn run_with(args: &Args, target: &Target, pairs: Vec<Pair>) -> Result<Traffic> {
    let chat = Chat::begin(args, target, pairs).await?;
    let (before, after) = drive(args, &chat, &target.processes).await?;
    let processes = Process::of_all(&target.processes, &before, &after);
    let (shared, logins) = (chat.shared.clone(), chat.logins);
    let faults = chat.end().await?;
    let stats = shared.stats();
    let window = stats.windows().first().context("nothing was measured")?;
    let mut latencies = vec![
        ("send -> response", window.latency(Span::Response)),
        ("send -> event", window.latency(Span::Event)),
        ("send -> event, steady", window.steady()),
    ];
    if shared.with_receipts {
        latencies.push(("send -> receipt", window.latency(Span::Receipt)));
    }
    if args.rate.is_some() {
        latencies.insert(0, ("due -> send", window.latency(Span::Lag)));
    }
    Ok(Traffic {
        window_seconds: window.length().as_secs_f64(),
        sent: stats.sent,
        completed: stats.completed,
        sent_in_window: window.sent,
        completed_in_window: window.completed,
        delivered_in_window: window.delivered,
        devices: args.devices,
        logins,
        latencies,
        processes,
        faults,
        errors: stats.errors.clone(),
        endings: stats.endings.clone(),
    })
}

/// Warms up and measures; what the processes used before and after the window.
async fn drive(args: &Args, chat: &Chat, watched: &[Watched]) -> Result<(Vec<Usage>, Vec<Usage>)> {
    let shared = &chat.shared;
    sleep(args.warmup).await;
    if args.messages.is_some() {
        // None of the warm-up's messages may count.
        shared.stop_sending();
        chat.settle().await;
    }
    let before = usage::all(watched)?;
    shared.stats().begin(Instant::now())?;
    match args.messages {
        Some(messages) => {
            shared.start_sending(messages);
            chat.pairs.iter().for_each(|pair| pair.wake.notify_one());
            while shared.is_sending() && !chat.is_deserted() {
                sleep(LOOK).await;
            }
            chat.settle().await;
        }
        None => sleep(args.seconds).await,
    }
    shared.stats().end(Instant::now());
    let after = usage::all(watched)?;
    Ok((before, after))
}
