//! Who is online, whatever dies: no ghosts, no flicker.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use herald_proto::subject;
use herald_tests::{
    Backend, Cluster, Gateways, Options, eventually,
    load::{connection::Connection, wire},
};
use serde_json::Value;
use tokio::task::JoinHandle;

const GENEROUS: Duration = Duration::from_secs(60);
/// Logins at the same time.
const AT_ONCE: usize = 50;

/// How often each user was said to come and to go.
#[derive(Debug, Clone, Default)]
struct Seen(Arc<Mutex<HashMap<String, (usize, usize)>>>);

impl Seen {
    /// Lets users watch from these gateways, all into one.
    async fn by(watchers: usize, urls: &[String]) -> Result<Self> {
        let seen = Self::default();
        for (n, url) in (0..watchers).zip(urls.iter().cycle()) {
            let connection = Connection::login(url, &watcher(n, watchers)).await?;
            tokio::spawn(seen.clone().watch(connection));
        }
        Ok(seen)
    }

    async fn watch(self, mut connection: Connection) -> Result<()> {
        let (mut batch, mut acks) = (Vec::new(), Vec::new());
        loop {
            connection.receive(&mut batch).await.map_err(|ended| anyhow::anyhow!(ended.why))?;
            for text in batch.drain(..) {
                let frame: Value = serde_json::from_str(&text)?;
                acks.extend(frame["id"].as_u64().map(wire::ack));
                let user = frame["payload"]["userId"].as_str().unwrap_or_default().to_owned();
                let mut seen = self.0.lock().unwrap();
                match frame["eventType"].as_str() {
                    Some("online") => seen.entry(user).or_default().0 += 1,
                    Some("offline") => seen.entry(user).or_default().1 += 1,
                    _ => {}
                }
            }
            connection.send(&mut acks).await.map_err(|ended| anyhow::anyhow!(ended.why))?;
        }
    }

    fn of(&self, user: &str) -> (usize, usize) {
        self.0.lock().unwrap().get(user).copied().unwrap_or_default()
    }

    fn offline(&self) -> usize {
        self.0.lock().unwrap().values().map(|(_, offline)| offline).sum()
    }
}

fn watcher(n: usize, watchers: usize) -> String {
    format!("watcher{}", n % watchers)
}

/// Lets a user open a chat with its watcher, and waits until that is stored.
async fn meet(connection: &mut Connection, watcher: &str) -> Result<()> {
    let ended = |ended: herald_tests::load::connection::Ended| anyhow::anyhow!(ended.why);
    connection.send(&mut vec![wire::new(0, watcher, "hi")]).await.map_err(ended)?;
    let mut batch = Vec::new();
    loop {
        connection.receive(&mut batch).await.map_err(ended)?;
        for text in batch.drain(..) {
            let frame: Value = serde_json::from_str(&text)?;
            ensure!(frame.get("error").is_none(), "{text}");
            if frame["id"] == "n0" {
                return Ok(());
            }
        }
    }
}

/// Shows that `offline` comes, and is a time in which a wrong one would have come too.
async fn canary(gateways: &Gateways, seen: &Seen, name: &str) -> Result<()> {
    let mut canary = gateways.login(name).await?;
    meet(&mut canary, "watcher0").await?;
    drop(canary);
    eventually("the canary is offline", GENEROUS, async || {
        ensure!(seen.of(name).1 == 1);
        Ok(())
    })
    .await
}

/// Whether the user was seen to come depends on whether that was before it had a chat.
fn assert_not_flickered(seen: &Seen, user: &str) {
    let (online, offline) = seen.of(user);
    assert!(online <= 1 && offline == 0, "{user}: {online} times online, {offline} times offline");
}

/// Keys that a bucket has.
async fn keys(cluster: &Cluster, bucket: &str) -> Result<Vec<String>> {
    let client = async_nats::connect(cluster.broker.url()).await?;
    let bucket = jetstream::new(client).get_key_value(bucket).await?;
    Ok(bucket.keys().await?.try_collect().await?)
}

async fn leases_are(cluster: &Cluster, count: usize) -> Result<()> {
    eventually("dead gateways' leases are removed", GENEROUS, async || {
        let leases = keys(cluster, subject::LEASES).await?;
        ensure!(leases.len() == count, "{leases:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_gateways_users_go_offline_once_each_and_none_is_left() -> Result<()> {
    const USERS: usize = 1000;
    const WATCHERS: usize = 10;
    // Replicas, as in production: one that lags must not hide that someone is gone.
    let options = Options::of(2, 1).gateway_flags(&["--lease", "2s", "--grace", "1s"]).servers(3);
    let cluster = Cluster::start(Backend::Sqlite, options).await?;
    let mut doomed = cluster.gateway_process("doomed", &["--gateway-id", "doomed"]).await?;
    let seen = Seen::by(WATCHERS, &[cluster.url(0)?, cluster.url(1)?]).await?;
    let gateways = Gateways::new([format!("ws://{}/ws", doomed.address)]);
    let users: Vec<Connection> = stream::iter(0..USERS)
        .map(|n| {
            let gateways = &gateways;
            async move {
                let mut user = gateways.login(&format!("user{n}")).await?;
                meet(&mut user, &watcher(n, WATCHERS)).await?;
                anyhow::Ok(user)
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    assert_eq!(seen.offline(), 0);

    doomed.process.kill().await?;
    let killed_at = Instant::now();
    eventually("everyone is offline", GENEROUS, async || {
        ensure!(seen.offline() >= USERS, "{} are", seen.offline());
        Ok(())
    })
    .await?;
    println!(
        "{USERS} users of a killed gateway offline {:?} after its death (lease 2 s)",
        killed_at.elapsed()
    );
    leases_are(&cluster, 2).await?;
    canary(&Gateways::new([cluster.url(0)?]), &seen, "canary").await?;
    for n in 0..USERS {
        assert_eq!(seen.of(&format!("user{n}")).1, 1, "user{n} goes offline once");
    }
    let online = keys(&cluster, subject::SESSIONS).await?;
    assert!(online.iter().all(|key| key.starts_with("watcher")), "ghosts: {online:?}");
    drop(users);
    Ok(())
}

/// Stays connected for as long as it is not aborted, wherever there is a gateway.
fn loyal(gateways: Gateways, user: String, mut connection: Connection) -> JoinHandle<Result<()>> {
    tokio::spawn(async move {
        let mut batch = Vec::new();
        loop {
            if let Err(ended) = connection.receive(&mut batch).await {
                connection = gateways.login_again(&user, &ended).await?;
            }
            batch.clear();
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_said_to_go_offline_while_gateways_are_restarted_one_after_the_other()
-> Result<()> {
    const USERS: usize = 200;
    const WATCHERS: usize = 4;
    let options = Options::of(1, 1).gateway_flags(&["--lease", "2s", "--grace", "2s"]);
    let cluster = Cluster::start(Backend::Sqlite, options).await?;
    let seen = Seen::by(WATCHERS, &[cluster.url(0)?]).await?;
    let mut running = vec![
        cluster.gateway_process("old-0", &[]).await?,
        cluster.gateway_process("old-1", &[]).await?,
    ];
    let urls = |running: &[herald_tests::Child]| -> Vec<String> {
        running.iter().map(|child| format!("ws://{}/ws", child.address)).collect()
    };
    let gateways = Gateways::new(urls(&running));
    let mut users: Vec<JoinHandle<Result<()>>> = stream::iter(0..USERS)
        .map(|n| {
            let gateways = gateways.clone();
            async move {
                let name = format!("user{n}");
                let mut user = gateways.login(&name).await?;
                meet(&mut user, &watcher(n, WATCHERS)).await?;
                anyhow::Ok(loyal(gateways, name, user))
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;

    for n in 0..2 {
        running.push(cluster.gateway_process(&format!("new-{n}"), &[]).await?);
        let mut old = running.remove(0);
        gateways.set(urls(&running));
        old.process.term()?;
        let status = tokio::time::timeout(GENEROUS, old.process.wait()).await??;
        assert!(status.success(), "{status}");
    }
    leases_are(&cluster, 3).await?;
    canary(&gateways, &seen, "canary").await?;
    for n in 0..USERS {
        assert_not_flickered(&seen, &format!("user{n}"));
    }
    // And is seen to go when it really goes.
    let last = users.pop().context("no user")?;
    assert!(!last.is_finished());
    last.abort();
    eventually("one is offline", GENEROUS, async || {
        ensure!(seen.offline() == 2, "{} are", seen.offline());
        Ok(())
    })
    .await
}

/// Nobody can renew a lease meanwhile, and nobody has gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_for_longer_than_a_lease_makes_nobody_offline() -> Result<()> {
    let options = Options::of(2, 1).gateway_flags(&["--lease", "1s", "--grace", "1s"]);
    let mut cluster = Cluster::start(Backend::Sqlite, options).await?;
    let seen = Seen::by(1, &[cluster.url(0)?]).await?;
    let mut user = Connection::login(&cluster.url(1)?, "user").await?;
    meet(&mut user, "watcher0").await?;
    cluster.broker.process().stop()?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    cluster.broker.process().cont()?;
    canary(&Gateways::new([cluster.url(1)?]), &seen, "canary").await?;
    assert_not_flickered(&seen, "user");
    leases_are(&cluster, 2).await
}
