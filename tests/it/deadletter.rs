//! A frame that can never be applied harms nobody, is kept with its reason, and can be tried again.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream;
use herald_proto::{Chat, UserId, subject};
use herald_tests::{Backend, Binaries, Client, Cluster, Options, eventually};
use herald_worker::topology::DEFAULT;
use serde_json::{Value, json};
use tokio::process::Command;

on_both! {
    a_frame_that_is_not_readable_is_put_aside_and_its_neighbours_are_applied
    a_poisonous_frame_is_put_aside_told_and_applied_when_it_is_requeued
}

/// What `herald-worker deadletter` prints.
async fn deadletter(cluster: &Cluster, args: &[&str]) -> Result<String> {
    let output = Command::new(Binaries::build(false).await?.worker)
        .args(["--log", "off", "deadletter"])
        .args(args)
        .env("HERALD_NATS_URL", cluster.nats_url())
        .output()
        .await?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {errors}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

async fn letters(cluster: &Cluster, args: &[&str]) -> Result<Vec<Value>> {
    let args = [&["list", "--json"], args].concat();
    let lines = deadletter(cluster, &args).await?;
    lines.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

async fn send(client: &mut Client, key: &str) -> Result<Value> {
    client.request("new", json!({"chatId": "User2", "clientMessageId": key, "message": key})).await
}

async fn expect(client: &mut Client, key: &str, message_id: u64) -> Result<()> {
    let event = client.event("new").await?;
    let found = (&event["payload"]["clientMessageId"], &event["payload"]["messageId"]);
    assert_eq!(found, (&json!(key), &json!(message_id)), "{event}");
    Ok(())
}

async fn a_frame_that_is_not_readable_is_put_aside_and_its_neighbours_are_applied(
    backend: Backend,
) -> Result<()> {
    let cluster = Cluster::start(backend, Options::default()).await?;
    let (mut user1, mut user2) = (cluster.connect("User1").await?, cluster.connect("User2").await?);
    let chat = Chat::between(&UserId::new("User1")?, &UserId::new("User2")?).context("a chat")?;
    let partition = subject::partition(&chat, DEFAULT.partitions);
    let subject = subject::frames(partition);
    let broker = jetstream::new(async_nats::connect(cluster.nats_url()).await?);
    send(&mut user1, "before").await?;
    expect(&mut user2, "before", 1).await?;
    let bodies = ["{\"secret\":", "{}", "\u{fffd}", ""];
    for body in bodies {
        broker.publish(subject.clone(), body.into()).await?.await?;
    }
    assert_eq!(send(&mut user1, "after").await?["payload"]["messageId"], 2);
    expect(&mut user2, "after", 2).await?;
    user2.nothing_more().await?;

    let found = letters(&cluster, &[]).await?;
    assert_eq!(found.len(), bodies.len(), "{found:?}");
    for (letter, body) in found.iter().zip(bodies) {
        assert_eq!(letter["partition"], partition, "{letter}");
        assert_eq!((&letter["subject"], &letter["size"]), (&json!(subject), &json!(body.len())));
        assert!(letter["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{letter}");
        assert!(letter["time"].as_str().is_some_and(|time| time.starts_with("20")), "{letter}");
        assert_eq!(letter.get("body"), None, "what users write is not shown unasked");
    }
    assert!(!deadletter(&cluster, &["list"]).await?.contains("secret"));
    assert_eq!(letters(&cluster, &["--body"]).await?[0]["body"], bodies[0]);

    // Tried again it dies again: the old letter goes, a new one comes.
    assert_eq!(deadletter(&cluster, &["requeue", "2"]).await?, "2\n");
    let sequences = eventually("a new letter", Duration::from_secs(10), async || {
        let sequences: Vec<Value> =
            letters(&cluster, &[]).await?.iter().map(|letter| letter["sequence"].clone()).collect();
        ensure!(sequences.len() == bodies.len(), "{sequences:?}");
        Ok(sequences)
    });
    assert_eq!(sequences.await?, [1, 3, 4, 5]);
    let error = deadletter(&cluster, &["requeue", "2"]).await.unwrap_err();
    assert!(error.to_string().contains("no dead letter 2"), "{error}");
    send(&mut user1, "last").await?;
    expect(&mut user2, "last", 3).await
}

async fn a_poisonous_frame_is_put_aside_told_and_applied_when_it_is_requeued(
    backend: Backend,
) -> Result<()> {
    let mut cluster = Cluster::start(backend, Options::default()).await?;
    let (mut user1, mut user2) = (cluster.connect("User1").await?, cluster.connect("User2").await?);
    cluster.workers.remove(0).stop().await?;
    let poisoned = [("FAILPOINTS", "poison=return(bad-)")];
    let mut poisoned = cluster.worker_process("poisoned", &[], &poisoned).await?;
    let keys = ["good-1", "bad-1", "good-2", "bad-2", "good-3"];
    // All at once, so that they share batches.
    for key in keys {
        let frame = json!({"type": "request", "timestamp": 1, "id": key, "payloadType": "new",
            "payload": {"chatId": "User2", "clientMessageId": key, "message": key}});
        user1.send(&frame).await?;
    }
    for key in keys {
        let answer = user1.response(key).await?;
        if key.starts_with("bad") {
            assert_eq!(answer["error"]["code"], "unavailable", "{answer}");
            assert!(answer["error"]["retryAfter"].is_u64(), "{answer}");
        } else {
            assert!(answer.get("error").is_none(), "{answer}");
        }
    }
    for (key, id) in [("good-1", 1), ("good-2", 2), ("good-3", 3)] {
        expect(&mut user2, key, id).await?;
    }
    user2.nothing_more().await?;
    assert_eq!(letters(&cluster, &[]).await?.len(), 2);

    poisoned.process.kill().await?;
    let _healthy = cluster.worker_process("healthy", &[], &[]).await?;
    assert_eq!(deadletter(&cluster, &["requeue", "1"]).await?, "1\n");
    expect(&mut user2, "bad-1", 4).await?;
    assert_eq!(deadletter(&cluster, &["requeue", "--all"]).await?, "2\n");
    expect(&mut user2, "bad-2", 5).await?;
    assert_eq!(letters(&cluster, &[]).await?.len(), 0);
    assert_eq!(deadletter(&cluster, &["requeue", "--all"]).await?, "");
    // The sender, who was told to try again, learns that it is stored; nothing comes of it twice.
    assert_eq!(send(&mut user1, "bad-1").await?["payload"]["messageId"], 4);
    assert_eq!(send(&mut user1, "bad-2").await?["payload"]["messageId"], 5);
    user1.nothing_more().await?;
    user2.nothing_more().await
}
