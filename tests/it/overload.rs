//! Too much: whoever asks for more than the service can do is told when to try again, nothing is queued without bound, and
//! nobody else waits for it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use herald_tests::{
    Backend, Client, Cluster, Gateways, Options, Pair, eventually, http,
    load::{
        connection::Connection,
        wire::{self, Frame},
    },
    pair::Stored,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};

const GENEROUS: Duration = Duration::from_secs(30);

/// Sends messages all at once, and returns how each was answered, in the order of the answers.
async fn burst(client: &mut Client, peer: &str, count: usize) -> Result<Vec<(String, Value)>> {
    send_all(client, peer, count).await?;
    answers(client, count).await
}

async fn send_all(client: &mut Client, peer: &str, count: usize) -> Result<()> {
    for n in 0..count {
        let frame = json!({"type": "request", "id": n.to_string(), "timestamp": 1, "payloadType": "new",
            "payload": {"chatId": peer, "clientMessageId": n.to_string(), "message": "hi"}});
        client.send(&frame).await?;
    }
    Ok(())
}

async fn answers(client: &mut Client, count: usize) -> Result<Vec<(String, Value)>> {
    let mut answers = Vec::new();
    while answers.len() < count {
        let answer = client.recv().await?;
        if answer["type"] == "response" {
            let code = answer["error"]["code"].as_str().unwrap_or("stored").to_owned();
            ensure!(code == "stored" || answer["error"]["retryAfter"].is_u64(), "{answer}");
            answers.push((code, answer));
        }
    }
    Ok(answers)
}

fn codes(answers: &[(String, Value)]) -> Vec<(&str, usize)> {
    answers.chunk_by(|a, b| a.0 == b.0).map(|chunk| (chunk[0].0.as_str(), chunk.len())).collect()
}

/// The worker holds its partitions and does nothing, as if the database did not answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_no_worker_takes_are_bounded_and_told_when_to_try_again() -> Result<()> {
    const MESSAGES: usize = 60;
    let flags = ["--request-timeout", "3s", "--max-open-requests", "16", "--max-waiting", "20"];
    let options = Options::of(1, 1).gateway_flags(&flags);
    let mut cluster = Cluster::start(Backend::Sqlite, options).await?;
    cluster.workers.remove(0).stop().await?;
    let mut worker = cluster.worker_process("worker", &[], &[]).await?;
    let mut user1 = cluster.connect("User1").await?;
    let mut user2 = cluster.connect("User2").await?;
    let mut user3 = cluster.connect("User3").await?;
    worker.process.stop()?;
    // Of the one user's requests only as many wait as one session may have.
    send_all(&mut user1, "User2", MESSAGES).await?;
    let refused = answers(&mut user1, MESSAGES - 16).await?;
    assert_eq!(codes(&refused), [("rate_limited", MESSAGES - 16)]);
    // Of the other user's only as many as all sessions may have together.
    let (first, second) =
        tokio::join!(answers(&mut user1, 16), burst(&mut user3, "User2", MESSAGES));
    assert_eq!(codes(&first?), [("unavailable", 16)]);
    let second = second?;
    assert_eq!(codes(&second)[0].0, "unavailable", "{:?}", codes(&second));
    assert!(codes(&second).iter().all(|(code, _)| *code != "stored"), "{:?}", codes(&second));

    worker.process.cont()?;
    for key in 0..MESSAGES {
        let new = json!({"chatId": "User2", "clientMessageId": key.to_string(), "message": "hi"});
        eventually("it is stored", GENEROUS, async || {
            let answer = user1.request("new", new.clone()).await?;
            ensure!(answer.get("error").is_none(), "{answer}");
            Ok(())
        })
        .await?;
    }
    let mut keys = HashMap::new();
    while keys.len() < MESSAGES {
        let event = user2.next_event().await?;
        user2.ack(event["id"].as_u64().context("no id")?).await?;
        if event["payload"]["chatId"] == "User1" {
            *keys.entry(event["payload"]["clientMessageId"].to_string()).or_insert(0) += 1;
        }
    }
    assert!(keys.values().all(|count| *count == 1), "each comes once: {keys:?}");
    Ok(())
}

/// Sends as fast as it can, and comes back whenever it is thrown out; counts what it is told.
fn flood(url: String) -> JoinHandle<Result<HashMap<String, usize>>> {
    const AT_ONCE: u64 = 200;
    let end = Instant::now() + Duration::from_secs(3);
    tokio::spawn(async move {
        let (mut seen, mut key) = (HashMap::new(), 0);
        let mut connection = Connection::login(&url, "flooder").await?;
        let mut batch = Vec::new();
        while Instant::now() < end {
            let mut frames = (key..key + AT_ONCE).map(|key| wire::new(key, "sink", "hi")).collect();
            key += AT_ONCE;
            let sent = connection.send(&mut frames).await;
            let ended = match sent {
                Ok(()) => connection.receive(&mut batch).await.err(),
                Err(ended) => Some(ended),
            };
            for text in batch.drain(..) {
                let frame: Frame<'_> = serde_json::from_str(&text)?;
                let code = frame.error.map_or("stored", |error| error.code);
                *seen.entry(code.to_owned()).or_insert(0) += 1;
            }
            if let Some(ended) = ended {
                *seen.entry(ended.why).or_insert(0) += 1;
                connection = Connection::connect(&url, "flooder", "default").await?;
            }
        }
        Ok(seen)
    })
}

fn p99<'a>(stored: impl Iterator<Item = &'a Stored>) -> Duration {
    let mut times: Vec<Duration> = stored.map(|s| s.answered_at - s.sent_at).collect();
    times.sort_unstable();
    times.get(times.len() * 99 / 100).copied().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_user_who_floods_is_limited_and_the_others_go_on() -> Result<()> {
    let cluster = Cluster::start(Backend::Sqlite, Options::of(0, 1)).await?;
    // As many frames of one session as the machine of a test can do beside all others.
    let gateway = cluster.gateway_process("gateway", &["--rate", "200", "--burst", "400"]).await?;
    let url = format!("ws://{}/ws", gateway.address);
    let gateways = Gateways::new([url.clone()]);
    let names: Vec<String> = (0..8).map(|n| format!("other{n}")).collect();
    let starts = names.iter().map(|name| Pair::start(&gateways, name, Duration::from_millis(20)));
    let pairs = try_join_all(starts).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let flood_begins = Instant::now();
    let seen = flood(url).await??;
    let flood_ends = Instant::now();
    let mut stored = Vec::new();
    for pair in pairs {
        let report = pair.finish().await?;
        assert!(report.stored.iter().all(|stored| stored.repeats == 0), "only the flooder waits");
        assert_eq!(report.ends, Vec::<String>::new(), "only the flooder is thrown out");
        stored.extend(report.stored);
    }
    let quiet = p99(stored.iter().filter(|stored| stored.sent_at < flood_begins));
    let beside = p99(stored.iter().filter(|s| (flood_begins..flood_ends).contains(&s.sent_at)));
    println!(
        "p99 of the others: {quiet:?} before, {beside:?} beside a flood: {:.2} times; the flooder: {seen:?}",
        beside.as_secs_f64() / quiet.as_secs_f64(),
    );
    assert!(seen.get("rate_limited").is_some_and(|count| *count > 0), "{seen:?}");
    ensure!(beside < quiet * 10 + Duration::from_millis(500), "the others wait for the flooder");
    Ok(())
}

/// A connection that sends this and nothing more; told when the server ends it.
fn dawdle(gateway: std::net::SocketAddr, sends: &'static [u8], drip: bool) -> JoinHandle<()> {
    tokio::spawn(async move {
        let Ok(mut stream) = TcpStream::connect(gateway).await else { return };
        let mut pace = tokio::time::interval(Duration::from_millis(100));
        let sent = if drip { 0 } else { sends.len() };
        let _ = stream.write_all(&sends[..sent]).await;
        let mut rest = sends[sent..].iter().cycle();
        let mut answer = [0; 512];
        loop {
            tokio::select! {
                read = stream.read(&mut answer) => if matches!(read, Ok(0) | Err(_)) { return },
                _ = pace.tick(), if drip => {
                    let byte = rest.next().copied().unwrap_or(b'x');
                    if stream.write_all(&[byte]).await.is_err() { return }
                }
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_that_is_never_finished_ends_with_its_deadline() -> Result<()> {
    let options = Options::default().gateway_flags(&["--handshake-timeout", "1s"]);
    let cluster = Cluster::start(Backend::Sqlite, options).await?;
    let address = cluster.gateways[0].address;
    let dawdlers = [
        dawdle(address, b"", false),
        dawdle(address, b"GET /ws?userId=a HTTP/1.1\r\nHost: a\r\n", false),
        // A byte now and then, for ever.
        dawdle(address, b"GET /ws?userId=a HTTP/1.1\r\nX: ", true),
        // Asks for something else and stays.
        dawdle(address, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", false),
    ];
    let mut lively = cluster.connect("lively").await?;
    for dawdler in dawdlers {
        timeout(GENEROUS, dawdler).await.context("a dawdler is still there")??;
    }
    lively.ack(0).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_are_bounded_and_the_slowest_give_way() -> Result<()> {
    const DAWDLERS: usize = 24;
    const MOST: usize = 8;
    let most = MOST.to_string();
    let flags = ["--handshake-timeout", "1h", "--max-handshakes", &most];
    let options = Options::default().gateway_flags(&flags);
    let cluster = Cluster::start(Backend::Sqlite, options).await?;
    let address = cluster.gateways[0].address;
    let dawdlers: Vec<_> = (0..DAWDLERS).map(|_| dawdle(address, b"GET ", false)).collect();
    let left = || dawdlers.iter().filter(|dawdler| !dawdler.is_finished()).count();
    eventually("the slowest are cut off", GENEROUS, async || {
        ensure!(left() == MOST, "{} are there", left());
        Ok(())
    })
    .await?;
    // Whoever means it gets in.
    for n in 0..MOST * 2 {
        cluster.connect(&format!("user{n}")).await?.ack(0).await?;
    }
    assert!(left() < MOST);
    for dawdler in &dawdlers {
        dawdler.abort();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_are_answered_on_the_admin_listener_while_the_door_is_full() -> Result<()> {
    let flags = ["--handshake-timeout", "1h", "--max-handshakes", "1"];
    let cluster = Cluster::start(Backend::Sqlite, Options::default().gateway_flags(&flags)).await?;
    let gateway = &cluster.gateways[0];
    // Whoever takes the only place loses it after a moment to the next one in line.
    let crowd: Vec<_> = (0..100).map(|_| dawdle(gateway.address, b"GET ", false)).collect();
    eventually("clients wait at the door", GENEROUS, async || {
        ensure!(http::get(gateway.address, "/healthz").await.is_err());
        Ok(())
    })
    .await?;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(http::get(gateway.metrics, path).await?.0, 200, "{path}");
    }
    for dawdler in &crowd {
        dawdler.abort();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_means_it_waits_for_its_handshakes_and_is_not_cut_off() -> Result<()> {
    let options = Options::default().gateway_flags(&["--max-handshakes", "4"]);
    let cluster = Cluster::start(Backend::Sqlite, options).await?;
    let crowd = (0..200).map(async |n| cluster.connect(&format!("user{n}")).await?.ack(0).await);
    try_join_all(crowd).await.map(drop)
}
