//! The session over a socket in memory, on paused time: what only the loop around the rules can do.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use async_nats::jetstream;
use clap::Parser as _;
use futures::{SinkExt as _, StreamExt as _};
use herald_gateway::{
    config::Config,
    cursors::Cursors,
    door::Door,
    log::{EventLog, Reads},
    metrics::Metrics,
    presence::Presence,
    publisher::Publisher,
    registry::Registry,
    session::{self, Identity, Shared, Socket},
    tap::Tap,
    waiting::Waiting,
};
use herald_proto::{
    DeviceId, UserId,
    link::{Link, dial::Dialer},
    metrics::Gauge,
    telemetry::Sampler,
    topology::Topology,
};
use herald_tests::{Backend, Cluster, Options};
use serde_json::{Value, json};
use tokio::io::DuplexStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A session on a pipe that holds `bytes`, and the client's end of it.
async fn session(cluster: &Cluster, bytes: usize) -> Result<WebSocketStream<DuplexStream>> {
    let url = cluster.broker.url();
    let config = Config::try_parse_from(["herald-gateway", "--insecure-auth", "--nats-url", &url])?;
    let client = async_nats::connect(cluster.broker.url()).await?;
    let context = jetstream::new(client.clone());
    let topology = Topology { partitions: 8, event_streams: 1 };
    let gateway: Arc<str> = "in-memory".into();
    let tap = Arc::new(Link::new("tap"));
    let metrics = Arc::<Metrics>::default();
    let registry = Registry::new(tap.clone(), gateway.clone(), 10, metrics.clone());
    let dialer = Dialer::new(&config.broker, "tap".into())?;
    let publisher =
        Arc::new(Publisher::new(tap.clone(), topology, gateway.clone(), 16, metrics.clone()));
    tokio::spawn({
        let ends = Tap { registry: registry.clone(), publisher: publisher.clone() };
        let tap = tap.clone();
        async move { tap.run(dialer, &ends, CancellationToken::new()).await }
    });
    let reads = Arc::new(Reads::new());
    tokio::spawn({
        let (dialer, reads) = (Dialer::new(&config.broker, "reads".into())?, reads.clone());
        async move { reads.run(dialer, CancellationToken::new()).await }
    });
    let shared = Arc::new(Shared {
        gateway: gateway.clone(),
        limits: Arc::new(config.limits.clone()),
        client,
        log: EventLog::open(reads, context.clone(), topology, Gauge::default()).await?,
        cursors: Cursors::new(),
        publisher,
        metrics,
        sampler: Sampler::new(0.0, 0),
        door: Arc::new(Door::new(&config.limits, Instant::now())),
        waiting: Waiting::new(16),
        registry,
        tap,
        presence: Presence::new(config.grace),
        drain: CancellationToken::new(),
        cut: CancellationToken::new(),
        tasks: TaskTracker::new(),
    });
    let (server, stream) = tokio::io::duplex(bytes);
    let socket = Socket::new(server, 1 << 20, config.limits.write_timeout).await;
    let identity =
        Identity { user: UserId::new("User1")?, device: DeviceId::default(), expires_at: None };
    session::begin(shared, socket, identity).await?;
    let mut client = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    client.send(Message::text(json!({"type": "ack", "id": 0}).to_string())).await?;
    let answer = client.next().await.context("no answer")??;
    let answer: Value = serde_json::from_str(answer.to_text()?)?;
    assert_eq!(answer["id"], "0");
    Ok(client)
}

#[tokio::test]
async fn a_client_that_answers_no_ping_is_closed_when_its_time_is_over() -> Result<()> {
    let cluster = Cluster::start(Backend::Sqlite, Options::default()).await?;
    let mut client = session(&cluster, 4096).await?;
    tokio::time::pause();
    let begin = tokio::time::Instant::now();
    // Reading the frames off the pipe by hand: a WebSocket client would answer the ping.
    let pipe = client.get_mut();
    let mut frame = [0; 2];
    tokio::io::AsyncReadExt::read_exact(pipe, &mut frame).await?;
    assert_eq!(frame, [0x89, 0], "a ping");
    // The client was heard a moment before the clock stood still.
    assert!((24..=25).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
    let mut frame = [0; 4];
    tokio::io::AsyncReadExt::read_exact(pipe, &mut frame).await?;
    assert_eq!((frame[0], u16::from_be_bytes([frame[2], frame[3]])), (0x88, 4408), "a close frame");
    assert!((59..=60).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off_after_the_write_timeout() -> Result<()> {
    let cluster = Cluster::start(Backend::Sqlite, Options::default()).await?;
    let mut client = session(&cluster, 512).await?;
    tokio::time::pause();
    let begin = tokio::time::Instant::now();
    // Each is answered; the answers fill the pipe, and nobody takes them out.
    let flood = async {
        let ack = json!({"type": "ack", "id": 1}).to_string();
        while client.send(Message::text(ack.as_str())).await.is_ok() {}
    };
    tokio::time::timeout(Duration::from_secs(30), flood)
        .await
        .context("the session was not cut")?;
    assert!((10..=12).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
    Ok(())
}

#[tokio::test]
async fn of_many_frames_that_come_at_once_each_is_answered_in_order() -> Result<()> {
    const FRAMES: u64 = 100;
    let cluster = Cluster::start(Backend::Sqlite, Options::default()).await?;
    let mut client = session(&cluster, 64 * 1024).await?;
    for id in 1..=FRAMES {
        client.feed(Message::text(json!({"type": "ack", "id": id}).to_string())).await?;
    }
    client.flush().await?;
    for id in 1..=FRAMES {
        let answer = tokio::time::timeout(Duration::from_secs(10), client.next()).await;
        let answer = answer.with_context(|| format!("{id} is not answered"))?;
        let answer: Value = serde_json::from_str(answer.context("it is gone")??.to_text()?)?;
        assert_eq!(answer["id"], id.to_string());
    }
    Ok(())
}
