//! A gateway that is told to stop, under load: every request is answered or can be repeated, no device gets again what it
//! has acked, and the gateway is gone in time, whatever is away.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, future::try_join_all, stream};
use herald_tests::{Backend, Client, Cluster, Gateways, Options, Pair, eventually, http};
use serde_json::json;

/// How long the gateway may take to be gone: its deadline, and what a busy machine adds.
const DEADLINE: Duration = Duration::from_secs(20 + 20);
const PAIRS: usize = 500;
/// Logins at the same time.
const AT_ONCE: usize = 32;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_sessions_under_load_move_to_another_gateway_without_loss_or_repeats()
-> Result<()> {
    let cluster = Cluster::start(Backend::Sqlite, Options::of(1, 1)).await?;
    let mut stopping = cluster.gateway_process("stopping", &["--drain-timeout", "20s"]).await?;
    let gateways = Gateways::new([format!("ws://{}/ws", stopping.address)]);
    let pairs: Vec<Pair> = stream::iter(0..PAIRS)
        .map(|n| {
            let gateways = &gateways;
            async move { Pair::start(gateways, &format!("pair{n}"), Duration::from_secs(1)).await }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    gateways.set([cluster.url(0)?]);
    let begin = Instant::now();
    stopping.process.term()?;
    let status = tokio::time::timeout(DEADLINE, stopping.process.wait()).await??;
    let gone_after = begin.elapsed();
    assert!(status.success(), "{status}");
    // Everyone has been told to be back by now, or a little later.
    tokio::time::sleep(Duration::from_secs(6)).await;

    let reports = try_join_all(pairs.into_iter().map(Pair::finish))
        .await
        .map_err(|e| anyhow::anyhow!("{e:#}"))?;
    let stored = reports.iter().flat_map(|report| &report.stored);
    let repeats: u32 = stored.clone().map(|stored| stored.repeats).sum();
    let again: usize = reports.iter().map(|report| report.again).sum();
    let again_though_acked: usize = reports.iter().map(|report| report.again_though_acked).sum();
    let ends: Vec<&String> = reports.iter().flat_map(|report| &report.ends).collect();
    println!(
        "{} sessions gone after {gone_after:?}; {} messages, {repeats} sent again, {again} events again, \
         {again_though_acked} of them acked before",
        ends.len(),
        stored.count(),
    );
    assert_eq!(ends.len(), PAIRS * 2, "each session has moved once");
    assert_eq!(again_though_acked, 0, "what was acked does not come again");
    let hints = ends.iter().map(|end| hint(end).ok_or_else(|| anyhow::anyhow!("{end}")));
    let mut hints = hints.collect::<Result<Vec<u64>>>()?;
    hints.sort_unstable();
    // Spread evenly: no second of the five has many more than its share.
    for second in 0..5 {
        let share = hints.iter().filter(|hint| **hint / 1000 == second).count();
        assert!((PAIRS / 5..PAIRS * 3 / 5).contains(&share), "second {second}: {share}");
    }
    Ok(())
}

fn hint(end: &str) -> Option<u64> {
    let reason = end.strip_prefix("closed: 1012 ")?;
    serde_json::from_str::<serde_json::Value>(reason).ok()?.get("retryAfter")?.as_u64()
}

/// Nobody answers what is open: the sessions end all the same, as they should, and the requests can be repeated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_whose_requests_are_not_answered_is_gone_in_time_and_tells_its_clients()
-> Result<()> {
    let mut cluster = Cluster::start(Backend::Sqlite, Options::of(0, 1)).await?;
    let flags = ["--drain-timeout", "3s", "--request-timeout", "60s"];
    let mut stopping = cluster.gateway_process("stopping", &flags).await?;
    let mut user1 = stopping.connect("User1", "phone").await?.without_presence();
    let mut user2 = stopping.connect("User2", "phone").await?.without_presence();
    let new = |key: &str| json!({"chatId": "User2", "clientMessageId": key, "message": key});
    user1.request("new", new("first")).await?;
    let event = user2.event("new").await?;
    user2.ack(event["id"].as_u64().context("no id")?).await?;
    cluster.workers.remove(0).stop().await?;
    // Both have something open, and the gateway has taken it.
    for (user, peer) in [(&mut user1, "User2"), (&mut user2, "User1")] {
        let frame = json!({"type": "request", "id": "open", "timestamp": 1, "payloadType": "new",
            "payload": {"chatId": peer, "clientMessageId": "open", "message": "open"}});
        user.send(&frame).await?;
        user.ack(0).await?;
    }
    let begin = Instant::now();
    stopping.process.term()?;
    // Nobody is sent here any more, and who comes all the same is sent away.
    eventually("it is not ready", DEADLINE, async || {
        let (status, body) = http::get(stopping.address, "/readyz").await?;
        ensure!(status == 503, "{status} {body}");
        Ok(())
    })
    .await?;
    let mut late = Client::connect(&stopping.user_url("User3", "phone")).await?;
    let (code, reason) = late.expect_close().await?;
    assert_eq!(code, 1012);
    assert!(reason.contains("retryAfter"), "{reason}");
    for user in [&mut user1, &mut user2] {
        let (code, reason) = user.expect_close().await?;
        assert_eq!(code, 1012);
        assert!(reason.contains("retryAfter"), "{reason}");
    }
    let status = tokio::time::timeout(DEADLINE, stopping.process.wait()).await??;
    assert!(status.success(), "{status}");
    println!("gone after {:?} with requests open", begin.elapsed());

    cluster.workers.push(cluster.worker().await?);
    cluster.gateways.push(cluster.gateway().await?);
    let mut user2 = cluster.connect_to(0, "User2", "phone").await?;
    let mut user1 = cluster.connect_to(0, "User1", "phone").await?;
    let answer = user1.request("new", new("open")).await?;
    let id = answer["payload"]["messageId"].as_u64().context("no messageId")?;
    let event = user2.next_event().await?;
    assert_eq!(event["payload"]["clientMessageId"], "open", "the first is not sent again");
    assert_eq!(event["payload"]["messageId"], id, "stored once, before or after the repeat");
    user2.nothing_more().await
}

/// There is nobody to store cursors or to tell: that must not keep it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_whose_broker_is_away_is_gone_in_time_and_tells_its_clients() -> Result<()> {
    let mut cluster = Cluster::start(Backend::Sqlite, Options::of(0, 1)).await?;
    let mut stopping = cluster.gateway_process("stopping", &["--drain-timeout", "3s"]).await?;
    let mut user1 = stopping.connect("User1", "phone").await?;
    cluster.broker.kill().await?;
    let begin = Instant::now();
    stopping.process.term()?;
    let (code, reason) = user1.expect_close().await?;
    assert_eq!(code, 1012);
    assert!(reason.contains("retryAfter"), "{reason}");
    let status = tokio::time::timeout(DEADLINE, stopping.process.wait()).await??;
    assert!(status.success(), "{status}");
    println!("gone after {:?} without a broker", begin.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_broker_is_away_is_gone_in_time() -> Result<()> {
    let mut cluster = Cluster::start(Backend::Sqlite, Options::of(0, 0)).await?;
    let mut worker = cluster.worker_process("stopping", &["--drain-timeout", "3s"], &[]).await?;
    cluster.broker.kill().await?;
    worker.process.term()?;
    let status = tokio::time::timeout(DEADLINE, worker.process.wait()).await??;
    assert!(status.success(), "{status}");
    Ok(())
}
