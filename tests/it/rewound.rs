//! The broker comes back with less than it had confirmed: a power failure took its newest messages, or someone restored
//! an older copy of its disks. No event id is given out twice, no device is stuck, no request is left out.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use async_nats::jetstream;
use herald_tests::{Backend, Client, Cluster, Options, eventually};
use serde_json::{Value, json};

on_both! {
    a_broker_restored_from_an_older_copy_gives_no_id_out_twice_and_leaves_no_one_stuck
    an_event_stream_that_is_created_anew_goes_on_past_every_id_given_out
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Sends a message until it is accepted, as a client does, and returns its messageId.
async fn say(client: &mut Client, peer: &str, key: &str) -> Result<Value> {
    let payload = json!({"chatId": peer, "clientMessageId": key, "message": key});
    eventually("a message is accepted", Duration::from_secs(30), async || {
        let answer = client.request("new", payload.clone()).await?;
        let id = &answer["payload"]["messageId"];
        anyhow::ensure!(id.is_number(), "{answer}");
        Ok(id.clone())
    })
    .await
}

/// The next `new`; answers whether a `resync` came before it.
async fn next_new(client: &mut Client) -> Result<(bool, u64, Value)> {
    let mut resync = false;
    loop {
        let frame =
            eventually("an event", Duration::from_secs(30), async || client.recv().await).await?;
        match frame["eventType"].as_str() {
            Some("resync") => resync = true,
            Some("new") => {
                let id = frame["id"].as_u64().context("an id")?;
                return Ok((resync, id, frame["payload"]["messageId"].clone()));
            }
            _ => {}
        }
    }
}

async fn a_broker_restored_from_an_older_copy_gives_no_id_out_twice_and_leaves_no_one_stuck(
    backend: Backend,
) -> Result<()> {
    let options = Options::default().gateway_flags(&["--sweep", "1s"]);
    let mut cluster = Cluster::start(backend, options).await?;
    let mut user1 = cluster.connect("User1").await?;
    let mut user2 = cluster.connect("User2").await?;
    let mut quiet = cluster.connect("User3").await?;
    // A device that is away while it happens.
    drop(cluster.connect_to(0, "User2", "tablet").await?);
    say(&mut user1, "User3", "to the quiet one").await?;
    let (_, first, _) = next_new(&mut quiet).await?;
    quiet.ack(first).await?;
    for n in 1..=3 {
        assert_eq!(say(&mut user1, "User2", &format!("kept {n}")).await?, n);
        let (_, id, _) = next_new(&mut user2).await?;
        user2.ack(id).await?;
    }
    // In peace, so that all of it is on the disk.
    cluster.broker.stop().await?;
    let older = cluster.scratch().with_extension("older");
    copy(&cluster.scratch().join("jetstream"), &older)?;
    cluster.broker.restart().await?;

    let mut highest = 0;
    for n in 4..=40 {
        assert_eq!(say(&mut user1, "User2", &format!("lost {n}")).await?, n);
        let (resync, id, _) = next_new(&mut user2).await?;
        assert!(!resync && id > highest, "a restart on its data loses nothing");
        highest = id;
        if n < 39 {
            user2.ack(id).await?;
        }
    }
    cluster.broker.kill().await?;
    fs::remove_dir_all(cluster.scratch().join("jetstream"))?;
    copy(&older, &cluster.scratch().join("jetstream"))?;
    fs::remove_dir_all(&older)?;
    cluster.broker.restart().await?;

    // The quiet one hears of it although no event comes for it.
    eventually("the quiet session is told to reload", Duration::from_secs(30), async || {
        let frame = quiet.recv().await?;
        anyhow::ensure!(frame["eventType"] == "resync", "{frame}");
        Ok(())
    })
    .await?;
    // The stream counts sequences again that were applied before: these are other frames.
    let answer = user1
        .request(
            "new",
            json!({"chatId": "User2", "clientMessageId": "after 41", "message": "after 41"}),
        )
        .await?;
    assert_eq!(answer["payload"]["messageId"], 41, "{answer}");
    let mut resynced = false;
    for n in 41..=80 {
        assert_eq!(
            say(&mut user1, "User2", &format!("after {n}")).await?,
            n,
            "nothing accepted is lost"
        );
        if !resynced || n > 41 {
            let (resync, id, message) = next_new(&mut user2).await?;
            resynced |= resync;
            assert!(id > highest, "{id} was given out before: {highest}");
            assert_eq!(message, Value::from(n));
            highest = id;
            user2.ack(id).await?;
        }
    }
    assert!(resynced, "the open session was told to reload");
    let mut tablet = cluster.connect_to(0, "User2", "tablet").await?;
    let frame = tablet.recv().await?;
    assert_eq!(frame["eventType"], "resync", "{frame}");
    let read = user2.request("read", json!({"chatId": "User1"})).await?;
    assert_eq!(read["payload"]["messageId"], 80);
    assert_eq!(user1.event("read").await?["payload"]["messageId"], 80);
    Ok(())
}

async fn an_event_stream_that_is_created_anew_goes_on_past_every_id_given_out(
    backend: Backend,
) -> Result<()> {
    let options = Options::default().gateway_flags(&["--sweep", "1s"]);
    let mut cluster = Cluster::start(backend, options).await?;
    let mut user1 = cluster.connect("User1").await?;
    let mut user2 = cluster.connect("User2").await?;
    say(&mut user1, "User2", "before").await?;
    let (_, before, _) = next_new(&mut user2).await?;
    user2.ack(before).await?;
    let client = async_nats::connect(cluster.broker.url()).await?;
    jetstream::new(client).delete_stream("EVENTS_0").await?;
    // The worker that finds it gone ends; what starts it again is the supervisor, here the test.
    let payload = json!({"chatId": "User2", "clientMessageId": "after", "message": "after"});
    user1.request("new", payload).await?;
    cluster.workers.remove(0).ended().await?;
    let worker = cluster.worker().await?;
    cluster.workers.push(worker);
    let (resync, after, message) = next_new(&mut user2).await?;
    assert!(resync, "what the stream held is gone");
    assert!(after > before, "{after} after {before}");
    assert_eq!(message, 2);
    Ok(())
}
