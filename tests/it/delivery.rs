//! What a device has not acked is sent again, same id, in order, wherever it connects; what it has acked is not.

use anyhow::{Context as _, Result};
use herald_tests::{Backend, Client, Cluster, Options};
use serde_json::{Value, json};

on_both! {
    a_retry_through_another_gateway_gets_the_same_id_and_tells_the_peer_once
    unacked_events_come_again_first_and_in_order_at_another_gateway
    two_gateways_and_two_workers_keep_every_chat_in_order
}

async fn send(client: &mut Client, to: &str, key: &str) -> Result<Value> {
    client.request("new", json!({"chatId": to, "clientMessageId": key, "message": key})).await
}

fn key(event: &Value) -> &str {
    event.pointer("/payload/clientMessageId").and_then(Value::as_str).unwrap_or_default()
}

async fn a_retry_through_another_gateway_gets_the_same_id_and_tells_the_peer_once(
    backend: Backend,
) -> Result<()> {
    let cluster = Cluster::start(backend, Options::of(2, 2)).await?;
    let mut first = cluster.connect_to(0, "User1", "phone").await?;
    let mut second = cluster.connect_to(1, "User1", "laptop").await?;
    let mut user2 = cluster.connect_to(1, "User2", "phone").await?;
    let answer = send(&mut first, "User2", "k").await?;
    assert_eq!(answer["payload"]["messageId"], 1);
    assert_eq!(send(&mut second, "User2", "k").await?["payload"], answer["payload"]);
    assert_eq!(send(&mut first, "User2", "k").await?["payload"], answer["payload"]);
    assert_eq!(send(&mut second, "User2", "next").await?["payload"]["messageId"], 2);
    let event = user2.event("new").await?;
    assert_eq!((key(&event), &event["payload"]["missed"]), ("k", &json!(1)));
    let event = user2.event("new").await?;
    assert_eq!((key(&event), &event["payload"]["missed"]), ("next", &json!(2)));
    user2.nothing_more().await
}

async fn unacked_events_come_again_first_and_in_order_at_another_gateway(
    backend: Backend,
) -> Result<()> {
    let cluster = Cluster::start(backend, Options::of(2, 1)).await?;
    let mut user1 = cluster.connect("User1").await?;
    let mut phone = cluster.connect_to(0, "User2", "phone").await?;
    let mut laptop = cluster.connect_to(0, "User2", "laptop").await?;
    for key in ["a", "b", "c"] {
        send(&mut user1, "User2", key).await?;
    }
    let mut events = Vec::new();
    for _ in 0..3 {
        events.push(phone.event("new").await?);
    }
    // Acked out of order: the cursor stays before the hole.
    phone.ack(events[0]["id"].as_u64().unwrap()).await?;
    phone.ack(events[2]["id"].as_u64().unwrap()).await?;
    drop(phone);
    // Another device's acks are its own.
    for event in &events {
        assert_eq!(laptop.event("new").await?, *event, "the same on every device");
        laptop.ack(event["id"].as_u64().unwrap()).await?;
    }
    laptop.close().await?;
    send(&mut user1, "User2", "d").await?;

    let connected = herald_tests::eventually(
        "the cursor is stored",
        std::time::Duration::from_secs(10),
        async || {
            let mut phone = Client::connect(&cluster.user_url(1, "User2", "phone")?).await?;
            let first = phone.next_event().await?;
            anyhow::ensure!(key(&first) == "b", "{first}");
            Ok((phone, first))
        },
    )
    .await;
    let (mut phone, first) = connected?;
    assert_eq!(first, events[1], "the same id and the same prev on every redelivery");
    assert_eq!(phone.next_event().await?, events[2]);
    let last = phone.next_event().await?;
    assert_eq!((key(&last), &last["prev"]), ("d", &events[2]["id"]));
    phone.nothing_more().await?;

    let mut laptop = cluster.connect_to(1, "User2", "laptop").await?;
    assert_eq!(laptop.next_event().await?, last);
    laptop.nothing_more().await
}

async fn two_gateways_and_two_workers_keep_every_chat_in_order(backend: Backend) -> Result<()> {
    const CHATS: usize = 12;
    const MESSAGES: usize = 25;
    let cluster = std::sync::Arc::new(Cluster::start(backend, Options::of(2, 2)).await?);
    let mut chats = tokio::task::JoinSet::new();
    for chat in 0..CHATS {
        let cluster = cluster.clone();
        chats.spawn(async move {
            let (a, b) = (format!("a{chat}"), format!("b{chat}"));
            let mut sender = cluster.connect_to(chat % 2, &a, "d").await?;
            let mut receiver = cluster.connect_to((chat + 1) % 2, &b, "d").await?;
            for n in 0..MESSAGES {
                let frame = json!({"type": "request", "timestamp": 1, "id": format!("m{n}"), "payloadType": "new",
                    "payload": {"chatId": b, "clientMessageId": n.to_string(), "message": "x"}});
                sender.send(&frame).await?;
            }
            let mut prev = Value::from(0);
            for n in 0..MESSAGES {
                let answer = sender.response(&format!("m{n}")).await?;
                assert_eq!(answer["payload"]["messageId"], n + 1, "{answer}");
                let event = receiver.next_event().await?;
                assert_eq!((key(&event), &event["prev"]), (n.to_string().as_str(), &prev), "{event}");
                assert_eq!(event["payload"]["missed"], n + 1);
                prev = event["id"].clone();
                receiver.ack(event["id"].as_u64().unwrap()).await?;
            }
            receiver.nothing_more().await
        });
    }
    while let Some(chat) = chats.join_next().await {
        chat??;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unacked_event_comes_again_after_the_ack_wait() -> Result<()> {
    let options = Options::default().gateway_flags(&["--ack-wait", "300ms"]);
    let cluster = Cluster::start(Backend::Sqlite, options).await?;
    let (mut user1, mut user2) = (cluster.connect("User1").await?, cluster.connect("User2").await?);
    send(&mut user1, "User2", "a").await?;
    send(&mut user1, "User2", "b").await?;
    let (a, b) = (user2.next_event().await?, user2.next_event().await?);
    user2.ack(a["id"].as_u64().unwrap()).await?;
    assert_eq!(user2.next_event().await?, b);
    assert_eq!(user2.next_event().await?, b);
    user2.ack(b["id"].as_u64().unwrap()).await?;
    user2.ack(b["id"].as_u64().unwrap()).await?;
    user2.ack(999_999).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_device_begins_with_what_comes_after_it() -> Result<()> {
    let cluster = Cluster::start(Backend::Sqlite, Options::default()).await?;
    let mut user1 = cluster.connect("User1").await?;
    send(&mut user1, "User2", "before").await?;
    let mut phone = cluster.connect_to(0, "User2", "phone").await?;
    phone.nothing_more().await?;
    drop(phone);
    send(&mut user1, "User2", "after").await?;
    let mut phone = cluster.connect_to(0, "User2", "phone").await?;
    let event = phone.next_event().await?;
    assert_eq!(key(&event), "after");
    assert_ne!(event["prev"], 0, "the event before it is named, though this device never got it");
    phone.nothing_more().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_unacked_window_is_bounded_and_the_rest_comes_from_the_log() -> Result<()> {
    let options = Options::default().gateway_flags(&["--window", "4"]);
    let cluster = Cluster::start(Backend::Sqlite, options).await?;
    let (mut user1, mut user2) = (cluster.connect("User1").await?, cluster.connect("User2").await?);
    let keys: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    for key in &keys {
        send(&mut user1, "User2", key).await?;
    }
    let mut window = Vec::new();
    for expected in &keys[..4] {
        let event = user2.next_event().await?;
        assert_eq!(key(&event), expected);
        window.push(event);
    }
    user2.nothing_more().await?;
    let mut prev = window[3]["id"].clone();
    for event in window {
        user2.ack(event["id"].as_u64().unwrap()).await?;
    }
    for expected in &keys[4..] {
        let event = user2.next_event().await?;
        assert_eq!((key(&event), &event["prev"]), (expected.as_str(), &prev));
        prev = event["id"].clone();
        user2.ack(event["id"].as_u64().unwrap()).await?;
    }
    user2.nothing_more().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_no_longer_reaches_back_says_resync_once() -> Result<()> {
    let options = Options::default().worker_flags(&["--events-max-per-user", "3"]);
    let cluster = Cluster::start(Backend::Sqlite, options).await?;
    let mut user1 = cluster.connect("User1").await?;
    // Another user's older event: the stream itself reaches back, this user's log does not.
    send(&mut user1, "User3", "older").await?;
    let mut user2 = cluster.connect("User2").await?;
    send(&mut user1, "User2", "acked").await?;
    let event = user2.next_event().await?;
    user2.ack(event["id"].as_u64().unwrap()).await?;
    user2.close().await?;
    for n in 0..6 {
        send(&mut user1, "User2", &n.to_string()).await?;
    }
    let mut user2 = cluster.connect("User2").await?;
    let first = user2.recv().await?;
    assert_eq!((&first["eventType"], first.get("id")), (&json!("resync"), None), "{first}");
    for expected in ["3", "4", "5"] {
        let event = user2.next_event().await?;
        assert_eq!(key(&event), expected);
        user2.ack(event["id"].as_u64().unwrap()).await?;
    }
    user2.close().await?;
    let mut user2 = cluster.connect("User2").await?;
    send(&mut user1, "User2", "after").await?;
    assert_eq!(key(&user2.next_event().await?), "after", "no second resync, nothing again");
    user2.nothing_more().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_asks_for_just_before_it_goes_is_done() -> Result<()> {
    const CLIENTS: usize = 40;
    let cluster = Cluster::start(Backend::Sqlite, Options::default()).await?;
    let mut peer = cluster.connect("peer").await?;
    for n in 0..CLIENTS {
        let mut client = cluster.connect(&format!("user{n}")).await?;
        // An ack before it, so that they are taken together.
        client.send(&json!({"type": "ack", "id": 0})).await?;
        let payload = json!({"chatId": "peer", "clientMessageId": "k", "message": "and bye"});
        client
            .send(&json!({"type": "request", "id": "r", "timestamp": 1, "payloadType": "new", "payload": payload}))
            .await?;
        client.close().await?;
    }
    for _ in 0..CLIENTS {
        let event = peer.event("new").await?;
        peer.ack(event["id"].as_u64().context("no id")?).await?;
    }
    peer.nothing_more().await
}
