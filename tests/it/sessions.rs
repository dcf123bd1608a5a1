//! How sessions begin and end: who is let in, what closes a session and with which code, and who is told.

use std::time::Duration;

use anyhow::{Context as _, Result};
use herald_tests::{Backend, Client, Cluster, Options, eventually};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const SECRET: &str = "a secret of at least thirty-two bytes";

fn token(algorithm: Algorithm, key: &EncodingKey, kid: Option<&str>, claims: &Value) -> String {
    let header = Header { kid: kid.map(Into::into), ..Header::new(algorithm) };
    jsonwebtoken::encode(&header, claims, key).unwrap()
}

fn hs256(claims: &Value) -> String {
    token(Algorithm::HS256, &EncodingKey::from_secret(SECRET.as_bytes()), None, claims)
}

fn in_seconds(seconds: i64) -> i64 {
    herald_proto::clock::now_ms() / 1000 + seconds
}

/// A cluster whose gateways know the secret.
async fn with_secret(flags: &[&str]) -> Result<(Cluster, tempfile::TempDir)> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("secret");
    std::fs::write(&file, format!("{SECRET}\n"))?;
    let file = file.to_str().context("a path")?;
    let options = Options::default()
        .secure()
        .gateway_flags(&["--auth-hs256-secret-file", file])
        .gateway_flags(flags);
    Ok((Cluster::start(Backend::Sqlite, options).await?, folder))
}

async fn works(client: &mut Client) -> Result<()> {
    client.ack(0).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_in_the_header_or_the_subprotocol_lets_its_subject_in() -> Result<()> {
    let (cluster, _folder) = with_secret(&[]).await?;
    let url = cluster.url(0)?;
    let bearer = format!("Bearer {}", hs256(&json!({"sub": "User1", "exp": in_seconds(60)})));
    let mut user1 = Client::connect_with(&url, &[("Authorization", &bearer)]).await?;
    works(&mut user1).await?;
    let protocols = format!("bearer, {}", hs256(&json!({"sub": "User2", "exp": in_seconds(60)})));
    let mut user2 = Client::connect_with(&url, &[("Sec-WebSocket-Protocol", &protocols)]).await?;
    works(&mut user2).await?;
    user1
        .request("new", json!({"chatId": "User2", "clientMessageId": "k", "message": "hi"}))
        .await?;
    assert_eq!(user2.event("new").await?["payload"]["chatId"], "User1");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_no_good_token_is_closed_with_4401() -> Result<()> {
    let (cluster, _folder) =
        with_secret(&["--auth-audience", "chat", "--auth-issuer", "us"]).await?;
    let url = cluster.url(0)?;
    let good = json!({"sub": "User1", "exp": in_seconds(60), "aud": "chat", "iss": "us"});
    let with = |field: &str, value: Value| {
        let mut claims = good.clone();
        claims[field] = value;
        claims
    };
    let without = |field: &str| {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().remove(field);
        claims
    };
    let other_key = EncodingKey::from_secret(b"another secret of thirty-two bytes and more");
    let bad = [
        ("expired", hs256(&with("exp", json!(in_seconds(-1))))),
        ("no exp", hs256(&without("exp"))),
        ("no sub", hs256(&without("sub"))),
        ("sub is no user id", hs256(&with("sub", json!("a\nb")))),
        ("not yet valid", hs256(&with("nbf", json!(in_seconds(60))))),
        ("other audience", hs256(&with("aud", json!("mail")))),
        ("no audience", hs256(&without("aud"))),
        ("other issuer", hs256(&with("iss", json!("them")))),
        ("other key", token(Algorithm::HS256, &other_key, None, &good)),
        (
            "no signature",
            format!("eyJhbGciOiJub25lIn0.{}.", hs256(&good).split('.').nth(1).unwrap()),
        ),
        ("garbage", "garbage".into()),
    ];
    for (what, token) in bad {
        let mut client =
            Client::connect_with(&url, &[("Authorization", &format!("Bearer {token}"))]).await?;
        assert_eq!(client.expect_close().await?.0, 4401, "{what}");
    }
    let mut client = Client::connect(&format!("{url}?userId=User1")).await?;
    assert_eq!(client.expect_close().await?.0, 4401, "insecure mode is off");
    let bearer = format!("Bearer {}", hs256(&good));
    works(&mut Client::connect_with(&url, &[("Authorization", &bearer)]).await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_the_token_ends_the_session() -> Result<()> {
    let (cluster, _folder) = with_secret(&[]).await?;
    let bearer = format!("Bearer {}", hs256(&json!({"sub": "User1", "exp": in_seconds(2)})));
    let mut client = Client::connect_with(&cluster.url(0)?, &[("Authorization", &bearer)]).await?;
    works(&mut client).await?;
    assert_eq!(client.expect_close().await?.0, 4401);
    Ok(())
}

fn key_pairs() -> [(Algorithm, &'static str, EncodingKey); 3] {
    [
        (
            Algorithm::RS256,
            "rs",
            EncodingKey::from_rsa_pem(include_bytes!("keys/rs256.pem")).unwrap(),
        ),
        (
            Algorithm::ES256,
            "es",
            EncodingKey::from_ec_pem(include_bytes!("keys/es256.pem")).unwrap(),
        ),
        (
            Algorithm::EdDSA,
            "ed",
            EncodingKey::from_ed_pem(include_bytes!("keys/eddsa.pem")).unwrap(),
        ),
    ]
}

async fn jwks_lets_in(source: &str) -> Result<()> {
    let options = Options::default().secure().gateway_flags(&["--auth-jwks", source]);
    let cluster = Cluster::start(Backend::Sqlite, options).await?;
    let (url, claims) = (cluster.url(0)?, json!({"sub": "User1", "exp": in_seconds(60)}));
    for (algorithm, kid, key) in key_pairs() {
        let bearer = format!("Bearer {}", token(algorithm, &key, Some(kid), &claims));
        let mut client = Client::connect_with(&url, &[("Authorization", &bearer)]).await?;
        works(&mut client).await.with_context(|| format!("{algorithm:?}"))?;
        // The right key under another one's name.
        let bearer = format!(
            "Bearer {}",
            token(algorithm, &key, Some(if kid == "rs" { "es" } else { "rs" }), &claims)
        );
        let mut client = Client::connect_with(&url, &[("Authorization", &bearer)]).await?;
        assert_eq!(client.expect_close().await?.0, 4401, "{algorithm:?}");
    }
    // A public key must never serve as an HMAC secret.
    let public = EncodingKey::from_secret(include_bytes!("keys/jwks.json"));
    let bearer = format!("Bearer {}", token(Algorithm::HS256, &public, Some("rs"), &claims));
    let mut client = Client::connect_with(&url, &[("Authorization", &bearer)]).await?;
    assert_eq!(client.expect_close().await?.0, 4401);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_checked_with_a_jwks_file() -> Result<()> {
    jwks_lets_in(concat!(env!("CARGO_MANIFEST_DIR"), "/it/keys/jwks.json")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_checked_with_a_jwks_url() -> Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/jwks.json", listener.local_addr()?);
    let served = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let body = include_str!("keys/jwks.json");
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
        }
    });
    jwks_lets_in(&url).await?;
    served.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_session_of_the_same_device_replaces_the_older_one_wherever_it_is() -> Result<()> {
    let cluster = Cluster::start(Backend::Sqlite, Options::of(2, 1)).await?;
    let mut first = cluster.connect_to(0, "User1", "phone").await?;
    let mut laptop = cluster.connect_to(0, "User1", "laptop").await?;
    let mut second = cluster.connect_to(1, "User1", "phone").await?;
    assert_eq!(first.expect_close().await?.0, 4409);
    let mut third = cluster.connect_to(1, "User1", "phone").await?;
    assert_eq!(second.expect_close().await?.0, 4409);
    works(&mut third).await?;
    works(&mut laptop).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_client_is_pinged_and_then_closed_with_4408() -> Result<()> {
    let options =
        Options::default().gateway_flags(&["--ping-interval", "150ms", "--idle-timeout", "400ms"]);
    let cluster = Cluster::start(Backend::Sqlite, options).await?;
    // A client that reads answers pings by itself: it may be silent for as long as it likes.
    let mut lively = cluster.connect("lively").await?;
    let address = cluster.gateways[0].address;
    let mut dead = tokio::net::TcpStream::connect(address).await?;
    let request = format!(
        "GET /ws?userId=dead HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    dead.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), dead.read_to_end(&mut bytes));
    let patient = async {
        // Reads, and so answers pings, until the other one is closed.
        let _ = lively.recv().await;
        anyhow::bail!("the lively client was closed")
    };
    tokio::select! {
        read = read => drop(read??),
        lively = patient => lively?,
    }
    let ping = bytes.windows(2).position(|frame| frame == [0x89, 0]).context("no ping")?;
    let close = bytes
        .windows(4)
        .position(|frame| frame[0] == 0x88 && frame[2..4] == 4408_u16.to_be_bytes());
    assert!(close.context("no close frame with 4408")? > ping);
    works(&mut lively).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_gateway_answers_what_is_open_and_closes_with_1012_and_a_hint() -> Result<()> {
    let mut cluster = Cluster::start(Backend::Sqlite, Options::default()).await?;
    let mut user1 = cluster.connect("User1").await?;
    for n in 0..20 {
        let frame = json!({"type": "request", "timestamp": 1, "id": n.to_string(), "payloadType": "new",
            "payload": {"chatId": "User2", "clientMessageId": n.to_string(), "message": "hi"}});
        user1.send(&frame).await?;
    }
    // The session takes frames in order: all are open now, or answered.
    user1.ack(0).await?;
    cluster.gateways.remove(0).stop().await?;
    for n in 0..20 {
        assert!(user1.response(&n.to_string()).await?.get("error").is_none());
    }
    let (code, reason) = user1.expect_close().await?;
    assert_eq!(code, 1012);
    let hint: Value = serde_json::from_str(&reason)?;
    assert!(hint["retryAfter"].as_u64().is_some_and(|ms| ms < 5000), "{reason}");
    Ok(())
}

/// `watcher` shares a chat with `watched` and sees its presence.
async fn watcher(cluster: &Cluster) -> Result<Client> {
    let mut watcher = cluster.connect_with_presence(0, "watcher", "d").await?;
    watcher
        .request("new", json!({"chatId": "watched", "clientMessageId": "k", "message": "hi"}))
        .await?;
    Ok(watcher)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn presence_counts_sessions_on_all_gateways_and_a_reconnect_within_the_grace_does_not_flicker()
-> Result<()> {
    let cluster =
        Cluster::start(Backend::Sqlite, Options::of(2, 1).gateway_flags(&["--grace", "1500ms"]))
            .await?;
    let mut watcher = watcher(&cluster).await?;
    let phone = cluster.connect_to(0, "watched", "phone").await?;
    assert_eq!(watcher.next_event().await?["eventType"], "online");
    let laptop = cluster.connect_to(1, "watched", "laptop").await?;
    drop(phone);
    drop(laptop);
    // Time for the gateways to see that both are lost, and for a wrong `offline` to show.
    let mut other = cluster.connect("other").await?;
    other
        .request("new", json!({"chatId": "watcher", "clientMessageId": "k", "message": "hi"}))
        .await?;
    watcher.event("new").await?;
    let phone = cluster.connect_to(1, "watched", "phone").await?;
    // And through another user's whole grace.
    drop(other);
    assert_eq!(watcher.event("offline").await?["payload"]["userId"], "other");
    drop(phone);
    assert_eq!(watcher.event("offline").await?["payload"]["userId"], "watched");
    // Whether `other` came before or after it had a chat with `watcher` is open; `watched` came once.
    while let Ok(event) = watcher.queued("online") {
        assert_eq!(event["payload"]["userId"], "other");
    }
    watcher.nothing_more().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_of_a_drained_gateway_who_come_back_elsewhere_were_never_offline() -> Result<()> {
    let mut cluster = Cluster::start(
        Backend::Sqlite,
        Options::of(2, 1).gateway_flags(&["--lease", "1s", "--grace", "1s"]),
    )
    .await?;
    let mut watcher = watcher(&cluster).await?;
    let mut stays = cluster.connect_to(1, "watched", "phone").await?;
    assert_eq!(watcher.next_event().await?["eventType"], "online");
    let mut goes = cluster.connect_to(1, "other", "phone").await?;
    goes.request("new", json!({"chatId": "watcher", "clientMessageId": "k", "message": "hi"}))
        .await?;
    watcher.event("new").await?;
    let gateway = cluster.gateways.remove(1);
    let (stopped, closed, _) =
        tokio::join!(gateway.stop(), stays.expect_close(), goes.expect_close());
    stopped?;
    assert_eq!(closed?.0, 1012);
    let mut stays = cluster.connect_to(0, "watched", "phone").await?;
    assert_eq!(watcher.event("offline").await?["payload"]["userId"], "other");
    while let Ok(event) = watcher.queued("online") {
        assert_eq!(event["payload"]["userId"], "other");
    }
    watcher.nothing_more().await?;
    works(&mut stays).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn typing_is_passed_on_at_most_once_a_second_and_chat() -> Result<()> {
    let cluster = Cluster::start(Backend::Sqlite, Options::default()).await?;
    let (mut user1, mut user2) = (cluster.connect("User1").await?, cluster.connect("User2").await?);
    let typing = json!({"type": "event", "timestamp": 1, "eventType": "typing", "payload": {"chatId": "User2"}});
    for _ in 0..5 {
        user1.send(&typing).await?;
    }
    user1
        .request("new", json!({"chatId": "User2", "clientMessageId": "k", "message": "hi"}))
        .await?;
    user2.event("new").await?;
    user2.event("typing").await?;
    user2.nothing_more().await?;
    eventually("typing is passed on again", Duration::from_secs(5), async || {
        user1.send(&typing).await?;
        user1.ack(0).await?;
        user2.ack(0).await?;
        user2.nothing_more().await.err().context("nothing yet").map(drop)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_gateway_stores_what_its_devices_have_acked() -> Result<()> {
    let mut cluster = Cluster::start(Backend::Sqlite, Options::of(2, 1)).await?;
    let mut sender = cluster.connect("sender").await?;
    let mut devices = Vec::new();
    for n in 0..10 {
        let user = format!("user{n}");
        devices.push((user.clone(), cluster.connect_to(1, &user, "phone").await?));
        sender
            .request("new", json!({"chatId": user, "clientMessageId": user, "message": "hi"}))
            .await?;
    }
    for (_, device) in &mut devices {
        let event = device.event("new").await?;
        device.ack(event["id"].as_u64().context("no id")?).await?;
    }
    let gateway = cluster.gateways.remove(1);
    let closes = async {
        for (_, device) in &mut devices {
            assert_eq!(device.expect_close().await?.0, 1012);
        }
        anyhow::Ok(())
    };
    let (stopped, closed) = tokio::join!(gateway.stop(), closes);
    stopped.and(closed)?;
    for (user, _) in devices {
        let mut device = cluster.connect_to(0, &user, "phone").await?;
        let second =
            json!({"chatId": user, "clientMessageId": format!("{user} 2"), "message": "hi"});
        sender.request("new", second).await?;
        let event = device.next_event().await?;
        assert_eq!(event["payload"]["messageId"], 2, "what was acked does not come again: {event}");
    }
    Ok(())
}
