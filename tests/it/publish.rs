//! A worker's events come into the logs in order, even when its connection breaks in the middle of a batch.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;
use futures::{StreamExt as _, future::try_join};
use herald_proto::{
    UserId, broker,
    link::{Link, dial::Dialer},
    metrics::Registry,
    subject,
};
use herald_tests::{
    Backend, Broker, Database, eventually,
    proxy::{Mode, Proxy},
};
use herald_worker::{
    config::{Cli, Command},
    events::Events,
    frame::Outgoing,
    metrics::Metrics,
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
        cause: None,
    })
}

/// Workers' way to the logs, as each of them has it.
async fn logs(nats: SocketAddr, database: &Database) -> Result<(Events, Store, Arc<Link>)> {
    logs_by(nats, nats, database).await
}

/// The same, with events on a way of their own.
async fn logs_by(
    nats: SocketAddr,
    link: SocketAddr,
    database: &Database,
) -> Result<(Events, Store, Arc<Link>)> {
    let config = |nats: SocketAddr| {
        let url = format!("nats://{nats}");
        let flags = ["herald-worker", "run", "--nats-url", &url, "--database-url", database.url()];
        match Cli::try_parse_from(flags)?.command {
            Command::Run(config) => Ok(config),
            _ => anyhow::bail!("not the command run"),
        }
    };
    let (config, by_link) = (config(nats)?, config(link)?);
    let store = Store::connect(database.url(), 2).await?;
    store.migrate().await?;
    let client = broker::connect(&config.broker, "test", subject::WORKER_INBOX).await?;
    let jetstream = async_nats::jetstream::new(client.clone());
    let topology = topology::ensure(&jetstream, &config).await?;
    let stop = CancellationToken::new();
    let metrics = Arc::new(Metrics::new(&mut Registry::new(), topology.partitions));
    let link = Arc::new(Link::new("test"));
    let mut events = Events::open(link.clone(), jetstream, topology, store.clone(), metrics, stop);
    tokio::spawn({
        let dialer = Dialer::new(&by_link.broker, "test events".into())?;
        let (link, answers) = (link.clone(), events.answers());
        async move { link.run(dialer, answers.as_ref(), CancellationToken::new()).await }
    });
    link.confirmed().await?;
    events.look_if_due().await?;
    Ok((events, store, link))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_keep_their_order_when_the_connection_breaks_in_a_batch() -> Result<()> {
    let nats = Broker::start().await?;
    let proxy = Proxy::start(nats.address()).await?;
    let database = Database::create(Backend::Sqlite).await?;
    let (mut logs, ..) = logs(proxy.address(), &database).await?;

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

/// A worker's other connection stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_without_a_connection_fail_at_once_and_come_once_it_is_back() -> Result<()> {
    let nats = Broker::start().await?;
    let proxy = Proxy::start(nats.address()).await?;
    let database = Database::create(Backend::Sqlite).await?;
    let (mut logs, _, link) = logs_by(nats.address(), proxy.address(), &database).await?;
    logs.append(&[&event(0)?]).await?;
    proxy.set(Mode::Cut);
    eventually("the connection is lost", Duration::from_secs(30), async || {
        ensure!(!link.is_connected(), "it is there");
        Ok(())
    })
    .await?;
    let error = logs.append(&[&event(1)?]).await.err().context("nothing has failed")?;
    assert_eq!(error.to_string(), "append events: there is no connection");
    proxy.set(Mode::Pass);
    eventually("the event is published", Duration::from_secs(60), async || {
        Ok(logs.append(&[&event(1)?]).await?)
    })
    .await?;
    let jetstream = async_nats::jetstream::new(async_nats::connect(nats.url()).await?);
    let stream = jetstream.get_stream(subject::events(0)).await?;
    assert_eq!(stream.cached_info().state.messages, 2);
    assert_eq!(stream.cached_info().state.last_sequence, 2, "no id was left out");
    Ok(())
}

/// The server knows a batch by its name, whoever sends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_batches_do_not_get_mixed_up() -> Result<()> {
    const ROUNDS: usize = 100;
    const BATCH: usize = 40;
    let nats = Broker::start().await?;
    let database = Database::create(Backend::Sqlite).await?;
    let append = async |worker: usize, mut logs: Events| {
        for round in 0..ROUNDS {
            let first = (worker * ROUNDS + round) * BATCH;
            let events = (first..first + BATCH).map(event).collect::<Result<Vec<_>>>()?;
            let events: Vec<&Outgoing> = events.iter().collect();
            logs.append(&events).await.with_context(|| format!("worker {worker}, {round}"))?;
        }
        anyhow::Ok(())
    };
    let (one, ..) = logs(nats.address(), &database).await?;
    let (other, ..) = logs(nats.address(), &database).await?;
    Box::pin(try_join(append(0, one), append(1, other))).await?;
    let jetstream = async_nats::jetstream::new(async_nats::connect(nats.url()).await?);
    let stream = jetstream.get_stream(subject::events(0)).await?;
    assert_eq!(stream.cached_info().state.messages, (2 * ROUNDS * BATCH) as u64);
    Ok(())
}

/// A worker that comes back looks whether the logs stand where they were left. Another one goes on meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_grows_while_it_is_looked_at_has_lost_nothing() -> Result<()> {
    let nats = Broker::start().await?;
    let proxy = Proxy::start(nats.address()).await?;
    let database = Database::create(Backend::Postgres).await?;
    let (mut busy, store, _) = logs(nats.address(), &database).await?;
    let (mut back, _, link) = logs(proxy.address(), &database).await?;
    let jetstream = async_nats::jetstream::new(async_nats::connect(nats.url()).await?);
    let mut stream = jetstream.get_stream(subject::events(0)).await?;

    let done = CancellationToken::new();
    let (grown, stop) = (stream.clone(), done.clone());
    let growing = tokio::spawn(async move {
        let mut count = 0;
        while !stop.is_cancelled() {
            busy.append(&[&event(count)?]).await?;
            count += 1;
            let mut mark = store.event_stream(0).await?.context("no mark")?;
            mark.high = grown.get_info().await?.state.last_sequence.cast_signed();
            store.raise_event_streams(&[mark]).await?;
        }
        anyhow::Ok(count)
    });
    proxy.set(Mode::Cut);
    // What is said about the stream is old when it comes.
    proxy.set(Mode::Delay(Duration::from_millis(200)));
    eventually("the worker is back", Duration::from_secs(60), async || {
        let connects = link.connects();
        ensure!(connects > 1, "{connects} connections so far");
        back.look_if_due().await?;
        Ok(back.append(&[&event(usize::MAX)?]).await?)
    })
    .await?;
    done.cancel();
    let count = growing.await??;
    let messages = stream.info().await?.state.messages;
    assert_eq!(messages, u64::try_from(count)? + 1, "the log was emptied");
    Ok(())
}
