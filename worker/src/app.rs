//! The worker's life: connect, create what is missing, read all partitions, stop in order.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::{self, context::ContextBuilder};
use backon::{ConstantBuilder, Retryable};
use herald_proto::{
    broker,
    link::{Link, dial::Dialer},
    metrics::{Kind, Registry, nats, otlp, process},
    subject,
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::Config,
    contacts,
    error::Error,
    events::Events,
    health::{self, Health},
    members::Members,
    metrics::{Metrics, lag},
    partition::{self, Reader},
    publisher::Publisher,
    settle::{self, Settler},
    store::Store,
    topology,
};

/// How long a publish waits for its confirmation before it is sent again.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the last metrics may take to be sent.
const GOODBYE: Duration = Duration::from_secs(2);
/// How often setting the broker up is tried, and the pause between.
const SETUP_TRIES: usize = 20;
const SETUP_PAUSE: Duration = Duration::from_millis(500);

/// Runs a worker until `stop`, then finishes what it has begun. `listener` is where `/healthz` and `/readyz` are served.
///
/// # Errors
/// If it can't start: the broker or database can't be reached, the schema or the topology does not fit.
pub async fn run(
    config: Config,
    listener: TcpListener,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    config.validate().map_err(anyhow::Error::msg)?;
    let url = config.database.url().map_err(anyhow::Error::msg)?;
    let store = Store::connect(&url, config.database.database_connections).await?;
    store.check_schema().await?;
    let client = broker::connect(&config.broker, "herald-worker", subject::WORKER_INBOX).await?;
    let jetstream = ContextBuilder::new()
        .ack_timeout(PUBLISH_TIMEOUT)
        .timeout(PUBLISH_TIMEOUT)
        .build(client.clone());
    // Streams that were made a moment ago may have no leaders yet.
    let topology = (async || topology::ensure(&jetstream, &config).await)
        .retry(ConstantBuilder::new().with_delay(SETUP_PAUSE).with_max_times(SETUP_TRIES))
        .when(|error| error.is_transient() && !stop.is_cancelled())
        .notify(|error, _| tracing::warn!(%error, "the broker can't be set up, trying again"))
        .await?;
    let frames: jetstream::stream::Stream<()> =
        jetstream.get_stream_no_info(subject::FRAMES).await.map_err(Error::broker("get FRAMES"))?;
    let info = frames.get_info().await.map_err(Error::broker("get FRAMES"))?;
    let epoch = partition::epoch(&info);
    let mut registry = Registry::new();
    let metrics = Arc::new(Metrics::new(&mut registry, topology.partitions));
    process::register(&mut registry, "herald-worker");
    // What comes in masses goes over a connection of its own.
    let dialer = Dialer::new(&config.broker, "herald-worker events".into())?;
    let link = Arc::new(Link::new("replies and events"));
    nats::register(&mut registry, &client, &[link.traffic()]);
    let connected = link.clone();
    registry.read(
        "herald_worker_events_connected",
        "Whether there is a connection to NATS for replies and events.",
        Kind::Gauge,
        move || f64::from(u8::from(connected.is_connected())),
    );
    let registry = Arc::new(registry);
    let publisher = Publisher::new(link.clone(), jetstream.clone(), metrics.clone());
    let mut events = Events::open(
        link.clone(),
        jetstream,
        topology,
        store.clone(),
        metrics.clone(),
        stop.clone(),
    );

    let (gone, settled) = (CancellationToken::new(), CancellationToken::new());
    // Nothing is left behind, whatever fails from now on.
    let _gone = gone.clone().drop_guard();
    let (tasks, around) = (TaskTracker::new(), TaskTracker::new());
    around.spawn({
        let (link, answers, gone) = (link.clone(), events.answers(), gone.clone());
        async move { link.run(dialer, answers.as_ref(), gone).await }
    });
    link.confirmed().await?;
    events.look_if_due().await?;
    let me = config.name.clone();
    if let Some(settings) = config.otlp.settings("herald-worker", &me) {
        around.spawn(otlp::Exporter::new(registry.clone(), settings)?.run(gone.clone()));
    }
    let health = Health {
        client: client.clone(),
        link: link.clone(),
        store: store.clone(),
        stop: stop.clone(),
    };
    tasks.spawn(health.clone().watch());
    let serve = health::serve(listener, health, registry, gone.clone());
    around.spawn(async move {
        if let Err(error) = serve.await {
            tracing::error!(%error, "the health endpoint failed");
        }
    });
    let serve = contacts::serve(client.clone(), store.clone(), stop.clone());
    tasks.spawn(async move {
        if let Err(error) = serve.await {
            tracing::error!(%error, "contact look-ups failed");
        }
    });
    let (members, share) =
        Members::new(client.clone(), me, topology.partitions, metrics.members.clone());
    tasks.spawn(members.run(stop.clone()));
    tasks.spawn(lag::watch(metrics.partitions.clone(), frames.clone(), stop.clone()));
    let max_frames = usize::from(config.batch);
    let (sender, receiver) = mpsc::channel(usize::from(topology.partitions));
    for partition in 0..topology.partitions {
        let reader = Reader {
            partition,
            epoch,
            frames: frames.clone(),
            store: store.clone(),
            publisher: publisher.clone(),
            batches: sender.clone(),
            max_frames,
            share: share.clone(),
            partitions: metrics.partitions.clone(),
            stop: stop.clone(),
        };
        tasks.spawn(reader.run());
    }
    drop(sender);
    // The marks are kept until the last batch is published.
    let keep_marks = events.keep_marks(settled.clone());
    tasks.spawn(keep_marks);
    let settler = Settler::new(settle::Parts {
        store,
        publisher,
        events,
        frames,
        created: epoch,
        max_frames,
        duplicate_window: config.duplicate_window,
        remembered_chats: config.remembered_chats,
        metrics,
        stop: stop.clone(),
    });
    tasks.spawn(async move {
        Box::pin(settler.run(receiver)).await;
        settled.cancel();
    });
    tracing::info!(
        herald.partitions = topology.partitions,
        herald.event_streams = topology.event_streams,
        "working"
    );

    stop.cancelled().await;
    tracing::info!("stopping: finishing what has begun");
    tasks.close();
    if tokio::time::timeout(config.drain_timeout, tasks.wait()).await.is_err() {
        tracing::warn!("not everything was finished in time; what is left is redelivered");
    }
    // What was finished last may not be answered yet.
    if link.confirmed().await.is_err() {
        tracing::warn!("the last answers may be lost, their clients will ask again");
    }
    // Metrics tell of all that was finished.
    gone.cancel();
    around.close();
    let _ = tokio::time::timeout(GOODBYE, around.wait()).await;
    // Acknowledgements may still lie in the client's buffer; those that are lost are redelivered.
    broker::flush(&client).await;
    tracing::info!("stopped");
    Ok(())
}
