//! The programs tell what they do: by the numbers, by names that dashboards and alerts rely on, and of nobody in person.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use herald_tests::{
    Backend, Client, Cluster, Options, Scrape, eventually,
    otlp::Receiver,
    port,
    site::{Setup, Site},
};
use herald_worker::topology::DEFAULT;
use serde_json::{Value, json};

mod alerts;
mod dashboards;
mod names;
mod otlp;

const PATIENCE: Duration = Duration::from_secs(20);

/// User1 at the first gateway has sent three messages to User2 at the second one, who has taken and read them.
async fn busy() -> Result<(Cluster, Client, Client)> {
    let cluster = Cluster::start(Backend::Sqlite, Options::of(2, 1)).await?;
    let mut user1 = cluster.connect_to(0, "User1", "phone").await?;
    let mut user2 = cluster.connect_to(1, "User2", "phone").await?;
    for key in ["a", "b", "c"] {
        let new = json!({"chatId": "User2", "clientMessageId": key, "message": "hi"});
        let answer = user1.request("new", new).await?;
        assert!(answer.get("error").is_none(), "{answer}");
        take(&mut user2, "new").await?;
    }
    user2.request("read", json!({"chatId": "User1"})).await?;
    take(&mut user1, "read").await?;
    Ok((cluster, user1, user2))
}

async fn take(user: &mut Client, kind: &str) -> Result<()> {
    let event = user.event(kind).await?;
    user.ack(event["id"].as_u64().unwrap()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scrape_tells_what_was_done() -> Result<()> {
    let (cluster, mut user1, mut user2) = busy().await?;
    // Refused, and twice too fast: only the first `typing` is passed on.
    let empty = user1.request("new", json!({"chatId": "User2", "clientMessageId": "d"})).await?;
    assert_eq!(empty["error"]["code"], "bad_request");
    let stranger = json!({"chatId": "nobody", "messageId": 1});
    assert_eq!(user1.request("read", stranger).await?["error"]["code"], "not_found");
    for _ in 0..3 {
        let typing = json!({"type": "event", "timestamp": 1, "eventType": "typing", "payload": {"chatId": "User2"}});
        user1.send(&typing).await?;
    }
    user1.send_binary(&[1]).await?;
    user1.ack(0).await?;
    user2.event("typing").await?;

    let sender = Scrape::of(cluster.gateways[0].metrics).await?;
    let expect = |scrape: &Scrape, name: &str, labels: &[(&str, &str)], value: f64| {
        assert_eq!(scrape.sum(name, labels).unwrap(), value, "{name}{labels:?}");
    };
    let frames = "herald_gateway_frames_total";
    expect(&sender, frames, &[("kind", "new"), ("outcome", "accepted")], 3.0);
    expect(&sender, frames, &[("kind", "invalid"), ("outcome", "refused")], 1.0);
    expect(&sender, frames, &[("kind", "read"), ("outcome", "accepted")], 1.0);
    expect(&sender, frames, &[("kind", "binary"), ("outcome", "refused")], 1.0);
    expect(&sender, frames, &[("kind", "typing"), ("outcome", "accepted")], 3.0);
    expect(&sender, frames, &[("kind", "ack"), ("outcome", "accepted")], 3.0);
    expect(&sender, "herald_gateway_typing_total", &[("outcome", "forwarded")], 1.0);
    expect(&sender, "herald_gateway_typing_total", &[("outcome", "dropped")], 2.0);
    let requests = "herald_gateway_requests_total";
    expect(&sender, requests, &[("kind", "new"), ("outcome", "answered")], 3.0);
    expect(&sender, requests, &[("outcome", "timed_out")], 0.0);
    let response = "herald_gateway_response_duration_seconds";
    expect(&sender, &format!("{response}_count"), &[("kind", "new")], 3.0);
    assert!(sender.sum(&format!("{response}_sum"), &[("kind", "new")])? > 0.0);
    expect(&sender, "herald_gateway_publish_requests_sum", &[], 4.0);
    expect(&sender, "herald_gateway_publishes_total", &[("outcome", "confirmed")], 4.0);
    expect(&sender, "herald_gateway_connections", &[("state", "open")], 1.0);
    expect(&sender, "herald_gateway_logins_total", &[("outcome", "accepted")], 1.0);
    expect(&sender, "herald_gateway_open_requests", &[], 0.0);
    expect(&sender, "herald_nats_connected", &[], 1.0);
    expect(&sender, "herald_gateway_tap_connected", &[], 1.0);

    let recipient = Scrape::of(cluster.gateways[1].metrics).await?;
    let events = "herald_gateway_events_total";
    expect(&sender, events, &[("kind", "read"), ("path", "live")], 1.0);
    expect(&recipient, events, &[("kind", "new"), ("path", "live")], 3.0);
    expect(&recipient, events, &[("kind", "typing"), ("path", "live")], 1.0);
    expect(&recipient, events, &[("kind", "unknown")], 0.0);
    expect(&recipient, events, &[("path", "again")], 0.0);
    expect(&recipient, "herald_gateway_delivery_duration_seconds_count", &[], 3.0);
    expect(&recipient, "herald_gateway_ack_duration_seconds_count", &[], 3.0);
    expect(&recipient, "herald_gateway_unacked_events", &[], 0.0);
    // An ack comes after its delivery, by the same clock.
    let sum =
        |name: &str| recipient.sum(&format!("herald_gateway_{name}_duration_seconds_sum"), &[]);
    assert!(sum("ack")? >= sum("delivery")?);

    let worker = Scrape::of(cluster.workers[0].metrics).await?;
    let frames = "herald_worker_frames_total";
    expect(&worker, frames, &[("kind", "new"), ("code", "ok")], 3.0);
    expect(&worker, frames, &[("kind", "read"), ("code", "ok")], 1.0);
    expect(&worker, frames, &[("kind", "read"), ("code", "not_found")], 1.0);
    expect(&worker, "herald_worker_events_total", &[("kind", "new")], 3.0);
    expect(&worker, "herald_worker_events_total", &[("kind", "read")], 1.0);
    expect(&worker, "herald_worker_batch_frames_sum", &[], 5.0);
    let committed = worker.sum("herald_worker_transactions_total", &[("outcome", "committed")])?;
    let count = worker.sum("herald_worker_transaction_duration_seconds_count", &[])?;
    assert!((1.0..=5.0).contains(&committed) && count == committed, "{committed} {count}");
    expect(&worker, "herald_worker_replays_total", &[], 0.0);
    expect(&worker, "herald_worker_dead_letters_total", &[], 0.0);
    expect(&worker, "herald_worker_partition_owned", &[], f64::from(DEFAULT.partitions));
    expect(&worker, "herald_worker_members", &[], 1.0);
    expect(&worker, "herald_worker_events_connected", &[], 1.0);
    for scrape in [&sender, &recipient, &worker] {
        for name in ["process_resident_memory_bytes", "process_open_fds", "tokio_alive_tasks"] {
            assert!(scrape.sum(name, &[])? > 0.0, "{name}");
        }
        let now = f64::from(u32::try_from(now_seconds())?);
        assert!((0.0..86_400.0).contains(&(now - scrape.sum("process_start_time_seconds", &[])?)));
        assert!(scrape.0.iter().all(|family| family.help.ends_with('.')), "all say what they mean");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_goes_to_the_broker_and_comes_from_it_is_counted() -> Result<()> {
    const REQUESTS: u32 = 50;
    let (cluster, mut user1, _user2) = busy().await?;
    let nats = async |what: &str| {
        let scrape = Scrape::of(cluster.gateways[0].metrics).await?;
        let of = |direction| scrape.sum(what, &[("direction", direction)]);
        anyhow::Ok((of("in")?, of("out")?))
    };
    let (messages, bytes) = ("herald_nats_messages_total", "herald_nats_transferred_bytes_total");
    let before = (nats(messages).await?, nats(bytes).await?);
    for _ in 0..REQUESTS {
        user1.request("read", json!({"chatId": "User2"})).await?;
    }
    let requests = f64::from(REQUESTS);
    // What comes in is counted a moment after it is handed on.
    eventually("all is counted", PATIENCE, async || {
        let after = (nats(messages).await?, nats(bytes).await?);
        let more = |more: f64, least: f64| {
            ensure!(more >= least, "{before:?} {after:?}");
            Ok(())
        };
        more(after.0.1 - before.0.1, requests)?;
        // Each is confirmed and answered.
        more(after.0.0 - before.0.0, requests * 2.0)?;
        more(after.1.1 - before.1.1, requests * 100.0)?;
        more(after.1.0 - before.1.0, requests * 100.0)
    })
    .await?;
    Ok(())
}

fn now_seconds() -> u64 {
    let age = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    age.map_or(0, |age| age.as_secs())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_latency_names_the_trace_that_it_was_seen_in() -> Result<()> {
    let receiver = Receiver::start().await?;
    let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free()?));
    let own = ["--trace-ratio", "1", "--admin-listen", &admin.to_string()].map(ToOwned::to_owned);
    let site = Site::start(Setup {
        gateway_flags: [receiver.grpc_flags().as_slice(), &own].concat(),
        worker_flags: receiver.grpc_flags().to_vec(),
        env: vec![
            ("OTEL_BSP_SCHEDULE_DELAY".into(), "100".into()),
            ("OTEL_METRICS_EXPORTER".into(), "none".into()),
        ],
        ..Setup::default()
    })
    .await?;
    let url = |user: &str| format!("{}?userId={user}&deviceId=d", site.urls()[0]);
    let mut user1 = Client::connect(&url("User1")).await?.without_presence();
    let mut user2 = Client::connect(&url("User2")).await?.without_presence();
    user2.ack(0).await?;
    user1
        .request("new", json!({"chatId": "User2", "clientMessageId": "k", "message": "hi"}))
        .await?;
    take(&mut user2, "new").await?;
    let scrape = Scrape::of(admin).await?;
    let mut named = Vec::new();
    for name in ["response", "delivery", "ack"] {
        let name = format!("herald_gateway_{name}_duration_seconds_bucket");
        let samples: Vec<_> = scrape.matching(&name, &[]).collect();
        let exemplars = samples.iter().filter_map(|sample| sample.exemplar.as_ref());
        let traces: Vec<String> = exemplars.map(|exemplar| exemplar["trace_id"].clone()).collect();
        assert_eq!(traces.len(), 1, "{name}");
        named.extend(traces);
    }
    eventually("the trace is there to be looked at", PATIENCE, async || {
        let spans = receiver.spans().all();
        let found = spans.iter().find(|span| span.name == "ack EVENTS").context("no ack yet")?;
        ensure!(named.iter().all(|trace| *trace == found.trace), "{named:?} {}", found.trace);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_label_tells_of_a_user_and_their_number_does_not_grow_with_users() -> Result<()> {
    let (cluster, ..) = busy().await?;
    let series = async |cluster: &Cluster| {
        let mut series = 0;
        for member in cluster.gateways.iter().chain(&cluster.workers) {
            let scrape = Scrape::of(member.metrics).await?;
            for sample in scrape.samples() {
                let text = format!("{:?}", sample.labels);
                assert!(!text.contains("User") && !text.contains("phone"), "{text}");
            }
            series += scrape.samples().count();
        }
        Ok::<_, anyhow::Error>(series)
    };
    // How much waits in a partition is not told before the broker was asked.
    let before = eventually("every partition's lag is told", PATIENCE, async || {
        let scrape = Scrape::of(cluster.workers[0].metrics).await?;
        ensure!(
            scrape.matching("herald_worker_partition_lag", &[]).count()
                == usize::from(DEFAULT.partitions)
        );
        series(&cluster).await
    });
    let before = before.await?;
    for number in 0..5 {
        let mut user = cluster.connect(&format!("User-more-{number}")).await?;
        let new = json!({"chatId": "User2", "clientMessageId": "k", "message": "hi"});
        user.request("new", new).await?;
    }
    assert_eq!(series(&cluster).await?, before);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_not_told_metrics() -> Result<()> {
    let cluster = Cluster::start(Backend::Sqlite, Options::default()).await?;
    let (status, _) = herald_tests::http::get(cluster.gateways[0].address, "/metrics").await?;
    assert_eq!(status, 404);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_again_or_read_from_the_log_is_told_apart() -> Result<()> {
    let options = Options::of(1, 1).gateway_flags(&["--ack-wait", "200ms"]);
    let cluster = Cluster::start(Backend::Sqlite, options).await?;
    let mut user1 = cluster.connect("User1").await?;
    let user2 = cluster.connect("User2").await?;
    drop(user2);
    let new = json!({"chatId": "User2", "clientMessageId": "k", "message": "hi"});
    user1.request("new", new).await?;
    let mut user2 = cluster.connect("User2").await?;
    let first: Value = user2.event("new").await?;
    let again = user2.event("new").await?;
    assert_eq!(first["id"], again["id"]);
    let scrape = Scrape::of(cluster.gateways[0].metrics).await?;
    let events = |path| scrape.sum("herald_gateway_events_total", &[("path", path)]);
    assert_eq!(events("log")?, 1.0);
    assert!(events("again")? >= 1.0);
    assert_eq!(scrape.sum("herald_gateway_unacked_events", &[])?, 1.0);
    assert_eq!(scrape.sum("herald_gateway_delivery_duration_seconds_count", &[])?, 0.0);
    drop(user2);
    eventually("the window is given back", PATIENCE, async || {
        let scrape = Scrape::of(cluster.gateways[0].metrics).await?;
        ensure!(scrape.sum("herald_gateway_unacked_events", &[])? == 0.0);
        ensure!(scrape.sum("herald_gateway_connections", &[])? == 1.0);
        ensure!(scrape.sum("herald_gateway_sessions_closed_total", &[("code", "gone")])? == 2.0);
        Ok(())
    })
    .await
}
