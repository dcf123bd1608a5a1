//! A device that was away for long, or does not read, gets all its events in order, and costs nobody anything.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use async_nats::{
    Subscriber,
    jetstream::{self, Context, message::PublishMessage},
};
use futures::{FutureExt as _, StreamExt as _, future::try_join_all};
use herald_proto::{UserId, subject};
use herald_tests::{
    Backend, Child, Cluster, Gateways, Options, Pair, eventually,
    load::{
        connection::{Connection, Ended},
        usage::Watched,
        wire::{self, Frame, Id},
    },
    proxy::{Mode, Proxy},
};
use serde_json::{Value, json};
use tokio::time::timeout;

/// How long everything together may take at most: far longer than it does.
const GENEROUS: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;

fn failed(ended: Ended) -> anyhow::Error {
    anyhow::anyhow!(ended.why)
}

/// A gateway in a process of its own beside a usual one, and a way to put events into logs without any frames.
async fn gateway(flags: &[&str]) -> Result<(Cluster, Child, Context)> {
    let cluster = Cluster::start(Backend::Sqlite, Options::of(1, 1)).await?;
    // Nothing may wait for a sweep to find out that there is more.
    let flags = [&["--sweep", "1h"], flags].concat();
    let gateway = cluster.gateway_process("gateway", &flags).await?;
    let broker = jetstream::new(async_nats::connect(cluster.broker.url()).await?);
    Ok((cluster, gateway, broker))
}

/// Puts `count` events with bodies of about `size` bytes into a user's log: messages 1, 2, 3 … of one chat.
async fn fill(broker: &Context, user: &str, count: u64, size: usize) -> Result<()> {
    fill_all(broker, (1..=count).map(|n| (user, n)), size).await
}

/// Puts such events into the logs of these users, each with the number of its message.
async fn fill_all(
    broker: &Context,
    events: impl Iterator<Item = (&str, u64)>,
    size: usize,
) -> Result<()> {
    let message = "x".repeat(size);
    let mut unconfirmed = VecDeque::new();
    for (user, n) in events {
        let subject = subject::event(0, &UserId::new(user)?);
        let event = json!({"type": "event", "timestamp": 1, "eventType": "new", "payload": {"chatId": "peer",
            "messageId": n, "clientMessageId": n.to_string(), "message": message, "missed": n}});
        let message = PublishMessage::build().payload(event.to_string().into());
        unconfirmed.push_back(broker.send_publish(subject, message).await?);
        if unconfirmed.len() > 500
            && let Some(oldest) = unconfirmed.pop_front()
        {
            oldest.await?;
        }
    }
    for confirmation in unconfirmed {
        confirmation.await?;
    }
    Ok(())
}

/// Takes and acks events until message `last`, each after the one before it; `look` sees each message's number.
pub(crate) async fn drain(
    connection: &mut Connection,
    last: u64,
    look: impl FnMut(u64) -> Result<()>,
) -> Result<()> {
    drain_after(connection, None, last, look).await.map(drop)
}

/// The same for a device that has had all events up to `prev`; returns the last one's id.
async fn drain_after(
    connection: &mut Connection,
    mut prev: Option<u64>,
    last: u64,
    mut look: impl FnMut(u64) -> Result<()>,
) -> Result<Option<u64>> {
    let (mut batch, mut acks) = (Vec::new(), Vec::new());
    let mut taken = 0;
    let take = async {
        while taken < last {
            connection.receive(&mut batch).await.map_err(failed)?;
            for text in batch.drain(..) {
                let frame: Frame<'_> = serde_json::from_str(&text)?;
                let Id::Number(id) = frame.id else { continue };
                acks.push(wire::ack(id));
                if prev.is_some_and(|prev| id <= prev) {
                    continue;
                }
                ensure!(prev.is_none() || frame.prev == prev, "after {prev:?}: {text:.200}");
                taken += 1;
                ensure!(frame.payload.message_id == Some(taken), "{taken}: {text:.200}");
                prev = Some(id);
                look(taken)?;
            }
            connection.send(&mut acks).await.map_err(failed)?;
        }
        Ok(prev)
    };
    let taken = timeout(GENEROUS, take).await;
    taken.context("not all events came in time")?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_pending_events_come_in_order_and_the_gateways_memory_stays_flat()
-> Result<()> {
    const EVENTS: u64 = 100_000;
    const SIZE: usize = 1000;
    let (_cluster, gateway, broker) = gateway(&[]).await?;
    let url = format!("ws://{}/ws", gateway.address);
    // Its place in the log is before them all.
    Connection::login(&url, "away").await?.close().await;
    fill(&broker, "away", EVENTS, SIZE).await?;
    let process = Watched::new("gateway", gateway.process.pid());
    let before = process.usage()?.memory;
    // Not a login: that leaves out what comes before its answer.
    let mut device = Connection::connect(&url, "away", "default").await?;
    let (began_at, mut memory) = (Instant::now(), Vec::new());
    drain(&mut device, EVENTS, |taken| {
        if taken % 1000 == 0 {
            memory.push(process.usage()?.memory);
        }
        Ok(())
    })
    .await?;
    let most = memory.iter().max().copied().unwrap_or_default();
    println!(
        "{EVENTS} events of {SIZE} bytes caught up in {:?}: {:.1} MiB resident before, {:.1} MiB at most",
        began_at.elapsed(),
        before as f64 / MIB as f64,
        most as f64 / MIB as f64,
    );
    let all = EVENTS * u64::try_from(SIZE)?;
    ensure!(most < before + all / 4, "the gateway has grown from {before} to {most} bytes");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_closed_costs_others_nothing_and_gets_its_events_later()
-> Result<()> {
    let flags = ["--ping-interval", "1s", "--idle-timeout", "6s", "--write-timeout", "1s"];
    // So much unacked that the system's buffers can't take it.
    let window = ["--window", "2000", "--window-bytes", "100000000", "--grace", "1s"];
    let (cluster, gateway, broker) = gateway(&[&flags[..], &window[..]].concat()).await?;
    let url = format!("ws://{}/ws", gateway.address);
    let mut pairs = Vec::new();
    for n in 0..4 {
        let gateways = Gateways::new([url.clone()]);
        pairs.push(Pair::start(&gateways, &format!("other{n}"), Duration::from_millis(10)).await?);
    }
    // Not on the gateway that is so impatient: it says nothing for a while either.
    let mut watcher = cluster.connect_with_presence(0, "watcher", "d").await?;
    let mut slow = Vec::new();
    for (user, count, size) in [("silent", 500, 10), ("stuck", 500, 50_000)] {
        let mut connection = Connection::login(&url, user).await?;
        // From now on it reads nothing, not even the answer.
        connection.send(&mut vec![wire::new(1, "watcher", "hi")]).await.map_err(failed)?;
        watcher.event("new").await?;
        slow.push((user, count, connection));
        fill(&broker, user, count, size).await?;
    }
    // Each is given up, though it has never said anything.
    for _ in &slow {
        let offline = async || watcher.event("offline").await;
        eventually("one is offline", GENEROUS, offline).await?;
    }
    for pair in pairs {
        let report = pair.finish().await?;
        let slowest = report.stored.iter().map(|s| s.answered_at - s.sent_at).max();
        println!("{} messages beside it, the slowest took {slowest:?}", report.stored.len());
        assert!(report.stored.iter().all(|stored| stored.repeats == 0), "nobody else notices");
        assert_eq!((report.ends, report.again_though_acked), (vec![], 0));
    }
    for (user, count, mut connection) in slow {
        let mut batch = Vec::new();
        let ended = loop {
            if let Err(ended) = connection.receive(&mut batch).await {
                break ended.why;
            }
        };
        println!("{user}: {ended}");
        // Who does not even take what was sent before sees the end of the connection only.
        assert!(user == "stuck" || ended.starts_with("closed: 4408"), "{ended}");
        let events = batch.iter().filter(|frame| frame.contains("\"prev\":")).count();
        assert!(events <= usize::try_from(count)?, "{events} events, none is sent again so soon");
        let mut again = Connection::connect(&url, user, "default").await?;
        drain(&mut again, count, |_| Ok(())).await.context(user)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_larger_than_what_is_read_at_once_come_too() -> Result<()> {
    let (_cluster, gateway, broker) = gateway(&[]).await?;
    let url = format!("ws://{}/ws", gateway.address);
    Connection::login(&url, "away").await?.close().await;
    fill(&broker, "away", 10, 300_000).await?;
    let mut device = Connection::connect(&url, "away", "default").await?;
    drain(&mut device, 10, |_| Ok(())).await
}

/// Devices that come back at once, and for which events wait that lie among each other's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_crowd_that_comes_back_each_gets_its_own_events_and_no_consumer_is_left() -> Result<()>
{
    let (cluster, gateway, broker) = gateway(&[]).await?;
    let url = format!("ws://{}/ws", gateway.address);
    let client = async_nats::connect(cluster.broker.url()).await?;
    let advisories = "$JS.EVENT.ADVISORY.CONSUMER.CREATED.EVENTS_0.>";
    let mut scans = client.subscribe(advisories).await?;
    client.flush().await?;
    let users: Vec<String> = (0..60).map(|n| format!("crowd-{n}")).collect();
    let mut places = vec![None; users.len()];
    for largest in [100, 300_000] {
        for user in &users {
            Connection::login(&url, user).await?.close().await;
        }
        for user in &users[..40] {
            fill(&broker, user, 40, 100).await?;
        }
        // Once larger than what is read at once.
        fill(&broker, "bystander", 1, largest).await?;
        for user in &users[40..] {
            fill(&broker, user, 40, 100).await?;
        }
        let come_back = users.iter().zip(&places).map(async |(user, place)| {
            let mut device = Connection::connect(&url, user, "default").await?;
            let all = drain_after(&mut device, *place, 40, |_| Ok(())).await;
            device.close().await;
            all.with_context(|| user.clone())
        });
        places = try_join_all(come_back).await?;
        timeout(GENEROUS, scans.next()).await?.context("the log was not scanned")?;
        while scans.next().now_or_never().flatten().is_some() {}
    }
    let events = broker.get_stream(subject::events(0)).await?;
    eventually("no consumer is left", Duration::from_secs(10), async || {
        let left: Vec<_> = events.consumer_names().collect().await;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_a_device_missed_it_gets_them_all() -> Result<()> {
    let (_cluster, gateway, broker) = gateway(&[]).await?;
    let url = format!("ws://{}/ws", gateway.address);
    // Few are read one by one, many together, up to 64 that may be unacked.
    for count in [1, 2, 14, 15, 16, 17, 62, 63, 64, 65, 66, 130] {
        let user = format!("away-{count}");
        Connection::login(&url, &user).await?.close().await;
        fill(&broker, &user, count, 10).await?;
        let mut device = Connection::connect(&url, &user, "default").await?;
        let all = drain_after(&mut device, None, count, |_| Ok(())).await;
        let last = all.with_context(|| format!("{count} missed"))?;
        device.close().await;
        // It goes on where it has acked, or before: its last acks may not have been heard.
        fill(&broker, &user, count, 10).await?;
        let mut device = Connection::connect(&url, &user, "default").await?;
        let all = drain_after(&mut device, last, count, |_| Ok(())).await;
        all.with_context(|| format!("{count} missed again"))?;
    }
    Ok(())
}

/// What the broker is asked for directly about event stream 0.
async fn direct_gets(cluster: &Cluster) -> Result<(Subscriber, async_nats::Client)> {
    let client = async_nats::connect(cluster.broker.url()).await?;
    let gets = client.subscribe("$JS.API.DIRECT.GET.EVENTS_0").await?;
    client.flush().await?;
    Ok((gets, client))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_for_long_gets_everything_and_nobody_has_to_wait_for_a_batch_of_it()
-> Result<()> {
    const MISSED: u64 = 40;
    const BETWEEN: u64 = 500;
    let (cluster, gateway, broker) = gateway(&[]).await?;
    let url = format!("ws://{}/ws", gateway.address);
    let mut last = None;
    for _ in 0..2 {
        Connection::login(&url, "away").await?.close().await;
        let others = |n| (1..=BETWEEN).map(move |other| ("bystander", n * BETWEEN + other));
        let events = (1..=MISSED).flat_map(|n| [("away", n)].into_iter().chain(others(n)));
        fill_all(&broker, events, 10).await?;
        let (mut gets, _client) = direct_gets(&cluster).await?;
        let mut device = Connection::connect(&url, "away", "default").await?;
        last = drain_after(&mut device, last, MISSED, |_| Ok(())).await?;
        device.close().await;
        let (mut reads, mut batches) = (0, 0);
        while let Some(get) = gets.next().now_or_never().flatten() {
            let get: Value = serde_json::from_slice(&get.payload)?;
            reads += u64::from(get["next_by_subj"].is_string());
            batches += u64::from(get["next_by_subj"].is_string() && get["batch"].is_u64());
        }
        ensure!(reads > MISSED && batches == 0, "{reads} reads, {batches} batches");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_for_so_long_that_events_were_dropped_is_told_however_many_are_left()
-> Result<()> {
    const BETWEEN: u64 = 200;
    let options = Options::of(1, 1).worker_flags(&["--events-max-per-user", "100"]);
    let cluster = Cluster::start(Backend::Sqlite, options).await?;
    let broker = jetstream::new(async_nats::connect(cluster.broker.url()).await?);
    // The stream reaches back.
    fill(&broker, "older", 1, 10).await?;
    for missed in [100, 101] {
        let user = format!("missed-{missed}");
        cluster.connect(&user).await?.close().await?;
        let others = |n| (1..=BETWEEN).map(move |other| ("bystander", n * BETWEEN + other));
        let events = (1..=missed).flat_map(|n| [(&*user, n)].into_iter().chain(others(n)));
        fill_all(&broker, events, 10).await?;
        let first = cluster.connect(&user).await?.recv().await?;
        // A log that is as full as it may be could have lost some.
        ensure!(first["eventType"] == "resync", "{missed}: {first}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lies_far_back_is_not_read_for_those_who_are_gone() -> Result<()> {
    // Fewer than make a crowd.
    const USERS: u64 = 7;
    const MISSED: u64 = 20;
    const BETWEEN: u64 = 1000;
    let cluster = Cluster::start(Backend::Sqlite, Options::of(1, 1)).await?;
    let broker = jetstream::new(async_nats::connect(cluster.broker.url()).await?);
    let proxy = Proxy::start(cluster.broker.address()).await?;
    let nats = format!("nats://{}", proxy.address());
    let gateway =
        cluster.gateway_process("gateway", &["--sweep", "1h", "--nats-url", &nats]).await?;
    let url = format!("ws://{}/ws", gateway.address);
    let users: Vec<String> = (0..USERS).map(|n| format!("away-{n}")).collect();
    for user in &users {
        Connection::login(&url, user).await?.close().await;
    }
    let others = |n| (1..=BETWEEN).map(move |other| ("bystander", n * BETWEEN + other));
    let all = |n| users.iter().map(move |user| (&**user, n));
    fill_all(&broker, (1..=MISSED).flat_map(|n| all(n).chain(others(n))), 10).await?;
    let (mut gets, _client) = direct_gets(&cluster).await?;
    let is_read = |get: &async_nats::Message| {
        serde_json::from_slice(&get.payload).is_ok_and(|get: Value| get["next_by_subj"].is_string())
    };
    // An event takes as long as if it were read from a slow disk.
    proxy.set(Mode::Delay(Duration::from_millis(20)));
    let come_back = users.iter().map(|user| Connection::connect(&url, user, "default"));
    let devices = try_join_all(come_back).await?;
    timeout(GENEROUS, async { while !gets.next().await.as_ref().is_none_or(is_read) {} }).await?;
    for device in devices {
        device.close().await;
    }
    eventually("nothing is read any more", Duration::from_secs(4), async || {
        while gets.next().now_or_never().is_some() {}
        let read = async { while !gets.next().await.as_ref().is_none_or(is_read) {} };
        ensure!(timeout(Duration::from_millis(500), read).await.is_err(), "one was");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_heard_live_is_found_by_a_sweep_which_asks_for_nothing_long_known() -> Result<()>
{
    let options = Options::of(1, 1).gateway_flags(&["--sweep", "1s"]);
    let cluster = Cluster::start(Backend::Sqlite, options).await?;
    let broker = jetstream::new(async_nats::connect(cluster.broker.url()).await?);
    let (mut gets, _client) = direct_gets(&cluster).await?;
    let mut device = Connection::login(&cluster.url(0)?, "listener").await?;
    fill(&broker, "listener", 1, 10).await?;
    let heard = drain_after(&mut device, None, 1, |_| Ok(())).await?;
    // From now on nothing is heard.
    let config = broker.get_stream(subject::events(0)).await?.cached_info().config.clone();
    broker.update_stream(jetstream::stream::Config { republish: None, ..config }).await?;
    fill(&broker, "listener", 1, 10).await?;
    let found = drain_after(&mut device, heard, 1, |_| Ok(())).await?;
    let newer = async {
        while let Some(get) = gets.next().await {
            let get: Value = serde_json::from_slice(&get.payload)?;
            if get["multi_last"].is_array() && get["seq"].as_u64() > found {
                return Ok(());
            }
        }
        anyhow::bail!("the subscription has ended")
    };
    timeout(GENEROUS, newer).await.context("a sweep asks for what it knows")?
}
