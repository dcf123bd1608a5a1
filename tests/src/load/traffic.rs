//! Pairs that write to each other: a closed or an open loop of messages.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::{task::JoinSet, time::sleep};

use super::{
    args::{Args, Mode},
    connection::Connection,
    faults::Faults,
    pace::Pace,
    recipient,
    report::{Logins, Process, Traffic},
    sender,
    shared::{Pair, Shared},
    stats::{Latency, Span},
    usage::{self, Usage, Watched},
};

/// How often it is looked whether a phase is over.
const LOOK: Duration = Duration::from_millis(10);

/// Puts the load on the gateways and measures.
///
/// # Errors
/// If the users can't connect or a measured process is gone.
pub async fn run(args: &Args, urls: &[String], watched: &[Watched]) -> Result<Traffic> {
    let size = usize::try_from(args.size)?;
    let shared = Arc::new(Shared::new(args.mode == Mode::Cycle, size)?);
    let name = format!("{:08x}", fastrand::u32(..));
    let pairs: Vec<Arc<Pair>> = (0..args.pairs)
        .map(|number| Arc::new(Pair::new(&name, number, shared.with_receipts)))
        .collect();
    let begun = Instant::now();
    let connections = connect(args, urls, &pairs).await?;
    let logins = Logins::new(2 * u64::from(args.pairs), begun.elapsed());
    eprintln!("connected {} users in {:.2} s", logins.count, logins.seconds);

    let mut tasks = JoinSet::new();
    let start = Instant::now();
    for ((number, pair), (sending, receiving)) in (0..).zip(&pairs).zip(connections) {
        let pace = match args.rate {
            Some(rate) => Pace::open(start, rate, number, args.pairs),
            None => Pace::closed(usize::try_from(args.in_flight)?),
        };
        tasks.spawn(recipient::run(shared.clone(), pair.clone(), receiving));
        tasks.spawn(sender::run(shared.clone(), pair.clone(), sending, pace));
    }
    let progress = tokio::spawn(progress(shared.clone(), pairs.clone()));
    let driver = Driver { args, shared: &shared, pairs: &pairs, watched };
    let (before, after) = driver.drive().await?;
    progress.abort();
    shared.stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }

    let mut faults = *shared.faults();
    for pair in &pairs {
        faults += pair.take_ledger().close();
    }
    Ok(outcome(args, &shared, logins, faults, &processes(watched, &before, &after)))
}

/// The connections of each pair, each user on the next gateway.
async fn connect(
    args: &Args,
    urls: &[String],
    pairs: &[Arc<Pair>],
) -> Result<Vec<(Connection, Connection)>> {
    let url = |number: usize| urls.get(number % urls.len().max(1)).context("no gateway");
    let logins = pairs.iter().enumerate().map(async |(number, pair)| {
        let sender = Connection::login(url(number)?, &pair.sender);
        let recipient = Connection::login(url(number + 1)?, &pair.recipient);
        tokio::try_join!(sender, recipient)
    });
    stream::iter(logins).buffered(usize::from(args.logins).div_ceil(2)).try_collect().await
}

struct Driver<'a> {
    args: &'a Args,
    shared: &'a Shared,
    pairs: &'a [Arc<Pair>],
    watched: &'a [Watched],
}

impl Driver<'_> {
    /// Warms up, measures, and waits for what is on its way; what the processes used before and after the window.
    async fn drive(&self) -> Result<(Vec<Usage>, Vec<Usage>)> {
        sleep(self.args.warmup).await;
        if self.args.messages.is_some() {
            // None of the warm-up's messages may count.
            self.shared.stop_sending();
            self.settle().await;
        }
        let before = usage::all(self.watched)?;
        self.shared.stats().begin(Instant::now());
        match self.args.messages {
            Some(messages) => {
                self.shared.start_sending(messages);
                self.pairs.iter().for_each(|pair| pair.wake.notify_one());
                while self.shared.is_sending() && !self.is_deserted() {
                    sleep(LOOK).await;
                }
                self.settle().await;
            }
            None => sleep(self.args.seconds).await,
        }
        self.shared.stats().end(Instant::now());
        let after = usage::all(self.watched)?;
        self.shared.stop_sending();
        self.settle().await;
        Ok((before, after))
    }

    /// Waits until nothing is on its way, as long as there is something to hope for.
    async fn settle(&self) {
        let (mut hope, mut completed) = (Instant::now() + self.args.patience, 0);
        while Instant::now() < hope && !self.pairs.iter().all(|pair| pair.ledger().is_settled()) {
            sleep(LOOK).await;
            let now_completed = self.shared.stats().completed;
            if now_completed > completed {
                (hope, completed) = (Instant::now() + self.args.patience, now_completed);
            }
        }
    }

    /// Whether no session is left that could send.
    fn is_deserted(&self) -> bool {
        self.shared.faults().ended_sessions >= u64::from(self.args.pairs)
    }
}

/// Says each second how it goes.
async fn progress(shared: Arc<Shared>, pairs: Vec<Arc<Pair>>) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.tick().await;
    let (mut sent, mut completed) = (0, 0);
    for seconds in 1.. {
        second.tick().await;
        let open: usize = pairs.iter().map(|pair| pair.ledger().open()).sum();
        let stats = shared.stats();
        eprintln!(
            "{seconds:4} s  sent {:6}/s  complete {:6}/s  open {open:6}  p50 {:8.2} ms  errors {}",
            stats.sent - sent,
            stats.completed - completed,
            millis(stats.latency(if shared.with_receipts { Span::Receipt } else { Span::Event })),
            stats.errors.values().map(|errors| errors.count).sum::<u64>(),
        );
        (sent, completed) = (stats.sent, stats.completed);
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn millis(latency: Latency) -> f64 {
    latency.p50_us as f64 / 1000.0
}

fn processes(watched: &[Watched], before: &[Usage], after: &[Usage]) -> Vec<Process> {
    watched
        .iter()
        .zip(before.iter().zip(after))
        .map(|(watched, (before, after))| Process::new(&watched.name, *before, *after))
        .collect()
}

fn outcome(
    args: &Args,
    shared: &Shared,
    logins: Logins,
    faults: Faults,
    processes: &[Process],
) -> Traffic {
    let stats = shared.stats();
    let mut latencies = vec![
        ("send -> response", stats.latency(Span::Response)),
        ("send -> event", stats.latency(Span::Event)),
    ];
    if shared.with_receipts {
        latencies.push(("send -> receipt", stats.latency(Span::Receipt)));
    }
    if args.rate.is_some() {
        latencies.insert(0, ("due -> send", stats.latency(Span::Lag)));
    }
    Traffic {
        window_seconds: stats.window().as_secs_f64(),
        sent: stats.sent,
        completed: stats.completed,
        sent_in_window: stats.sent_in_window,
        completed_in_window: stats.completed_in_window,
        logins,
        latencies,
        processes: processes.to_vec(),
        faults,
        errors: stats.errors.clone(),
        endings: stats.endings.clone(),
    }
}
