//! No id, however odd, reaches another user's subject, key or row.

use anyhow::Result;
use herald_tests::{Backend, Cluster, Options};
use serde_json::json;

on_both! {
    odd_ids_reach_their_own_users_and_nobody_else
}

async fn odd_ids_reach_their_own_users_and_nobody_else(backend: Backend) -> Result<()> {
    let cluster = Cluster::start(backend, Options::default()).await?;
    let long = "x".repeat(128);
    let ids = [
        "User",
        "User.*",
        "User.1",
        "User.>",
        ">",
        "*",
        "a b",
        "a",
        "b",
        "用户",
        "🦀",
        "=2E",
        ".",
        "..",
        "$JS.API",
        "_INBOX.>",
        "'; DROP TABLE messages; --",
        "%",
        "\\",
        "\"",
        "User2 ",
        "\u{202e}resU",
        &long,
    ];
    let mut clients = Vec::new();
    for id in ids {
        clients.push(cluster.connect_to(0, id, "*.>").await?);
    }
    let mut sender = cluster.connect_to(0, "sender", "🦀 .*").await?;
    for (n, id) in ids.iter().enumerate() {
        let payload = json!({"chatId": id, "clientMessageId": format!("{id:.60}"), "message": format!("for {id}")});
        let answer = sender.request("new", payload).await?;
        assert_eq!(answer["payload"]["messageId"], 1, "{id}: {answer}");
        let typing = json!({"type": "event", "timestamp": 1, "payloadType": "typing", "payload": {"chatId": id}});
        sender.send(&typing).await?;
        let event = clients[n].event("new").await?;
        assert_eq!(event["payload"]["message"], format!("for {id}"));
        assert_eq!(event["payload"]["chatId"], "sender");
        assert_eq!(clients[n].event("typing").await?["payload"]["chatId"], "sender");
        let answer = clients[n].request("read", json!({"chatId": "sender"})).await?;
        assert_eq!(answer["payload"]["missed"], 0, "{answer}");
        assert_eq!(sender.event("read").await?["payload"]["chatId"], *id);
    }
    for client in &mut clients {
        client.nothing_more().await?;
    }
    sender.nothing_more().await
}
