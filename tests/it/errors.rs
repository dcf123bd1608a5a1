//! Whatever a client does wrong, and whatever is down: it gets the named error, its session lives, nobody else notices.

use anyhow::Result;
use herald_tests::{Backend, Client, Cluster, Options};
use serde_json::{Value, json};

on_both! {
    each_bad_request_gets_its_named_error_and_the_session_lives
    a_missing_chat_or_message_is_not_found
    only_the_sender_can_delete
    a_key_used_for_another_message_is_a_conflict
    requests_are_unavailable_while_no_worker_answers_and_work_again_after
}

fn code(answer: &Value) -> &str {
    answer.pointer("/error/code").and_then(Value::as_str).unwrap_or("none")
}

fn message(answer: &Value) -> &str {
    answer.pointer("/error/message").and_then(Value::as_str).unwrap_or_default()
}

async fn send(client: &mut Client, to: &str, key: &str) -> Result<Value> {
    client.request("new", json!({"chatId": to, "clientMessageId": key, "message": "hi"})).await
}

async fn each_bad_request_gets_its_named_error_and_the_session_lives(
    backend: Backend,
) -> Result<()> {
    let cluster = Cluster::start(backend, Options::default()).await?;
    let (mut user1, mut user2) = (cluster.connect("User1").await?, cluster.connect("User2").await?);
    let new = |payload: Value| json!({"type": "request", "timestamp": 1, "id": "x", "payloadType": "new", "payload": payload});
    let bad = [
        (new(json!({"chatId": "User1", "clientMessageId": "k", "message": "to myself"})), "chatId"),
        (new(json!({"chatId": "User2", "clientMessageId": "k"})), "message"),
        (new(json!({"chatId": "User2", "clientMessageId": "k", "message": ""})), "message"),
        (new(json!({"chatId": "User2", "clientMessageId": "k", "message": "a\0b"})), "message"),
        (new(json!({"chatId": "User2", "clientMessageId": "", "message": "m"})), "clientMessageId"),
        (
            new(json!({"chatId": "User2", "clientMessageId": "k".repeat(65), "message": "m"})),
            "clientMessageId",
        ),
        (new(json!({"chatId": "u".repeat(129), "clientMessageId": "k", "message": "m"})), "chatId"),
        (new(json!({"chatId": "a\nb", "clientMessageId": "k", "message": "m"})), "chatId"),
        (new(json!({"clientMessageId": "k", "message": "m"})), "chatId"),
        (
            new(
                json!({"chatId": "User2", "clientMessageId": "k", "attachments": [{"id": "no type"}]}),
            ),
            "attachments[0]",
        ),
        (new(json!("not an object")), ""),
        (
            json!({"type": "request", "timestamp": 1, "id": "x", "payloadType": "shout", "payload": {}}),
            "payloadType",
        ),
        (json!({"type": "request", "timestamp": 1, "id": "x", "payload": {}}), "payloadType"),
        (json!({"type": "request", "id": "x", "payloadType": "new", "payload": {}}), "timestamp"),
        (
            json!({"type": "request", "timestamp": 1, "id": "x", "payloadType": "read",
            "payload": {"chatId": "User2", "messageId": 0}}),
            "messageId",
        ),
        (json!({"type": "wish", "timestamp": 1, "id": "x"}), "type"),
    ];
    for (frame, field) in bad {
        user1.send(&frame).await?;
        let answer = user1.response("x").await?;
        assert_eq!(code(&answer), "bad_request", "{frame}: {answer}");
        assert!(message(&answer).contains(field), "{frame}: {answer}");
    }
    let unreadable = [
        "",
        "{",
        "null",
        "[]",
        "nonsense",
        r#"{"type":"request","id":7,"timestamp":1}"#,
        r#"{"type":"ack","id":"x"}"#,
    ];
    for text in unreadable {
        user1.send_text(text).await?;
        let answer = user1.recv().await?;
        assert_eq!(
            (code(&answer), &answer["id"]),
            ("bad_request", &Value::Null),
            "{text}: {answer}"
        );
    }
    user1.send_binary(b"\x00\x01").await?;
    assert_eq!(code(&user1.recv().await?), "bad_request");
    // Events are never answered, known or not, right or wrong in what they name.
    user1.send(&json!({"type": "event", "timestamp": 1, "payloadType": "waves"})).await?;

    let stored = send(&mut user1, "User2", "k").await?;
    assert_eq!(stored["payload"]["messageId"], 1, "no bad frame took an id: {stored}");
    assert_eq!(user2.event("new").await?["payload"]["missed"], 1);
    user1.nothing_more().await?;
    user2.nothing_more().await
}

async fn a_missing_chat_or_message_is_not_found(backend: Backend) -> Result<()> {
    let cluster = Cluster::start(backend, Options::default()).await?;
    let (mut user1, mut user2) = (cluster.connect("User1").await?, cluster.connect("User2").await?);
    for kind in ["dlvrd", "read"] {
        let answer = user1.request(kind, json!({"chatId": "nobody"})).await?;
        assert_eq!(code(&answer), "not_found", "{kind}: {answer}");
    }
    assert_eq!(
        code(&user1.request("delete", json!({"chatId": "nobody", "messageId": 1})).await?),
        "not_found"
    );
    send(&mut user1, "User2", "k").await?;
    for kind in ["dlvrd", "read", "delete"] {
        let answer = user2.request(kind, json!({"chatId": "User1", "messageId": 2})).await?;
        assert_eq!(code(&answer), "not_found", "{kind}: {answer}");
        assert!(message(&answer).contains("messageId"), "{answer}");
    }
    user1.nothing_more().await
}

async fn only_the_sender_can_delete(backend: Backend) -> Result<()> {
    let cluster = Cluster::start(backend, Options::default()).await?;
    let (mut user1, mut user2) = (cluster.connect("User1").await?, cluster.connect("User2").await?);
    send(&mut user1, "User2", "k").await?;
    let answer = user2.request("delete", json!({"chatId": "User1", "messageId": 1})).await?;
    assert_eq!(code(&answer), "forbidden", "{answer}");
    let payload = json!({"chatId": "User2", "messageId": 1, "clientMessageId": "another"});
    assert_eq!(code(&user1.request("delete", payload).await?), "conflict");
    // Twice is as good as once, and tells the peer once.
    for _ in 0..2 {
        let answer = user1.request("delete", json!({"chatId": "User2", "messageId": 1})).await?;
        assert_eq!(code(&answer), "none", "{answer}");
    }
    assert_eq!(user2.event("delete").await?["payload"]["messageId"], 1);
    let read = user2.request("read", json!({"chatId": "User1"})).await?;
    assert_eq!(read["payload"]["missed"], 0, "a deleted message is not missed: {read}");
    user2.event("new").await?;
    user2.nothing_more().await
}

async fn a_key_used_for_another_message_is_a_conflict(backend: Backend) -> Result<()> {
    let cluster = Cluster::start(backend, Options::default()).await?;
    let mut user1 = cluster.connect("User1").await?;
    let first = send(&mut user1, "User2", "k").await?;
    assert_eq!(send(&mut user1, "User2", "k").await?["payload"], first["payload"]);
    let others = [
        json!({"chatId": "User2", "clientMessageId": "k", "message": "other"}),
        json!({"chatId": "User3", "clientMessageId": "k", "message": "hi"}),
        json!({"chatId": "User2", "clientMessageId": "k", "message": "hi", "attachments": [{"type": "t", "id": "i"}]}),
    ];
    for other in others {
        let answer = user1.request("new", other.clone()).await?;
        assert_eq!(code(&answer), "conflict", "{other}: {answer}");
    }
    // The key is the sender's own: another user's is another one.
    let mut user3 = cluster.connect("User3").await?;
    assert_eq!(code(&send(&mut user3, "User2", "k").await?), "none");
    // Deleting removes the content, and the key stays used.
    user1.request("delete", json!({"chatId": "User2", "messageId": 1})).await?;
    assert_eq!(send(&mut user1, "User2", "k").await?["payload"], first["payload"]);
    let payload = json!({"chatId": "User2", "clientMessageId": "k", "message": "other"});
    assert_eq!(code(&user1.request("new", payload).await?), "conflict");
    Ok(())
}

async fn requests_are_unavailable_while_no_worker_answers_and_work_again_after(
    backend: Backend,
) -> Result<()> {
    let options = Options::default().gateway_flags(&["--request-timeout", "300ms"]);
    let mut cluster = Cluster::start(backend, options).await?;
    let mut user1 = cluster.connect("User1").await?;
    cluster.workers.remove(0).stop().await?;
    let answer = send(&mut user1, "User2", "k").await?;
    assert_eq!(code(&answer), "unavailable");
    assert!(answer["error"]["retryAfter"].is_u64(), "{answer}");
    let worker = cluster.worker().await?;
    let stored = herald_tests::eventually(
        "the request is answered",
        std::time::Duration::from_secs(20),
        async || {
            let answer = send(&mut user1, "User2", "k").await?;
            anyhow::ensure!(code(&answer) == "none", "{answer}");
            Ok(answer)
        },
    )
    .await?;
    assert_eq!(stored["payload"]["messageId"], 1, "tried several times, stored once");
    worker.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_over_the_limit_is_too_large_and_far_over_it_ends_the_session() -> Result<()> {
    let options = Options::default().gateway_flags(&["--max-frame-bytes", "2000"]);
    let cluster = Cluster::start(Backend::Sqlite, options).await?;
    let mut user1 = cluster.connect("User1").await?;
    let frame = |size: usize| {
        json!({"type": "request", "timestamp": 1, "id": "1", "payloadType": "new",
        "payload": {"chatId": "User2", "clientMessageId": "k", "message": "x".repeat(size)}})
    };
    user1.send(&frame(2000)).await?;
    let answer = user1.recv().await?;
    assert_eq!(code(&answer), "too_large", "{answer}");
    user1.send(&frame(1800)).await?;
    assert_eq!(user1.response("1").await?["payload"]["messageId"], 1);
    user1.send(&frame(9000)).await?;
    assert_eq!(user1.expect_close().await?.0, 4413);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_over_its_rate_is_told_when_to_try_again_and_ended_if_it_goes_on() -> Result<()> {
    let options = Options::default().gateway_flags(&["--rate", "20", "--burst", "3"]);
    let cluster = Cluster::start(Backend::Sqlite, options).await?;
    let mut fast = Client::connect(&cluster.user_url(0, "fast", "d")?).await?;
    let mut other = Client::connect(&cluster.user_url(0, "other", "d")?).await?;
    for n in 0..6 {
        fast.send(
            &json!({"type": "request", "timestamp": 1, "id": n.to_string(), "payloadType": "read",
            "payload": {"chatId": "User2"}}),
        )
        .await?;
    }
    let limited = fast.response("5").await?;
    assert_eq!(code(&limited), "rate_limited", "{limited}");
    assert!(
        limited["error"]["retryAfter"].as_u64().is_some_and(|ms| (1..=50).contains(&ms)),
        "{limited}"
    );
    assert_eq!(code(&fast.response("0").await?), "not_found", "the burst was let through");
    assert_eq!(code(&send(&mut other, "User2", "k").await?), "none", "nobody else is limited");
    for _ in 0..2000 {
        // The session may end while this is sent.
        if fast.send_text("{}").await.is_err() {
            break;
        }
    }
    assert_eq!(fast.expect_close().await?.0, 4429);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_binary_garbage_ends_the_session() -> Result<()> {
    let cluster = Cluster::start(Backend::Sqlite, Options::default()).await?;
    let mut user1 = cluster.connect("User1").await?;
    for _ in 0..4 {
        user1.send_binary(b"\xff\x00garbage").await?;
    }
    assert_eq!(user1.expect_close().await?.0, 4400);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_open_requests_are_refused_and_an_open_id_is_not_taken_twice() -> Result<()> {
    let options =
        Options::default().gateway_flags(&["--max-open-requests", "2", "--request-timeout", "1s"]);
    let mut cluster = Cluster::start(Backend::Sqlite, options).await?;
    let mut user1 = cluster.connect("User1").await?;
    cluster.workers.remove(0).stop().await?;
    for id in ["a", "a", "b", "c"] {
        user1
            .send(&json!({"type": "request", "timestamp": 1, "id": id, "payloadType": "read", "payload": {"chatId": "u"}}))
            .await?;
    }
    let second = user1.response("a").await?;
    assert_eq!(code(&second), "bad_request", "{second}");
    assert_eq!(code(&user1.response("c").await?), "rate_limited");
    assert_eq!(code(&user1.response("a").await?), "unavailable");
    assert_eq!(code(&user1.response("b").await?), "unavailable");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_unavailable_at_once_while_the_broker_is_away_and_work_again_after()
-> Result<()> {
    let mut cluster = Cluster::start(Backend::Sqlite, Options::default()).await?;
    let mut user1 = cluster.connect("User1").await?;
    cluster.broker.kill().await?;
    let answer = send(&mut user1, "User2", "k").await?;
    assert_eq!(code(&answer), "unavailable", "{answer}");
    cluster.broker.restart().await?;
    herald_tests::eventually(
        "the request is answered",
        std::time::Duration::from_secs(30),
        async || {
            let answer = send(&mut user1, "User2", "k").await?;
            anyhow::ensure!(code(&answer) == "none", "{answer}");
            Ok(())
        },
    )
    .await
}
