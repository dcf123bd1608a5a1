//! How the work is divided is written down once; who disagrees does not start; it changes only when nothing is under way.

use std::time::Duration;

use anyhow::{Result, ensure};
use async_nats::jetstream;
use herald_proto::subject;
use herald_tests::{
    Backend, Binaries, Client, Cluster, Options, broker::deployed::Role, eventually,
};
use serde_json::{Value, json};
use tokio::process::Command;

/// What `herald-worker topology` prints, and whether it succeeds.
pub(crate) async fn topology(
    nats_url: &str,
    flags: &[String],
    args: &[&str],
) -> Result<(bool, String)> {
    let output = Command::new(Binaries::build(false).await?.worker)
        .args(["--log", "off", "topology"])
        .args(args)
        .args(flags)
        .args(["--nats-url", nats_url])
        .output()
        .await?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8(said)?))
}

async fn send(client: &mut Client, peer: &str, key: &str) -> Result<Value> {
    let message = json!({"chatId": peer, "clientMessageId": key, "message": key});
    let answer = client.request("new", message).await?;
    ensure!(answer.get("error").is_none(), "{answer}");
    Ok(answer["payload"]["messageId"].clone())
}

/// Chats enough for all partitions, before and after.
const CHATS: usize = 24;

/// Sends one message in each chat: all are stored as number `id`.
async fn everyone_writes(cluster: &Cluster, id: u64) -> Result<()> {
    let mut writer = cluster.connect("writer").await?;
    for chat in 0..CHATS {
        let stored = send(&mut writer, &format!("peer{chat}"), &format!("{chat}-{id}")).await?;
        assert_eq!(stored, json!(id), "chat {chat}");
    }
    writer.close().await
}

async fn stop_all(cluster: &mut Cluster) -> Result<()> {
    for gateway in cluster.gateways.drain(..) {
        gateway.stop().await?;
    }
    for worker in cluster.workers.drain(..) {
        worker.stop().await?;
    }
    Ok(())
}

/// Stops everything, changes the number of partitions, and starts again with it.
async fn change(cluster: &mut Cluster, partitions: u16) -> Result<()> {
    let url = cluster.nats_url();
    let wanted = partitions.to_string();
    stop_all(cluster).await?;
    // A gateway's lease lasts until its users have had time to come back elsewhere.
    eventually("the gateways' leases run out", Duration::from_secs(30), async || {
        let (_, said) = topology(&url, &[], &["plan", "--partitions", &wanted]).await?;
        ensure!(said.contains("apply may change it now"), "{said}");
        Ok(())
    })
    .await?;
    let (is_done, said) = topology(&url, &[], &["apply", "--partitions", &wanted]).await?;
    ensure!(is_done, "{said}");
    // What is left there would mean other partitions from now on.
    let frames = jetstream::new(async_nats::connect(&url).await?);
    let frames = frames.get_stream(subject::FRAMES).await?;
    assert_eq!(frames.cached_info().state.messages, 0);
    let worker = cluster.worker().await?;
    cluster.workers.push(worker);
    let gateway = cluster.gateway().await?;
    cluster.gateways.push(gateway);
    let (_, said) = topology(&url, &[], &["show"]).await?;
    ensure!(said.starts_with(&format!("{partitions} partitions and 1 event streams\n")), "{said}");
    ensure!(said.contains("gateways alive  1\nworkers alive   1\n"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_of_partitions_changes_when_nothing_is_under_way_and_every_chat_goes_on()
-> Result<()> {
    // A short grace, so that a stopped gateway's lease is over soon.
    let options = Options::default().gateway_flags(&["--grace", "1s"]);
    let mut cluster = Cluster::start(Backend::Postgres, options).await?;
    let url = cluster.nats_url();
    everyone_writes(&cluster, 1).await?;

    let (_, said) = topology(&url, &[], &["plan", "--partitions", "24"]).await?;
    ensure!(said.starts_with("4 -> 24 partitions: "), "{said}");
    ensure!(said.contains("apply may not change it now: first stop the gateways"), "{said}");
    let (is_done, said) = topology(&url, &[], &["apply", "--partitions", "24"]).await?;
    ensure!(!is_done && said.contains("workers alive   1"), "{said}");
    let (is_done, said) = topology(&url, &[], &["apply", "--event-streams", "2"]).await?;
    ensure!(!is_done && said.contains("--event-streams: there are 1"), "{said}");
    everyone_writes(&cluster, 2).await?;

    cluster.options.worker_flags = vec!["--partitions".into(), "24".into()];
    let refusal = cluster.worker().await.unwrap_err().to_string();
    assert_eq!(
        refusal,
        "--partitions and --event-streams ask for 24 partitions and 1 event streams, but the service runs with 4 \
         partitions and 1 event streams: leave them out, or change the topology first (herald-worker topology plan)"
    );

    change(&mut cluster, 24).await?;
    everyone_writes(&cluster, 3).await?;
    // Fewer again: what the removed partitions had must not be taken for new, nor come again.
    cluster.options.worker_flags = vec!["--partitions".into(), "3".into()];
    change(&mut cluster, 3).await?;
    everyone_writes(&cluster, 4).await?;
    cluster.options.worker_flags = vec!["--partitions".into(), "24".into()];
    change(&mut cluster, 24).await?;
    everyone_writes(&cluster, 5).await?;

    let mut reader = cluster.connect("peer0").await?;
    let answer = reader.request("read", json!({"chatId": "writer"})).await?;
    assert_eq!(answer["payload"]["messageId"], 5, "{answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_of_the_development_overlay_can_show_and_plan() -> Result<()> {
    let (deployed, cluster) = crate::k8s_nats::started("dev", Backend::Sqlite).await?;
    let flags = deployed.flags(Role::Operator);
    let (is_done, said) =
        topology(&cluster.nats_url(), &flags, &["plan", "--partitions", "9"]).await?;
    ensure!(is_done && said.starts_with("4 -> 9 partitions: "), "{said}");
    ensure!(said.contains("gateways alive  2\nworkers alive   2\n"), "{said}");
    let refused = herald_tests::Deployed::violations(&[&cluster.broker])?;
    assert_eq!(refused, Vec::<String>::new(), "nothing was refused");
    Ok(())
}
