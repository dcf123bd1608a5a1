//! The gateway's life: connect, wait for the topology, serve, drain.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use async_nats::{
    Client,
    jetstream::{Context, context::ContextBuilder},
};
use herald_proto::{
    EventId, UserId, broker, instance,
    link::{Link, dial::Dialer},
    metrics::{Kind, Registry as Metered, nats, otlp, process},
    subject,
    telemetry::Sampler,
    topology::Topology,
};
use tokio::{net::TcpListener, sync::Semaphore, time::MissedTickBehavior};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin,
    auth::Authenticator,
    config::Config,
    contacts::Contacts,
    cursors::Cursors,
    door::Door,
    error::Error,
    leases::Leases,
    log::{EventLog, Reads},
    metrics::{Metrics, Stage},
    presence::{Announcer, Marks, Presence, announcer::TELLING},
    publisher::Publisher,
    registry::Registry,
    routes,
    server::Server,
    session::Shared,
    tap::Tap,
    turns::Rests,
    waiting::Waiting,
};

/// How long what is asked of the broker waits for its answer, requests aside.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(3);
/// How many publishes may wait for their confirmations, requests aside.
const MAX_UNCONFIRMED: usize = 8192;
/// How long sessions that are cut have to store their cursors and say goodbye.
const GOODBYE: Duration = Duration::from_secs(4);
/// How often to look for a topology that no worker has written yet.
const TOPOLOGY_PAUSE: Duration = Duration::from_millis(250);
/// How often to look whether the connection was lost since the last sweep.
const SWEEP_LOOK: Duration = Duration::from_secs(1);
/// The most and the fewest users whose logs are compared in one request.
const SWEEP_MOST: usize = 64;
const SWEEP_FEWEST: usize = 2;
/// How long a request takes for which the broker has all it needs in memory, at most.
const SWEEP_MOMENT: Duration = Duration::from_millis(10);

/// Where a gateway listens.
pub struct Listeners {
    /// For clients.
    pub clients: TcpListener,
    /// For operators, if they are to be served: `/metrics`.
    pub admin: Option<TcpListener>,
}

/// Runs a gateway on `listeners` until `stop`, then drains it.
///
/// # Errors
/// If it can't start: the broker can't be reached, the keys can't be read.
pub async fn run(
    config: Config,
    listeners: Listeners,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    config.validate().map_err(anyhow::Error::msg)?;
    let authenticator = Arc::new(Authenticator::new(&config.auth).await?);
    let gateway: Arc<str> =
        config.gateway_id.clone().unwrap_or_else(|| instance::name("gateway")).into();
    let name = format!("herald-gateway {gateway}");
    let client = broker::connect(&config.broker, &name, subject::GATEWAY_INBOX).await?;
    // Each with confirmations of its own to wait for.
    let context = || {
        ContextBuilder::new()
            .ack_timeout(PUBLISH_TIMEOUT)
            .timeout(PUBLISH_TIMEOUT)
            .max_ack_inflight(MAX_UNCONFIRMED)
            .backpressure_on_inflight(true)
            .build(client.clone())
    };
    let jetstream = context();
    let Some(topology) = topology(&jetstream, &stop).await else { return Ok(()) };

    let (cut, gone) = (CancellationToken::new(), CancellationToken::new());
    let (tasks, sessions) = (TaskTracker::new(), TaskTracker::new());
    // Reads have a connection of their own: the broker does what comes over one connection one after the other, and
    // what is published must not wait until a long log is read.
    let reads = Arc::new(Reads::new());
    tasks.spawn({
        let dialer = Dialer::new(&config.broker, format!("{name} reads"))?;
        let (reads, gone) = (reads.clone(), gone.clone());
        async move { reads.run(dialer, gone).await }
    });
    let mut metered = Metered::new();
    let metrics = Arc::new(Metrics::new(&mut metered));
    let opening = metrics.connections.get(Stage::Opening).cloned().unwrap_or_default();
    let log = EventLog::open(reads.clone(), context(), topology, opening).await?;
    process::register(&mut metered, "herald-gateway");
    let dialer = Dialer::new(&config.broker, format!("{name} tap"))?;
    let tap = Arc::new(Link::new("requests, replies and live events"));
    nats::register(&mut metered, &client, &[tap.traffic(), reads.traffic()]);
    let max_sessions = config.limits.max_sessions;
    let registry = Registry::new(tap.clone(), gateway.clone(), max_sessions, metrics.clone());
    let presence = Presence::new(config.grace);
    let leases = Leases::open(&jetstream, &gateway, config.lease).await?;
    let cursors = Cursors::new();
    let flusher = cursors.clone();
    let flushed = tokio::spawn({
        let (log, gone) = (log.clone(), gone.clone());
        async move { flusher.flush_until(log, gone).await }
    });
    let announcer = Announcer {
        presence: presence.clone(),
        client: client.clone(),
        gateway: gateway.clone(),
        jetstream: jetstream.clone(),
        sessions: Announcer::bucket(&jetstream).await?,
        log: log.clone(),
        contacts: Contacts::new(client.clone()),
        leases: leases.clone(),
        metrics: metrics.clone(),
        marks: Marks::default(),
        telling: Arc::new(Semaphore::new(TELLING)),
    };
    let publisher = Arc::new(Publisher::new(
        tap.clone(),
        topology,
        gateway.clone(),
        config.limits.max_publishes,
        metrics.clone(),
    ));
    tasks.spawn({
        let ends = Tap { registry: registry.clone(), publisher: publisher.clone() };
        let (tap, gone) = (tap.clone(), gone.clone());
        async move { tap.run(dialer, &ends, gone).await }
    });
    tasks.spawn(leases.clone().watch(gone.clone()));
    tasks.spawn(announcer.run(stop.clone()));
    tasks.spawn(sweep(
        client.clone(),
        tap.clone(),
        log.clone(),
        registry.clone(),
        config.sweep,
        stop.clone(),
    ));
    let door = Arc::new(Door::new(&config.limits, Instant::now()));
    let waiting = Waiting::new(config.limits.max_waiting);
    let shared = Arc::new(Shared {
        gateway: gateway.clone(),
        limits: Arc::new(config.limits.clone()),
        client: client.clone(),
        log,
        cursors,
        publisher,
        metrics: metrics.clone(),
        sampler: Sampler::new(config.trace_ratio, config.client_traces),
        door: door.clone(),
        waiting: waiting.clone(),
        registry: registry.clone(),
        tap: tap.clone(),
        presence: presence.clone(),
        drain: stop.clone(),
        cut: cut.clone(),
        tasks: sessions.clone(),
    });
    let probes = routes::probes(shared.clone());
    let router = routes::router(routes::App { shared, authenticator });
    let Listeners { clients: listener, admin } = listeners;
    counts(&mut metered, &waiting, &presence, (&tap, &reads));
    let metered = Arc::new(metered);
    if let Some(settings) = config.otlp.settings("herald-gateway", &gateway) {
        tasks.spawn(otlp::Exporter::new(metered.clone(), settings)?.run(gone.clone()));
    }
    if let Some(admin) = admin {
        tracing::info!(server.address = %admin.local_addr()?, "serving metrics and probes");
        tasks.spawn(admin::serve(admin, metered, probes, gone.clone()));
    }
    tracing::info!(server.address = %listener.local_addr()?, herald.gateway = %gateway, "serving");
    let server = Server {
        router,
        door: door.clone(),
        handshake_timeout: config.limits.handshake_timeout,
        max_handshakes: config.limits.max_handshakes,
        metrics,
    };
    let serving = tasks.spawn(server.run(listener, gone.clone()));

    tokio::select! {
        () = stop.cancelled() => {}
        ended = serving => anyhow::bail!("clients are not served any more: {ended:?}"),
    }
    tracing::info!(herald.sessions = registry.len(), "draining");
    // Its users come back elsewhere, the last of them that long after the last session has ended.
    let come_back = door.spread(registry.len()) + config.grace;
    let at_most = config.drain_timeout + GOODBYE + come_back;
    sessions.close();
    let (told, ended) = tokio::join!(
        leases.drain(at_most),
        tokio::time::timeout(config.drain_timeout, sessions.wait())
    );
    if let Err(error) = told {
        tracing::warn!(%error, "the lease runs out by itself");
    }
    if ended.is_err() {
        tracing::warn!(herald.sessions = registry.len(), "sessions with open requests are cut");
        cut.cancel();
        if tokio::time::timeout(GOODBYE, sessions.wait()).await.is_err() {
            tracing::warn!("not every client could be told to come back");
        }
    }
    if let Err(error) = leases.drain(come_back).await {
        tracing::warn!(%error, "the lease runs out later than it could");
    }
    gone.cancel();
    tasks.close();
    let rest = async { tokio::join!(flushed, tasks.wait()) };
    if tokio::time::timeout(PUBLISH_TIMEOUT, rest).await.is_err() {
        tracing::warn!("not everything was finished in time; devices may get events again");
    }
    broker::flush(&client).await;
    tracing::info!("stopped");
    Ok(())
}

/// What is asked for when metrics are read.
#[expect(clippy::cast_precision_loss, reason = "Prometheus' numbers are f64")]
fn counts(
    metered: &mut Metered,
    waiting: &Waiting,
    presence: &Presence,
    (tap, reads): (&Arc<Link>, &Arc<Reads>),
) {
    let (waiting, presence) = (waiting.clone(), presence.clone());
    let (connected, connects, reads) = (tap.clone(), tap.clone(), reads.clone());
    metered.read(
        "herald_gateway_reads_connected",
        "Whether there is a connection to NATS for reading logs.",
        Kind::Gauge,
        move || f64::from(u8::from(reads.is_connected())),
    );
    metered.read(
        "herald_gateway_tap_connected",
        "Whether there is a connection to NATS for requests, replies and live events.",
        Kind::Gauge,
        move || f64::from(u8::from(connected.is_connected())),
    );
    metered.read(
        "herald_gateway_tap_connects",
        "Times that the connection for requests, replies and live events was made.",
        Kind::Counter,
        move || connects.connects() as f64,
    );
    metered.read(
        "herald_gateway_open_requests",
        "Requests of all sessions that wait for their answers.",
        Kind::Gauge,
        move || waiting.len() as f64,
    );
    metered.read(
        "herald_gateway_online_users",
        "Users that this gateway announces as online.",
        Kind::Gauge,
        move || presence.announced_users() as f64,
    );
}

/// Waits for the topology, which the first worker writes after it has created everything else.
async fn topology(jetstream: &Context, stop: &CancellationToken) -> Option<Topology> {
    let mut said = false;
    loop {
        match read_topology(jetstream).await {
            Ok(topology) => return Some(topology),
            Err(error) if !said => {
                said = true;
                tracing::info!(%error, "waiting for the first worker to set the broker up");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(TOPOLOGY_PAUSE) => {}
            () = stop.cancelled() => return None,
        }
    }
}

async fn read_topology(jetstream: &Context) -> anyhow::Result<Topology> {
    let bucket = jetstream.get_key_value(subject::TOPOLOGY).await?;
    let stored = bucket.get(subject::TOPOLOGY_KEY).await?.context("there is no topology yet")?;
    Ok(serde_json::from_slice(&stored)?)
}

/// Compares sessions with their logs now and then: a live event can be lost, and then the log knows more.
async fn sweep(
    client: Client,
    tap: Arc<Link>,
    log: EventLog,
    registry: Registry,
    every: Duration,
    stop: CancellationToken,
) {
    let mut tick = tokio::time::interval(every.min(SWEEP_LOOK));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut swept_at, mut connects, mut again) = (Instant::now(), (0, 0), false);
    // Where logs had come to when all were compared last, and the time before: what is older than that, all have, even if
    // a replica answered that lagged.
    let (mut last, mut before) = (log.reached_by_all(), log.reached_by_all());
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.cancelled() => return,
        }
        // After a lost connection the taps have certainly missed what came meanwhile.
        let connected = (client.statistics().connects.load(Ordering::Relaxed), tap.connects());
        let is_new = std::mem::replace(&mut connects, connected) != connected;
        let (is_due, reached) = (swept_at.elapsed() >= every, log.reached_by_all());
        // A server that has confirmed a tap may not have told the others of its cluster yet: who is new is looked at
        // once more.
        let newcomers = registry.newcomers();
        let users = if is_new || again || is_due {
            swept_at = Instant::now();
            registry.users()
        } else {
            newcomers
        };
        again = is_new;
        match compare(&log, &registry, &users, &before).await {
            Ok(()) if is_due => before = std::mem::replace(&mut last, reached),
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(%error, "logs can't be compared, trying again");
                again = true;
            }
        }
    }
}

async fn compare(
    log: &EventLog,
    registry: &Registry,
    users: &[UserId],
    since: &[EventId],
) -> Result<(), Error> {
    if users.is_empty() {
        return Ok(());
    }
    log.refresh().await?;
    let (mut left, mut count, mut rests) = (users, SWEEP_FEWEST, Rests::begin());
    while !left.is_empty() {
        let asked_at = Instant::now();
        let (some, others) = left.split_at(count.min(left.len()));
        for (user, end) in log.ends(some, since).await? {
            registry.tail(&user, end);
        }
        // The broker appends nothing to a log while it looks for the ends of others, which can take long if it has to read
        // blocks from disk.
        let is_fast = asked_at.elapsed() < SWEEP_MOMENT;
        count = if is_fast { count * 2 } else { count / 4 }.clamp(SWEEP_FEWEST, SWEEP_MOST);
        rests.rest().await;
        left = others;
    }
    Ok(())
}
