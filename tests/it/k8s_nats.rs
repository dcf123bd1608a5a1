//! NATS as the manifests set it up: the production overlay's three servers, TLS, accounts and permissions, for real.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use async_nats::{Client, ConnectOptions, Event, jetstream};
use futures::future::try_join_all;
use herald_proto::subject;
use herald_tests::{
    Backend, Broker, Cluster, Database, Deployed, Gateways, Options, Pair, broker::deployed::Role,
    load::connection::Connection,
};
use serde_json::json;
use tokio::sync::mpsc;

use crate::{catchup::drain, cycle};

/// How long a refusal may take to come.
const REFUSAL: Duration = Duration::from_secs(10);

fn options(deployed: &Deployed) -> Options {
    let mut options = Options::of(2, 2);
    options.gateway_flags.extend(deployed.flags(Role::Gateway));
    options.worker_flags.extend(deployed.flags(Role::Worker));
    options.worker_flags.extend(deployed.storage_flags.iter().cloned());
    options
}

/// Everything that the service does in an hour, within seconds: all flows, and those after a gateway's death.
async fn everything(cluster: &mut Cluster) -> Result<()> {
    cycle::whole_life(cluster).await?;
    cycle::coming_and_going(cluster, "User3", "User4").await?;
    let gateways = Gateways::new([cluster.url(0)?, cluster.url(1)?]);
    let names: Vec<String> = (0..4).map(|n| format!("pair-{n}")).collect();
    let pause = Duration::from_millis(20);
    let pairs: Vec<Pair> =
        try_join_all(names.iter().map(|name| Pair::start(&gateways, name, pause))).await?;
    // A worker leaves and another one takes its partitions over; a gateway drains.
    let worker = cluster.workers.remove(0);
    worker.stop().await?;
    let worker = cluster.worker().await?;
    cluster.workers.push(worker);
    tokio::time::sleep(Duration::from_secs(1)).await;
    gateways.set([cluster.url(1)?]);
    let gateway = cluster.gateways.remove(0);
    gateway.stop().await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    for pair in pairs {
        let report = pair.finish().await?;
        ensure!(!report.stored.is_empty(), "nothing was stored");
    }
    Ok(())
}

/// Two gateways and two workers on an overlay's NATS.
pub(crate) async fn started(overlay: &str, backend: Backend) -> Result<(Deployed, Cluster)> {
    let mut deployed = Deployed::start(overlay).await?;
    let servers = std::mem::take(&mut deployed.servers);
    let database = Database::create(backend).await?;
    let cluster = Cluster::start_with(servers, database, options(&deployed)).await?;
    Ok((deployed, cluster))
}

/// The event stream is lost with all that is in it; workers notice, create it anew, and go on.
async fn a_lost_event_stream(deployed: &Deployed, cluster: &mut Cluster) -> Result<()> {
    let mut options = ConnectOptions::with_user_and_password(
        Role::Operator.name().into(),
        deployed.password(Role::Operator)?,
    )
    .custom_inbox_prefix(subject::OPERATOR_INBOX);
    if deployed.ca(Role::Operator).is_file() {
        options = options.add_root_certificates(deployed.ca(Role::Operator)).require_tls(true);
    }
    let operator = jetstream::new(options.connect(cluster.broker.url()).await?);
    operator.delete_stream(subject::events(0)).await?;
    for worker in cluster.workers.drain(..) {
        worker.stop().await?;
    }
    let worker = cluster.worker().await?;
    cluster.workers.push(worker);
    let mut user1 = cluster.connect("User1").await?;
    let message = json!({"chatId": "User2", "clientMessageId": "after", "message": "hi"});
    let answer = user1.request("new", message).await?;
    ensure!(answer.get("error").is_none(), "{answer}");
    let mut events = operator.get_stream(subject::events(0)).await?;
    let state = &events.info().await?.state;
    ensure!(state.first_sequence > 1_000_000, "ids have jumped: {state:?}");
    Ok(())
}

/// Devices that come back at once have their log read together.
async fn a_crowd_comes_back(cluster: &Cluster) -> Result<()> {
    const EACH: u64 = 80;
    let url = cluster.url(0)?;
    let users: Vec<String> = (0..20).map(|n| format!("crowd-{n}")).collect();
    for user in &users {
        Connection::login(&url, user).await?.close().await;
    }
    let fill = users.iter().map(async |user| {
        let mut writer = cluster.connect(&format!("writes-to-{user}")).await?;
        for n in 0..EACH {
            let message =
                json!({"chatId": user, "clientMessageId": n.to_string(), "message": "hi"});
            let answer = writer.request("new", message).await?;
            ensure!(answer.get("error").is_none(), "{answer}");
        }
        anyhow::Ok(())
    });
    try_join_all(fill).await?;
    let come_back = users.iter().map(async |user| {
        let mut device = Connection::connect(&url, user, "default").await?;
        drain(&mut device, EACH, |_| Ok(())).await.with_context(|| user.clone())
    });
    try_join_all(come_back).await.map(drop)
}

async fn works(overlay: &str, replicas: usize) -> Result<()> {
    let (deployed, mut cluster) = started(overlay, Backend::Postgres).await?;
    assert_eq!(cluster.peers.len() + 1, replicas);
    everything(&mut cluster).await?;
    a_crowd_comes_back(&cluster).await?;
    a_lost_event_stream(&deployed, &mut cluster).await?;
    let servers: Vec<&Broker> = std::iter::once(&cluster.broker).chain(&cluster.peers).collect();
    assert_eq!(Deployed::violations(&servers)?, Vec::<String>::new(), "nothing was refused");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_works_on_the_production_overlays_nats_and_is_refused_nothing() -> Result<()> {
    Box::pin(works("prod", 3)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_works_on_the_development_overlays_nats_and_is_refused_nothing() -> Result<()> {
    Box::pin(works("dev", 1)).await
}

/// A client with a role's credentials, and what the server refuses it.
struct Intruder {
    client: Client,
    refused: mpsc::UnboundedReceiver<String>,
}

impl Intruder {
    async fn connect(deployed: &Deployed, url: &str, role: Role, inbox: &str) -> Result<Self> {
        let (sender, refused) = mpsc::unbounded_channel();
        let sender = Arc::new(sender);
        let client =
            ConnectOptions::with_user_and_password(role.name().into(), deployed.password(role)?)
                .add_root_certificates(deployed.ca(role))
                .require_tls(true)
                .custom_inbox_prefix(inbox)
                .event_callback(move |event| {
                    let sender = sender.clone();
                    async move {
                        if let Event::ServerError(error) = event {
                            let _ = sender.send(error.to_string());
                        }
                    }
                })
                .connect(url)
                .await?;
        Ok(Self { client, refused })
    }

    /// Waits for the server to refuse exactly this.
    async fn is_refused(&mut self, what: &str, subject: &str) -> Result<()> {
        self.client.flush().await?;
        let wanted = format!("Permissions Violation for {what} \"{subject}\"");
        let refusal = async {
            while let Some(error) = self.refused.recv().await {
                if error.to_lowercase().contains(&wanted.to_lowercase()) {
                    return Ok(());
                }
            }
            anyhow::bail!("the connection ended")
        };
        let refusal = tokio::time::timeout(REFUSAL, refusal).await;
        refusal.with_context(|| format!("{what} {subject} was not refused"))?
    }

    async fn may_not_publish(&mut self, subjects: &[&str]) -> Result<()> {
        for subject in subjects {
            self.client.publish(subject.to_string(), "{}".into()).await?;
            self.is_refused("Publish to", subject).await?;
        }
        Ok(())
    }

    async fn may_not_subscribe(&mut self, subjects: &[&str]) -> Result<()> {
        for subject in subjects {
            let _messages = self.client.subscribe(subject.to_string()).await?;
            self.is_refused("Subscription to", subject).await?;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_lets_each_role_do_its_own_work_and_nothing_else() -> Result<()> {
    let mut deployed = Deployed::start("prod").await?;
    let servers = std::mem::take(&mut deployed.servers);
    let database = Database::create(Backend::Sqlite).await?;
    let mut options = options(&deployed);
    (options.gateways, options.workers) = (1, 1);
    let cluster = Cluster::start_with(servers, database, options).await?;
    let url = cluster.broker.url();

    let mut gateway =
        Intruder::connect(&deployed, &url, Role::Gateway, subject::GATEWAY_INBOX).await?;
    gateway
        .may_not_publish(&[
            // What clients wrote, by whatever way.
            "$JS.API.CONSUMER.MSG.NEXT.FRAMES.worker-0",
            "$JS.API.CONSUMER.INFO.FRAMES.worker-0",
            "$JS.API.CONSUMER.CREATE.FRAMES.spy",
            "$JS.API.CONSUMER.DURABLE.CREATE.FRAMES.spy",
            "$JS.API.CONSUMER.DELETE.FRAMES.worker-0",
            "$JS.API.CONSUMER.LIST.FRAMES",
            "$JS.API.STREAM.MSG.GET.FRAMES",
            "$JS.API.DIRECT.GET.FRAMES",
            "$JS.API.DIRECT.GET.FRAMES.frames.0.a.b",
            "$JS.API.STREAM.INFO.FRAMES",
            "$JS.API.STREAM.INFO.DEADLETTER",
            "$JS.API.DIRECT.GET.DEADLETTER",
            "$JS.ACK.FRAMES.worker-0.1.1.1.1.1",
            // Administration.
            "$JS.API.STREAM.CREATE.SPY",
            "$JS.API.STREAM.UPDATE.EVENTS_0",
            "$JS.API.STREAM.DELETE.EVENTS_0",
            "$JS.API.STREAM.PURGE.EVENTS_0",
            "$JS.API.STREAM.MSG.DELETE.EVENTS_0",
            "$JS.API.CONSUMER.CREATE.EVENTS_0.spy.reply.0",
            "$JS.API.CONSUMER.DURABLE.CREATE.EVENTS_0.spy",
            "$JS.API.CONSUMER.INFO.EVENTS_0.spy",
            "$JS.API.CONSUMER.LIST.EVENTS_0",
            "$JS.API.CONSUMER.CREATE.KV_TOPOLOGY.spy",
            // What workers say.
            "events.0.User1",
            "reply.gateway-1",
            "deadletter.0",
            "workers",
            "$KV.TOPOLOGY.topology",
            "_INBOX_worker.x",
        ])
        .await?;
    gateway
        .may_not_subscribe(&[
            ">",
            "frames.>",
            "events.>",
            "contacts",
            "workers",
            "_INBOX_worker.>",
            "_INBOX_operator.>",
            "$JS.API.>",
            "$SYS.>",
        ])
        .await?;

    let mut worker =
        Intruder::connect(&deployed, &url, Role::Worker, subject::WORKER_INBOX).await?;
    worker
        .may_not_subscribe(&[
            ">",
            "live.*",
            "live.User1",
            "frames.>",
            "events.>",
            // Only in the queue group: a worker alone would hear all that others are asked.
            "contacts",
            "reply.*",
            "_INBOX_gateway.>",
            "_INBOX_operator.>",
            "$SYS.>",
        ])
        .await?;
    worker
        .may_not_publish(&[
            "live.User1",
            "frames.0.a.b",
            "$KV.CURSORS.a.b",
            "$KV.LEASES.a",
            "$KV.SESSIONS.a.b",
            "_INBOX_gateway.x",
            "$JS.API.STREAM.DELETE.FRAMES",
            "$JS.API.STREAM.DELETE.EVENTS_0",
            "$JS.API.STREAM.PURGE.FRAMES",
            // A stream of its own, or one bent to it, could listen to what a worker may not.
            "$JS.API.STREAM.CREATE.SPY",
            "$JS.API.STREAM.CREATE.EVENTS_1",
            "$JS.API.STREAM.UPDATE.SPY",
            "$JS.API.STREAM.UPDATE.FRAMES",
            "$JS.API.STREAM.UPDATE.EVENTS_0",
            "$JS.API.CONSUMER.CREATE.SPY.spy",
            "$JS.API.CONSUMER.MSG.NEXT.SPY.spy",
            "$JS.API.CONSUMER.DELETE.FRAMES.worker-0",
            "$JS.API.CONSUMER.CREATE.DEADLETTER.spy",
            "$JS.API.CONSUMER.CREATE.KV_CURSORS.spy",
            "$JS.API.CONSUMER.CREATE.KV_SESSIONS.spy",
            "$JS.API.STREAM.MSG.GET.KV_CURSORS",
            "$JS.API.STREAM.MSG.GET.EVENTS_0",
            "$JS.API.STREAM.MSG.DELETE.FRAMES",
        ])
        .await?;

    // Operators may, so what was refused above was refused for the role and not for being wrong.
    let operator =
        Intruder::connect(&deployed, &url, Role::Operator, subject::OPERATOR_INBOX).await?;
    let answer = operator.client.request("$JS.API.CONSUMER.INFO.FRAMES.worker-0", "".into());
    let answer = tokio::time::timeout(REFUSAL, answer).await??;
    ensure!(!String::from_utf8_lossy(&answer.payload).contains("\"error\""), "{answer:?}");

    // And nobody without a password.
    let stranger = ConnectOptions::new()
        .add_root_certificates(deployed.ca(Role::Gateway))
        .require_tls(true)
        .connect(&url)
        .await;
    ensure!(stranger.is_err(), "a stranger was let in");
    let no_tls = ConnectOptions::with_user_and_password(
        Role::Gateway.name().into(),
        deployed.password(Role::Gateway)?,
    );
    ensure!(no_tls.connect(&url).await.is_err(), "a client that does not trust the CA was let in");
    Ok(())
}
