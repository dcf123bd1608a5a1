//! A worker's events come into the logs in order, even when its connection breaks in the middle of a batch.

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use futures::StreamExt as _;
use herald_proto::{UserId, broker, subject};
use herald_tests::{
    Backend, Broker, Database, eventually,
    proxy::{Mode, Proxy},
};
use herald_worker::{
    config::{Cli, Command},
    events::Events,
    frame::Outgoing,
    store::Store,
    topology,
};
use serde_json::{json, value::to_raw_value};
use tokio_util::sync::CancellationToken;

/// More than a connection takes in one write.
const EVENTS: usize = 3000;
/// After so many of them the connection breaks, once each.
const BREAKS: [usize; 3] = [50, 400, 1500];

fn event(number: usize) -> Result<Outgoing> {
    Ok(Outgoing {
        user: UserId::new(format!("user{}", number % 3))?,
        id: format!("e{number}"),
        body: to_raw_value(&json!({"type": "event", "number": number, "text": "x".repeat(200)}))?,
        traceparent: None,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_keep_their_order_when_the_connection_breaks_in_a_batch() -> Result<()> {
    let nats = Broker::start().await?;
    let proxy = Proxy::start(nats.address()).await?;
    let url = format!("nats://{}", proxy.address());
    let database = Database::create(Backend::Sqlite).await?;
    let flags = ["herald-worker", "run", "--nats-url", &url, "--database-url", database.url()];
    let Command::Run(config) = Cli::try_parse_from(flags)?.command else {
        anyhow::bail!("not the command run");
    };
    let client = broker::connect(&config.broker, "test").await?;
    let jetstream = async_nats::jetstream::new(client.clone());
    let topology = topology::ensure(&jetstream, &config).await?;
    let store = Store::connect(database.url(), 2).await?;
    store.migrate().await?;
    let stop = CancellationToken::new();
    let mut logs = Events::open(client, jetstream, topology, store, stop).await?;

    // Past the proxy: sees each event as it comes into its log.
    let onlooker = async_nats::connect(nats.url()).await?;
    let mut live = onlooker.subscribe("live.*").await?;
    onlooker.flush().await?;
    let (sender, mut seen) = tokio::sync::watch::channel(0);
    tokio::spawn(async move {
        while live.next().await.is_some() {
            sender.send_modify(|seen| *seen += 1);
        }
    });
    let breaking = tokio::spawn(async move {
        for after in BREAKS {
            seen.wait_for(|seen| *seen >= after).await?;
            proxy.set(Mode::Cut);
            proxy.set(Mode::Pass);
        }
        anyhow::Ok(proxy)
    });
    let events = (0..EVENTS).map(event).collect::<Result<Vec<_>>>()?;
    let events: Vec<&Outgoing> = events.iter().collect();
    // As the worker does: all of them again, until all are confirmed.
    eventually("all events are published", Duration::from_secs(60), async || {
        Ok(logs.append(&events).await?)
    })
    .await?;
    let _proxy = breaking.await??;

    let jetstream = async_nats::jetstream::new(onlooker);
    let stream = jetstream.get_stream(subject::events(0)).await?;
    let mut found = Vec::new();
    for sequence in 1..=stream.cached_info().state.messages {
        let message = stream.get_raw_message(sequence).await?;
        let id = message.headers.get("Nats-Msg-Id").context("an event without an id")?;
        found.push(id.as_str().to_owned());
    }
    let expected: Vec<String> = (0..EVENTS).map(|number| format!("e{number}")).collect();
    assert!(found == expected, "{} events, not in order", found.len());
    Ok(())
}
