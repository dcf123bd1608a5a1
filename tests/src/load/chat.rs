//! Pairs of users who write to each other for as long as a run needs them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::sleep,
};

use super::{
    args::{Args, Mode},
    connection::Connection,
    faults::Faults,
    listener,
    login::Entrances,
    metronome,
    pace::Pace,
    recipient,
    report::Logins,
    sender,
    shared::{Pair, Shared},
    stats::Span,
    target::Target,
};

/// How often it is looked whether a phase is over.
pub const LOOK: Duration = Duration::from_millis(10);

/// Pairs that are connected and write.
pub struct Chat {
    /// What they share.
    pub shared: Arc<Shared>,
    /// Who they are.
    pub pairs: Vec<Arc<Pair>>,
    /// How fast they came in.
    pub logins: Logins,
    tasks: JoinSet<()>,
    progress: JoinHandle<()>,
    patience: Duration,
}

/// The connections of a pair.
struct Connected {
    sending: Connection,
    receiving: Connection,
    listening: Vec<Connection>,
}

/// A name that no other run has.
pub fn run_name() -> String {
    format!("{:08x}", fastrand::u32(..))
}

/// Whether recipients report what they have received.
fn with_receipts(args: &Args) -> bool {
    args.mode != Mode::New
}

/// So many pairs of new users.
pub fn pairs(args: &Args) -> Vec<Pair> {
    let name = run_name();
    let listeners = args.devices.saturating_sub(1);
    (0..args.pairs).map(|number| Pair::new(&name, number, with_receipts(args), listeners)).collect()
}

impl Chat {
    /// Connects the pairs and lets them begin.
    ///
    /// # Errors
    /// If the users can't connect.
    pub async fn begin(args: &Args, target: &Target, pairs: Vec<Pair>) -> Result<Self> {
        let size = usize::try_from(args.size)?;
        let shared = Arc::new(Shared::new(with_receipts(args), size, target.slowdowns.clone()));
        let pairs: Vec<Arc<Pair>> = pairs.into_iter().map(Arc::new).collect();
        let begun = Instant::now();
        let connections = connect(args, &target.urls, &pairs).await?;
        let devices = u64::from(args.devices) + 1;
        let logins = Logins::new(u64::try_from(pairs.len())? * devices, begun.elapsed());
        eprintln!("connected {} devices in {:.2} s", logins.count, logins.seconds);

        let mut tasks = JoinSet::new();
        let (start, count) = (Instant::now(), u32::try_from(pairs.len())?);
        for ((number, pair), connected) in (0..).zip(&pairs).zip(connections) {
            let pace = match args.rate {
                Some(rate) => Pace::open(start, rate, number, count),
                None => Pace::closed(usize::try_from(args.in_flight)?),
            };
            let Connected { sending, receiving, listening } = connected;
            tasks.spawn(recipient::run(shared.clone(), pair.clone(), receiving));
            for connection in listening {
                tasks.spawn(listener::run(shared.clone(), pair.clone(), connection));
            }
            tasks.spawn(sender::run(shared.clone(), pair.clone(), sending, pace));
        }
        if let Some(rate) = args.rate {
            metronome::start(start, rate, shared.clone(), pairs.clone())?;
        }
        let progress = tokio::spawn(progress(shared.clone(), pairs.clone()));
        Ok(Self { shared, pairs, logins, tasks, progress, patience: args.patience })
    }

    /// Waits until nothing is on its way, as long as there is something to hope for.
    pub async fn settle(&self) {
        let (mut hope, mut completed) = (Instant::now() + self.patience, 0);
        while Instant::now() < hope && !self.pairs.iter().all(|pair| pair.is_settled()) {
            sleep(LOOK).await;
            let now_completed = self.shared.stats().completed;
            if now_completed > completed {
                (hope, completed) = (Instant::now() + self.patience, now_completed);
            }
        }
    }

    /// Whether no session is left that could send.
    pub fn is_deserted(&self) -> bool {
        let pairs = u64::try_from(self.pairs.len()).unwrap_or(u64::MAX);
        self.shared.faults().ended_sessions >= pairs
    }

    /// Lets what is on its way end, and everyone go. Returns all that was wrong.
    ///
    /// # Errors
    /// If one of the tasks has panicked.
    pub async fn end(mut self) -> Result<Faults> {
        self.shared.stop_sending();
        self.settle().await;
        self.progress.abort();
        self.shared.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended?;
        }
        let mut faults = *self.shared.faults();
        for pair in &self.pairs {
            faults += pair.close();
        }
        Ok(faults)
    }
}

/// The connections of each pair.
async fn connect(args: &Args, urls: &[String], pairs: &[Arc<Pair>]) -> Result<Vec<Connected>> {
    let devices = usize::from(args.devices);
    let entrances = Arc::new(Entrances::new(args.most_connections(), urls));
    let logins: Vec<_> = pairs
        .iter()
        .enumerate()
        .map(|(number, pair)| connect_pair(entrances.clone(), number, pair.clone(), devices))
        .collect();
    stream::iter(logins).buffered(args.logins()).try_collect().await
}

/// A pair's connections, each device on the next gateway.
async fn connect_pair(
    entrances: Arc<Entrances>,
    number: usize,
    pair: Arc<Pair>,
    devices: usize,
) -> Result<Connected> {
    let first = number * (devices + 1) + number % 2;
    let come_in = async |offset: usize, user: &str, device: &str| {
        let login = entrances.login(first + offset, user, device)?;
        anyhow::Ok(login.come_in().await?.connection)
    };
    let sending = come_in(0, &pair.sender, "default").await?;
    let receiving = come_in(1, &pair.recipient, "default").await?;
    let mut listening = Vec::new();
    for device in 1..devices {
        listening.push(come_in(1 + device, &pair.recipient, &format!("device-{device}")).await?);
    }
    Ok(Connected { sending, receiving, listening })
}

/// Says each second how it goes.
async fn progress(shared: Arc<Shared>, pairs: Vec<Arc<Pair>>) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.tick().await;
    let span = if shared.with_receipts { Span::Receipt } else { Span::Event };
    let (mut sent, mut completed) = (0, 0);
    for seconds in 1.. {
        second.tick().await;
        let open: usize = pairs.iter().map(|pair| pair.ledger().open()).sum();
        let stats = shared.stats();
        let p50 = stats.windows().last().map_or(0, |window| window.latency(span).p50_us);
        eprintln!(
            "{seconds:4} s  sent {:6}/s  complete {:6}/s  open {open:6}  p50 {:8.2} ms  errors {}",
            stats.sent - sent,
            stats.completed - completed,
            Duration::from_micros(p50).as_secs_f64() * 1e3,
            stats.errors.values().map(|errors| errors.count).sum::<u64>(),
        );
        (sent, completed) = (stats.sent, stats.completed);
    }
}
