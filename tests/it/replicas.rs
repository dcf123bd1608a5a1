//! The leader of a stream dies under load: nothing is lost or doubled, and everything goes on by itself.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::{Context, context::ContextBuilder, stream::ClusterInfo};
use futures::future::try_join_all;
use herald_proto::subject;
use herald_tests::{Backend, Broker, Cluster, Gateways, Options, Pair, eventually};

/// How long a stream may be without a leader, and how long the service may take after that: far more than it does.
const GENEROUS: Duration = Duration::from_secs(60);
const PAIRS: usize = 12;
/// How long to wait for a leader's answer before asking again.
const LOOK: Duration = Duration::from_millis(250);
/// How long the pairs talk before the leader dies, while it is away, and when it is back.
const WHILE: Duration = Duration::from_secs(1);

async fn cluster_of(jetstream: &Context, stream: &str) -> Result<ClusterInfo> {
    let info = jetstream.get_stream_no_info(stream).await?.get_info().await?;
    info.cluster.context("not in a cluster")
}

/// Kills the leader of the stream under load, and starts it again a while after another one leads.
async fn kill_leader(cluster: &mut Cluster, jetstream: &Context, stream: &str) -> Result<()> {
    let info = eventually("the stream has a leader", GENEROUS, async || {
        let info = cluster_of(jetstream, stream).await?;
        ensure!(info.leader.is_some(), "{info:?}");
        Ok(info)
    });
    let info = info.await?;
    assert_eq!(info.replicas.len(), 2, "{stream} has three replicas: {info:?}");
    let leader = info.leader.context("no leader")?;
    let gateways = Gateways::new([cluster.url(0)?, cluster.url(1)?]);
    let names: Vec<String> = (0..PAIRS).map(|n| format!("{stream}-{n}")).collect();
    let pairs: Vec<Pair> = try_join_all(
        names.iter().map(|name| Pair::start(&gateways, name, Duration::from_millis(20))),
    )
    .await?;
    tokio::time::sleep(WHILE).await;

    let mut servers = std::iter::once(&mut cluster.broker).chain(&mut cluster.peers);
    let server: &mut Broker =
        servers.find(|server| server.name() == leader).context("no server")?;
    server.kill().await?;
    let killed_at = Instant::now();
    eventually("another server leads the stream", GENEROUS, async || {
        let now = cluster_of(jetstream, stream).await?.leader.context("no leader")?;
        ensure!(now != leader, "still {leader}");
        Ok(())
    })
    .await?;
    let elected_at = Instant::now();
    tokio::time::sleep(WHILE).await;
    server.restart().await?;
    tokio::time::sleep(WHILE).await;

    let (mut messages, mut repeats, mut again) = (0, 0, 0);
    let mut resumed_at = Vec::new();
    for pair in pairs {
        let report = pair.finish().await?;
        messages += report.stored.len();
        again += report.again;
        repeats += report.stored.iter().map(|stored| stored.repeats).sum::<u32>();
        let resumed = report.stored.iter().find(|stored| stored.answered_at > elected_at);
        resumed_at.extend(resumed.map(|stored| stored.answered_at));
        assert_eq!(report.ends, Vec::<String>::new(), "no session ends");
    }
    let first = resumed_at.iter().min().context("nobody went on")?;
    let last = resumed_at.iter().max().context("nobody went on")?;
    println!(
        "{stream}: a leader after {:?}; everyone answered from {:?} to {:?} after the election; \
         {messages} messages, {repeats} sent again, {again} events again",
        elected_at - killed_at,
        first.saturating_duration_since(elected_at),
        last.saturating_duration_since(elected_at),
    );
    assert_eq!(resumed_at.len(), PAIRS, "everyone goes on");
    ensure!(last.saturating_duration_since(elected_at) < GENEROUS, "the service took too long");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_a_streams_leader_loses_nothing_and_the_service_resumes_by_itself()
-> Result<()> {
    let options = Options::of(2, 2).servers(3).gateway_flags(&["--request-timeout", "5s"]);
    let mut cluster = Cluster::start(Backend::Sqlite, options).await?;
    let servers: Vec<String> = cluster.nats_url().split(',').map(ToOwned::to_owned).collect();
    let client = async_nats::connect(servers).await?;
    let jetstream = ContextBuilder::new().timeout(LOOK).build(client);
    kill_leader(&mut cluster, &jetstream, subject::FRAMES).await?;
    kill_leader(&mut cluster, &jetstream, &subject::events(0)).await
}
