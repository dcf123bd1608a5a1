//! A worker dies in the middle of its work: another one goes on, in order, without leaving anything out.

use std::time::Duration;

use anyhow::{Result, ensure};
use async_nats::jetstream::{self, stream::Stream};
use herald_proto::subject;
use herald_tests::{
    Backend, Binaries, Client, Cluster, Options, Process, Program, eventually, http, port,
};
use herald_worker::topology::DEFAULT;
use serde_json::{Value, json};

on_both! {
    a_new_broker_beside_an_old_database_goes_on_where_the_database_is
    a_killed_workers_frames_are_all_answered_by_the_next_one_without_being_sent_again
}

/// The broker has lost its disks, or someone started with a fresh one: its sequences begin anew.
async fn a_new_broker_beside_an_old_database_goes_on_where_the_database_is(
    backend: Backend,
) -> Result<()> {
    let new = |key: &str| json!({"chatId": "User2", "clientMessageId": key, "message": key});
    let mut cluster = Cluster::start(backend, Options::default()).await?;
    let mut user1 = cluster.connect("User1").await?;
    for key in ["a", "b", "c"] {
        user1.request("new", new(key)).await?;
    }
    cluster.gateways.remove(0).stop().await?;
    cluster.workers.remove(0).stop().await?;
    let Cluster { database, broker, .. } = cluster;
    drop(broker);
    let cluster = Cluster::start_on(database, Options::default()).await?;
    let mut user1 = cluster.connect("User1").await?;
    let mut user2 = cluster.connect("User2").await?;
    assert_eq!(user1.request("new", new("b")).await?["payload"]["messageId"], 2, "a repeat");
    assert_eq!(user1.request("new", new("d")).await?["payload"]["messageId"], 4);
    let event = user2.event("new").await?;
    assert_eq!(
        (&event["payload"]["messageId"], &event["payload"]["missed"]),
        (&json!(4), &json!(4))
    );
    let read = user2.request("read", json!({"chatId": "User1"})).await?;
    assert_eq!(read["payload"]["missed"], 0, "{read}");
    assert_eq!(user1.event("read").await?["payload"]["messageId"], 4);
    user2.nothing_more().await
}

/// A `herald-worker` in a process of its own, for SIGKILL.
async fn worker(cluster: &Cluster, binaries: &Binaries, name: &str) -> Result<Process> {
    let port = port::free()?;
    let program =
        Program::new(name, &binaries.worker, cluster.scratch().join(format!("{name}.log")))
            .args([
                "run",
                "--nats-url",
                &cluster.broker.url(),
                "--database-url",
                cluster.database.url(),
            ])
            .args(["--health-listen", &format!("127.0.0.1:{port}"), "--ack-wait", "1s"])
            .args(["--pin-timeout", "1s", "--batch", "16"]);
    let mut process = Process::spawn(&program)?;
    let address = ([127, 0, 0, 1], port).into();
    let ready = eventually("the worker is ready", Duration::from_secs(30), async || {
        http::ready(address).await
    });
    process.until(ready).await?;
    Ok(process)
}

async fn a_killed_workers_frames_are_all_answered_by_the_next_one_without_being_sent_again(
    backend: Backend,
) -> Result<()> {
    const CHATS: usize = 6;
    const MESSAGES: usize = 400;
    let binaries = Binaries::build(false).await?;
    let flags = ["--request-timeout", "60s", "--max-open-requests", "5000", "--burst", "10000"];
    let mut cluster = Cluster::start(backend, Options::of(1, 1).gateway_flags(&flags)).await?;
    // The one in this process only creates what is missing.
    cluster.workers.remove(0).stop().await?;
    let mut first = worker(&cluster, &binaries, "first").await?;
    let mut sender = cluster.connect("sender").await?;
    let frame = |chat: usize, n: usize| {
        json!({"type": "request", "timestamp": 1, "id": format!("{chat}-{n}"),
        "payloadType": "new", "payload": {"chatId": format!("peer{chat}"), "clientMessageId": format!("{chat}-{n}"),
        "message": "x"}})
    };
    sender.send(&frame(0, 0)).await?;
    sender.response("0-0").await?;
    let _second = worker(&cluster, &binaries, "second").await?;
    // Steadily, so that new frames come while the dead worker's are redelivered.
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    for n in 1..MESSAGES {
        pace.tick().await;
        for chat in 0..CHATS {
            sender.send(&frame(chat, n)).await?;
        }
        if n == MESSAGES / 10 {
            first.kill().await?;
        }
    }
    for n in 1..MESSAGES {
        for chat in 0..CHATS {
            let answer = eventually("an answer", Duration::from_secs(20), async || {
                sender.response(&format!("{chat}-{n}")).await
            })
            .await?;
            let expected = if chat == 0 { n + 1 } else { n };
            assert_eq!(answer["payload"]["messageId"], Value::from(expected), "{answer}");
        }
    }
    for chat in 0..CHATS {
        let mut peer = cluster.connect(&format!("peer{chat}")).await?;
        let answer = peer.request("read", json!({"chatId": "sender", "messageId": 1})).await?;
        let count = if chat == 0 { MESSAGES } else { MESSAGES - 1 };
        assert_eq!(answer["payload"]["missed"], Value::from(count - 1), "{answer}");
    }
    Ok(())
}

/// Which client the broker has pinned to each partition, after each has had a frame.
async fn pins(frames: &Stream, sender: &mut Client, round: &str) -> Result<Vec<Option<String>>> {
    for peer in 0..64 {
        let key = format!("{round}-{peer}");
        let new = json!({"chatId": format!("peer{peer}"), "clientMessageId": key, "message": "x"});
        sender.request("new", new).await?;
    }
    let mut pins = Vec::new();
    for partition in 0..DEFAULT.partitions {
        let info = frames.consumer_info(subject::consumer(partition)).await?;
        pins.extend(info.priority_groups.into_iter().map(|group| group.pinned_client_id));
    }
    Ok(pins)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_comes_gets_half_of_the_partitions_and_gives_them_back_when_it_goes()
-> Result<()> {
    let cluster = Cluster::start(Backend::Sqlite, Options::of(1, 1)).await?;
    let broker = jetstream::new(async_nats::connect(cluster.nats_url()).await?);
    let frames = broker.get_stream(subject::FRAMES).await?;
    let mut sender = cluster.connect("sender").await?;
    let alone = pins(&frames, &mut sender, "alone").await?;
    assert_eq!(alone.iter().flatten().count(), usize::from(DEFAULT.partitions), "{alone:?}");
    let second = cluster.worker().await?;
    let mut round = 0;
    eventually("half of the partitions have moved", Duration::from_secs(30), async || {
        round += 1;
        let now = pins(&frames, &mut sender, &format!("two-{round}")).await?;
        let moved = now.iter().zip(&alone).filter(|(now, before)| now != before).count();
        ensure!(moved == usize::from(DEFAULT.partitions / 2), "{moved} have moved");
        Ok(())
    })
    .await?;
    second.stop().await?;
    let back = pins(&frames, &mut sender, "alone again").await?;
    assert_eq!(back.iter().flatten().count(), usize::from(DEFAULT.partitions), "{back:?}");
    Ok(())
}
