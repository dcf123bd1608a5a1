//! The whole life of a message, frame by frame as the protocol's examples show it.

use anyhow::Result;
use futures::future::try_join_all;
use herald_tests::{Backend, Client, Cluster, Options};
use serde_json::{Value, json};

on_both! {
    a_message_lives_its_whole_life_as_in_the_examples
    a_dlvrd_without_a_message_id_covers_all_so_far
    a_users_coming_and_going_is_told_to_its_contacts
    of_users_who_come_at_once_each_ones_own_contacts_are_told
}

/// The frame without what differs from run to run; checks that those are what they must be.
fn stable(mut frame: Value) -> Value {
    let now = herald_proto::clock::now_ms();
    let at = frame["timestamp"].as_i64().expect("a timestamp");
    assert!((now - 60_000..=now + 1000).contains(&at), "the service's own clock: {frame}");
    frame["timestamp"] = json!("now");
    if frame["type"] == "event" && frame.get("id").is_some() {
        assert!(frame["id"].is_u64() && frame["prev"].is_u64(), "{frame}");
        assert!(frame["id"].as_u64() > frame["prev"].as_u64(), "{frame}");
        frame["id"] = json!("n");
        frame["prev"] = json!("p");
    }
    if let Some(at) = frame.pointer_mut("/payload/timestamp") {
        assert!(at.is_i64());
        *at = json!("now");
    }
    frame
}

async fn acked(client: &mut Client, event: &Value) -> Result<()> {
    let id = event["id"].as_u64().unwrap();
    client.send(&json!({"type": "ack", "id": id})).await?;
    let answer = client.response(&id.to_string()).await?;
    assert_eq!(
        stable(answer),
        json!({"type": "response", "timestamp": "now", "id": id.to_string()})
    );
    Ok(())
}

async fn a_message_lives_its_whole_life_as_in_the_examples(backend: Backend) -> Result<()> {
    whole_life(&Cluster::start(backend, Options::default()).await?).await
}

/// A message's whole life, on any cluster that has not seen these users.
pub(crate) async fn whole_life(cluster: &Cluster) -> Result<()> {
    let mut user1 = cluster.connect("User1").await?;
    let mut user2 = cluster.connect("User2").await?;
    const KEY: &str = "9CD99794-6D8E-4E82-9C97-D474831A43E3";

    // typing
    let typing = json!({"type": "event", "timestamp": 1700500000000_i64, "payloadType": "typing",
        "payload": {"chatId": "User2"}});
    user1.send(&typing).await?;
    let event = user2.event("typing").await?;
    assert_eq!(
        stable(event),
        json!({"type": "event", "timestamp": "now", "eventType": "typing", "payload": {"chatId": "User1"}})
    );

    // new
    let attachment = json!({"type": "image", "id": "img123", "filename": "photo.jpg",
        "url": "<http://example.com/photo.jpg>",
        "meta": {"mimetype": "image/jpeg", "width": 1024, "height": 768, "size": 204800}});
    user1
        .send(&json!({"type": "request", "timestamp": 1700300000000_i64, "id": "1", "payloadType": "new",
            "payload": {"chatId": "User2", "clientMessageId": KEY, "message": "Check out this photo!",
                "attachments": [attachment]}}))
        .await?;
    let answer = user1.response("1").await?;
    assert_eq!(
        stable(answer),
        json!({"type": "response", "timestamp": "now", "id": "1",
            "payload": {"messageId": 1, "clientMessageId": KEY}})
    );
    let event = user2.event("new").await?;
    assert_eq!(event["prev"], 0);
    assert_eq!(
        stable(event.clone()),
        json!({"type": "event", "timestamp": "now", "id": "n", "prev": "p", "eventType": "new",
            "payload": {"chatId": "User1", "messageId": 1, "clientMessageId": KEY,
                "message": "Check out this photo!", "attachments": [attachment], "missed": 1}})
    );
    acked(&mut user2, &event).await?;

    // dlvrd
    user2
        .send(&json!({"type": "request", "timestamp": 1700200000000_i64, "id": "101", "payloadType": "dlvrd",
            "payload": {"chatId": "User1", "messageId": 1}}))
        .await?;
    let answer = user2.response("101").await?;
    assert_eq!(
        stable(answer),
        json!({"type": "response", "timestamp": "now", "id": "101", "payload": {}})
    );
    let event = user1.event("dlvrd").await?;
    assert_eq!(
        stable(event.clone()),
        json!({"type": "event", "timestamp": "now", "id": "n", "prev": "p", "eventType": "dlvrd",
            "payload": {"chatId": "User2", "messageId": 1, "clientMessageId": KEY, "timestamp": "now"}})
    );
    acked(&mut user1, &event).await?;

    // read
    user2
        .send(&json!({"type": "request", "timestamp": 1700200000000_i64, "id": "102", "payloadType": "read",
            "payload": {"chatId": "User1", "messageId": 1}}))
        .await?;
    let answer = user2.response("102").await?;
    assert_eq!(
        stable(answer),
        json!({"type": "response", "timestamp": "now", "id": "102", "payloadType": "read",
            "payload": {"chatId": "User1", "messageId": 1, "clientMessageId": KEY, "missed": 0}})
    );
    let read = user1.event("read").await?;
    assert_eq!(read["prev"], event["id"], "prev names the event before");
    assert_eq!(
        stable(read.clone()),
        json!({"type": "event", "timestamp": "now", "id": "n", "prev": "p", "eventType": "read",
            "payload": {"chatId": "User2", "messageId": 1, "clientMessageId": KEY}})
    );
    acked(&mut user1, &read).await?;

    // delete
    user1
        .send(&json!({"type": "request", "timestamp": 1700400000000_i64, "id": "2", "payloadType": "delete",
            "payload": {"chatId": "User2", "messageId": 1, "clientMessageId": KEY}}))
        .await?;
    let answer = user1.response("2").await?;
    assert_eq!(stable(answer), json!({"type": "response", "timestamp": "now", "id": "2"}));
    let event = user2.event("delete").await?;
    assert_eq!(
        stable(event.clone()),
        json!({"type": "event", "timestamp": "now", "id": "n", "prev": "p", "eventType": "delete",
            "payload": {"chatId": "User1", "messageId": 1, "clientMessageId": KEY}})
    );
    acked(&mut user2, &event).await?;

    user1.nothing_more().await?;
    user2.nothing_more().await
}

async fn a_dlvrd_without_a_message_id_covers_all_so_far(backend: Backend) -> Result<()> {
    let cluster = Cluster::start(backend, Options::default()).await?;
    let mut user1 = cluster.connect("User1").await?;
    let mut user2 = cluster.connect("User2").await?;
    for key in ["a", "b", "c"] {
        user2
            .request("new", json!({"chatId": "User1", "clientMessageId": key, "message": key}))
            .await?;
    }
    user1
        .send(&json!({"type": "request", "timestamp": 1700300000000_i64, "id": "14", "payloadType": "dlvrd",
            "payload": {"chatId": "User2"}}))
        .await?;
    let answer = user1.response("14").await?;
    assert_eq!(
        stable(answer),
        json!({"type": "response", "timestamp": "now", "id": "14", "payload": {}})
    );
    let event = user2.event("dlvrd").await?;
    assert_eq!(
        stable(event),
        json!({"type": "event", "timestamp": "now", "id": "n", "prev": "p", "eventType": "dlvrd",
            "payload": {"chatId": "User1", "messageId": 3, "clientMessageId": "c", "timestamp": "now"}})
    );
    user2.nothing_more().await
}

async fn a_users_coming_and_going_is_told_to_its_contacts(backend: Backend) -> Result<()> {
    coming_and_going(&Cluster::start(backend, Options::default()).await?, "User1", "User2").await
}

/// A contact sees a user come and go, on any cluster that has not seen them.
pub(crate) async fn coming_and_going(cluster: &Cluster, user: &str, contact: &str) -> Result<()> {
    let mut user2 = cluster.connect_with_presence(0, contact, "default").await?;
    let answer = user2
        .request("new", json!({"chatId": user, "clientMessageId": "k", "message": "hi"}))
        .await?;
    assert!(answer.get("error").is_none(), "{answer}");
    let mut user1 = cluster.connect(user).await?;
    let event = user2.event("online").await?;
    assert_eq!(
        stable(event),
        json!({"type": "event", "timestamp": "now", "eventType": "online", "payload": {"userId": user}})
    );
    user1
        .send(&json!({"type": "event", "timestamp": 1700400000000_i64, "eventType": "offline"}))
        .await?;
    let event = user2.event("offline").await?;
    assert_eq!(
        stable(event),
        json!({"type": "event", "timestamp": "now", "eventType": "offline", "payload": {"userId": user}})
    );
    drop(user1);
    // The mark of its removal does not hide that it comes again.
    let _user1 = cluster.connect(user).await?;
    assert_eq!(user2.event("online").await?["payload"]["userId"], user);
    Ok(())
}

async fn of_users_who_come_at_once_each_ones_own_contacts_are_told(backend: Backend) -> Result<()> {
    const USERS: usize = 40;
    // Through a gateway that has not seen them chat: it has to ask.
    let cluster = Cluster::start(backend, Options::of(2, 1)).await?;
    let mut contacts = Vec::new();
    for n in 0..USERS {
        let contact = format!("contact{n}");
        let mut contact = cluster.connect_with_presence(0, &contact, "default").await?;
        // Each has its own, and the next one's.
        for user in [n, (n + 1) % USERS] {
            let message = json!({"chatId": format!("user{user}"), "clientMessageId": user.to_string(), "message": "hi"});
            let answer = contact.request("new", message).await?;
            assert!(answer.get("error").is_none(), "{answer}");
        }
        contacts.push(contact);
    }
    let comes = async |n| cluster.connect_to(1, &format!("user{n}"), "default").await;
    let _users = try_join_all((0..USERS).map(comes)).await?;
    for (n, contact) in contacts.iter_mut().enumerate() {
        let mut told = Vec::new();
        for _ in 0..2 {
            told.push(contact.event("online").await?["payload"]["userId"].clone());
        }
        told.sort_by_key(ToString::to_string);
        let mut expected = [n, (n + 1) % USERS].map(|user| json!(format!("user{user}")));
        expected.sort_by_key(ToString::to_string);
        assert_eq!(told, expected);
        contact.nothing_more().await?;
    }
    Ok(())
}
