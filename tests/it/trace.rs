//! One trace from the sender's frame to the recipient's ack, on processes that send their spans to a real receiver.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use herald_tests::{
    Client, eventually,
    otlp::{Receiver, Span},
    site::{Setup, Site},
    tree::{Trace, traces},
};
use serde_json::{Value, json};

/// How long spans may take to come.
const PATIENCE: Duration = Duration::from_secs(30);
/// The trace of one message between two gateways.
const WHOLE: &str = "\
request new [SERVER, herald-gateway]
  publish FRAMES [PRODUCER, herald-gateway]
    process FRAMES [CONSUMER, herald-worker]
      apply FRAMES [CONSUMER, herald-worker]
      UPDATE partitions INSERT messages UPDATE chats [CLIENT, herald-worker]
      publish EVENTS [PRODUCER, herald-worker]
        deliver EVENTS [CONSUMER, herald-gateway]
          ack EVENTS [SERVER, herald-gateway]
";
const CLIENT_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT_SPAN: &str = "b7ad6b7169203331";

/// Two gateways and a worker that keep that part of all traces.
async fn site(receiver: &[String], ratio: &str, more: &[&str]) -> Result<Site> {
    let owned = |flags: &[&str]| flags.iter().map(ToString::to_string).collect::<Vec<_>>();
    let gateway_flags = [receiver.to_vec(), owned(&["--trace-ratio", ratio]), owned(more)].concat();
    let env = vec![("OTEL_BSP_SCHEDULE_DELAY".into(), "100".into())];
    let worker_flags = receiver.to_vec();
    Site::start(Setup { gateways: 2, gateway_flags, worker_flags, env, ..Setup::default() }).await
}

/// A device's session at a gateway.
async fn connect(site: &Site, gateway: usize, user: &str) -> Result<Client> {
    let url = format!("{}?userId={user}&deviceId=d", site.urls()[gateway]);
    let mut client = Client::connect(&url).await?.without_presence();
    client.ack(0).await?;
    Ok(client)
}

fn new(key: &str) -> Value {
    json!({"chatId": "User2", "clientMessageId": key, "message": "a secret"})
}

/// Waits until the only trace there is has that many spans.
async fn only_trace(receiver: &Receiver, spans: usize, known: &[&str]) -> Result<Trace> {
    eventually("the trace is whole", PATIENCE, async || {
        let mut traces = traces(&receiver.spans().all(), known);
        ensure!(traces.len() == 1, "{} traces", traces.len());
        let trace = traces.pop().context("no trace")?;
        ensure!(trace.spans.len() >= spans, "so far:\n{}", trace.shape());
        Ok(trace)
    })
    .await
}

fn one<'a>(trace: &'a Trace, name: &str) -> &'a Span {
    let [span] = trace.named(name)[..] else { panic!("not one {name}:\n{}", trace.shape()) };
    span
}

fn assert_attributes(span: &Span, expected: &[(&str, &str)]) {
    for (key, value) in expected {
        assert_eq!(span.get(key), Some(*value), "{key} of {}: {:?}", span.name, span.attributes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_one_trace_from_the_senders_frame_to_the_recipients_ack() -> Result<()> {
    let receiver = Receiver::start().await?;
    let site = site(&receiver.grpc_flags(), "1", &[]).await?;
    let mut user1 = connect(&site, 0, "User1").await?;
    let mut user2 = connect(&site, 1, "User2").await?;
    user1.request("new", new("k")).await?;
    let event = user2.event("new").await?;
    user2.ack(event["id"].as_u64().context("no id")?).await?;

    let trace = only_trace(&receiver, 8, &[]).await?;
    assert_eq!(trace.shape(), WHOLE);
    assert_eq!(trace.orphans, 0);
    let request = one(&trace, "request new");
    assert_eq!(request.parent, None);
    assert_attributes(
        request,
        &[("network.protocol.name", "websocket"), ("herald.request", "new")],
    );
    let publish = one(&trace, "publish FRAMES");
    let nats = ("messaging.system", "nats");
    let to_frames = ("messaging.destination.name", "FRAMES");
    assert_attributes(publish, &[nats, to_frames, ("messaging.operation.type", "send")]);
    let process = one(&trace, "process FRAMES");
    let attempt = ("herald.delivery.attempt", "1");
    assert_attributes(
        process,
        &[nats, to_frames, attempt, ("messaging.operation.type", "process")],
    );
    let apply = one(&trace, "apply FRAMES");
    assert_attributes(apply, &[nats, to_frames, ("messaging.batch.message_count", "1")]);
    assert_eq!(apply.links, [(trace.id.clone(), process.id.clone())], "links to its frames");
    let transaction = one(&trace, "UPDATE partitions INSERT messages UPDATE chats");
    let postgres = ("db.system.name", "postgresql");
    assert_attributes(transaction, &[postgres, ("db.query.summary", &transaction.name)]);
    let append = one(&trace, "publish EVENTS");
    let to_events = ("messaging.destination.name", "EVENTS");
    assert_attributes(append, &[nats, to_events, ("messaging.operation.type", "send")]);
    let deliver = one(&trace, "deliver EVENTS");
    let live = ("herald.delivery.source", "live");
    assert_attributes(deliver, &[nats, to_events, attempt, live]);
    let ack = one(&trace, "ack EVENTS");
    assert_attributes(ack, &[nats, to_events, attempt, ("messaging.operation.type", "settle")]);
    assert!(transaction.end <= append.start && deliver.end <= ack.start, "{}", trace.shape());

    let instance = |span: &Span| span.sender("service.instance.id").to_owned();
    assert_eq!(instance(request), instance(publish));
    assert_eq!(instance(deliver), instance(ack));
    assert_ne!(instance(request), instance(deliver), "two gateways");
    for (_, span) in &trace.spans {
        assert_eq!(span.sender("service.version"), env!("CARGO_PKG_VERSION"));
        assert_eq!(span.error, None, "{}", span.name);
        let text = format!("{span:?}");
        assert!(!text.contains("User") && !text.contains("secret"), "says too much: {text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_traceparent_decides_over_its_request_and_is_continued() -> Result<()> {
    let receiver = Receiver::start().await?;
    // By HTTP, and with what the standard variables say.
    let mut site = site(&receiver.http_flags(), "0", &["--service-name", "edge"]).await?;
    let mut user1 = connect(&site, 0, "User1").await?;
    let traceparent = |flags| format!("00-{CLIENT_TRACE}-{CLIENT_SPAN}-{flags}");
    let frame = |id: &str, traceparent: Value| {
        json!({"type": "request", "id": id, "timestamp": 1, "payloadType": "new", "payload": new(id),
            "traceparent": traceparent})
    };
    let refused = [json!("00-xyz"), json!(7), json!(traceparent("00"))];
    for (n, traceparent) in refused.into_iter().enumerate() {
        user1.send(&frame(&n.to_string(), traceparent)).await?;
        let answer = user1.response(&n.to_string()).await?;
        assert!(answer.get("error").is_none(), "it is never an error: {answer}");
    }
    user1.send(&frame("kept", json!(traceparent("01")))).await?;
    user1.response("kept").await?;
    let trace = only_trace(&receiver, 6, &[CLIENT_SPAN]).await?;
    assert_eq!(trace.id, CLIENT_TRACE);
    let expected: String =
        WHOLE.lines().take(6).fold(String::new(), |text, line| text + line + "\n");
    assert_eq!(trace.shape(), expected.replace("herald-gateway", "edge"));
    let request = one(&trace, "request new");
    assert_eq!(request.parent.as_deref(), Some(CLIENT_SPAN));
    // What is not sampled leaves nothing at all, not even when everything is flushed.
    site.workers[0].stop().await?;
    site.gateways[0].stop().await?;
    assert_eq!(receiver.spans().all().len(), 6);
    Ok(())
}
