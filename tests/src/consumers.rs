//! Why each user has a log and a live tap, and no durable consumer: both ways on a real nats-server, side by side.
//!
//! The same events go to the same number of users. Either each user has a durable push consumer on the stream, and acks
//! each event; or the stream republishes its events (`RePublish`) and each user has a core subscription, as Herald's
//! gateways do. What the second way needs besides (cursors, catch-up after a gap) is no part of this.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_nats::{
    Client, ConnectOptions, Message, Subscriber,
    jetstream::{
        self,
        consumer::{AckPolicy, push},
        stream::{Config, Republish, StorageType, Stream},
    },
};
use futures::{StreamExt as _, TryStreamExt as _, future::try_join_all, stream};
use tokio::time::timeout;

use crate::{
    Broker,
    load::usage::{Usage, Watched},
};

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A durable push consumer for each user.
    Consumers,
    /// A live tap on the republished log for each user.
    Taps,
}

/// How many of what.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Users.
    pub users: usize,
    /// Events, each to a user at random.
    pub events: usize,
    /// Bytes of an event.
    pub size: usize,
    /// Whether the stream lies in files; in memory otherwise.
    pub on_disk: bool,
}

/// What it took.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Until every user could be reached.
    pub creating: Duration,
    /// Until all events were delivered (and acked, by consumers).
    pub delivering: Duration,
    /// The server's processor time while events were delivered.
    pub server_cpu: Duration,
    /// The same of publisher and users, which are this process.
    pub client_cpu: Duration,
    /// How much more memory the server took once all users could be reached.
    pub server_memory: u64,
    /// The same of this process.
    pub client_memory: u64,
    /// Events that were delivered.
    pub delivered: usize,
}

/// How many requests are under way at once.
const UNDER_WAY: usize = 256;
/// How long nothing may come before it is given up.
const PATIENCE: Duration = Duration::from_secs(20);
/// Connections of the users, as gateways have them.
const CONNECTIONS: usize = 4;

/// Runs one way on a nats-server of its own.
///
/// # Errors
/// If the server does not start or refuses, or events do not come.
pub async fn run(way: Way, plan: Plan) -> Result<Cost> {
    let broker = Broker::start().await?;
    let server = Watched::new("nats-server", broker.pid());
    let own = Watched::new("this process", std::process::id());
    let options = || ConnectOptions::new().subscription_capacity(1024);
    let publisher = options().connect(broker.url()).await?;
    let clients = try_join_all((0..CONNECTIONS).map(|_| options().connect(broker.url()))).await?;
    let stream = stream_of(way, plan, &publisher).await?;

    let before = look(&server, &own)?;
    let begun = Instant::now();
    let taps = reach(way, plan, &clients, &stream).await?;
    let creating = begun.elapsed();
    let reached = look(&server, &own)?;
    let begun = Instant::now();
    let (published, delivered) =
        tokio::join!(publish(plan, &publisher), take(way, plan, taps, &clients));
    published?;
    let delivered = delivered?;
    let delivering = begun.elapsed();
    let after = look(&server, &own)?;
    Ok(Cost {
        creating,
        delivering,
        server_cpu: after.0.cpu.saturating_sub(reached.0.cpu),
        client_cpu: after.1.cpu.saturating_sub(reached.1.cpu),
        server_memory: reached.0.memory.saturating_sub(before.0.memory),
        client_memory: reached.1.memory.saturating_sub(before.1.memory),
        delivered,
    })
}

fn look(server: &Watched, own: &Watched) -> Result<(Usage, Usage)> {
    Ok((server.usage()?, own.usage()?))
}

async fn stream_of(way: Way, plan: Plan, client: &Client) -> Result<Stream> {
    let republish = (way == Way::Taps).then(|| Republish {
        source: "events.*".into(),
        destination: "live.{{wildcard(1)}}".into(),
        headers_only: false,
    });
    let config = Config {
        name: "EVENTS".into(),
        subjects: vec!["events.*".into()],
        storage: if plan.on_disk { StorageType::File } else { StorageType::Memory },
        // The server's own limit is 1,000.
        max_consumers: i32::try_from(plan.users)?.saturating_add(1),
        allow_direct: true,
        republish,
        ..Config::default()
    };
    Ok(jetstream::new(client.clone()).create_stream(config).await?)
}

/// Makes every user reachable.
async fn reach(
    way: Way,
    plan: Plan,
    clients: &[Client],
    stream: &Stream,
) -> Result<Vec<Subscriber>> {
    let users = stream::iter(0..plan.users).map(|user| async move {
        let client = clients.get(user % clients.len().max(1)).context("no client")?;
        let subscriber = match way {
            Way::Taps => client.subscribe(format!("live.{user}")).await?,
            Way::Consumers => {
                // A push consumer is active for a literal subscription only: each has its own.
                let subscriber = client.subscribe(format!("deliver.{user}")).await?;
                let config = push::Config {
                    durable_name: Some(format!("user-{user}")),
                    deliver_subject: format!("deliver.{user}"),
                    filter_subject: format!("events.{user}"),
                    ack_policy: AckPolicy::Explicit,
                    memory_storage: !plan.on_disk,
                    ..push::Config::default()
                };
                stream.create_consumer(config).await?;
                subscriber
            }
        };
        anyhow::Ok(subscriber)
    });
    let taps = users.buffer_unordered(UNDER_WAY).try_collect().await?;
    // A request that goes the same way shows that the subscriptions before it are known.
    for client in clients {
        jetstream::new(client.clone()).get_stream("EVENTS").await?;
    }
    Ok(taps)
}

async fn publish(plan: Plan, client: &Client) -> Result<()> {
    let jetstream = jetstream::new(client.clone());
    let body = bytes_of(plan.size);
    stream::iter(0..plan.events)
        .then(|_| {
            let user = fastrand::usize(..plan.users);
            jetstream.publish(format!("events.{user}"), body.clone().into())
        })
        .map_ok(|ack| async { anyhow::Ok(ack.await.map(drop)?) })
        .map_err(anyhow::Error::from)
        .try_buffer_unordered(UNDER_WAY)
        .try_for_each(async |()| Ok(()))
        .await
}

fn bytes_of(size: usize) -> Vec<u8> {
    vec![b'x'; size]
}

/// Takes all events at all users; how many have come.
async fn take(way: Way, plan: Plan, taps: Vec<Subscriber>, clients: &[Client]) -> Result<usize> {
    let mut all = stream::select_all(taps);
    let mut delivered = 0;
    while delivered < plan.events {
        let message = timeout(PATIENCE, all.next()).await;
        let message = message
            .with_context(|| format!("{delivered} of {} events have come", plan.events))?
            .context("the server is gone")?;
        delivered += 1;
        if way == Way::Consumers {
            ack(&message, clients, delivered).await?;
        }
    }
    // Acks are part of what consumers cost.
    try_join_all(clients.iter().map(Client::flush)).await?;
    ensure!(delivered == plan.events, "{delivered} events for {}", plan.events);
    Ok(delivered)
}

async fn ack(message: &Message, clients: &[Client], number: usize) -> Result<()> {
    let client = clients.get(number % clients.len().max(1)).context("no client")?;
    let reply = message.reply.clone().context("an event without a place for its ack")?;
    Ok(client.publish(reply, "+ACK".into()).await?)
}
