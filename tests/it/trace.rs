//! One trace from the sender's frame to the recipient's ack, on processes that send their spans to a real receiver.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use axum::{Router, routing::post};
use herald_tests::{
    Client, Scrape, eventually, http,
    observe::{self, Observed},
    otlp::{Receiver, Span},
    port,
    site::{Setup, Site},
    tree::{Trace, traces},
};
use herald_worker::topology::DEFAULT;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// How long spans may take to come.
const PATIENCE: Duration = Duration::from_secs(30);
/// The trace of one message between two gateways.
const WHOLE: &str = "\
request new [SERVER, herald-gateway]
  publish FRAMES [PRODUCER, herald-gateway]
    process FRAMES [CONSUMER, herald-worker]
      apply FRAMES [CONSUMER, herald-worker]
      SELECT chats messages [CLIENT, herald-worker]
      UPDATE partitions INSERT messages UPDATE chats [CLIENT, herald-worker]
      publish EVENTS [PRODUCER, herald-worker]
        deliver EVENTS [CONSUMER, herald-gateway]
          ack EVENTS [SERVER, herald-gateway]
";
const TAKE_OVER: &str = "take a partition over";
const CLIENT_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT_SPAN: &str = "b7ad6b7169203331";

/// Two gateways and a worker that keep that part of all traces.
fn setup(receiver: &[String], ratio: &str) -> Setup {
    let gateway_flags = [receiver, &["--trace-ratio".into(), ratio.into()]].concat();
    let env = vec![("OTEL_BSP_SCHEDULE_DELAY".into(), "100".into())];
    Setup { gateways: 2, gateway_flags, worker_flags: receiver.to_vec(), env, ..Setup::default() }
}

fn also(mut setup: Setup, gateway_flags: &[&str], worker_flags: &[&str]) -> Setup {
    setup.gateway_flags.extend(gateway_flags.iter().map(ToString::to_string));
    setup.worker_flags.extend(worker_flags.iter().map(ToString::to_string));
    setup
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

/// Waits until the only trace there is, besides those of handshakes and of what workers do for themselves, has that many
/// spans.
async fn only_trace(receiver: &Receiver, spans: usize, known: &[&str]) -> Result<Trace> {
    eventually("the trace is whole", PATIENCE, async || {
        let mut traces = traces(&receiver.spans().all(), known);
        traces
            .retain(|trace| trace.named("GET /ws").is_empty() && trace.named(TAKE_OVER).is_empty());
        ensure!(traces.len() == 1, "{} traces", traces.len());
        let trace = traces.pop().context("no trace")?;
        ensure!(trace.spans.len() >= spans, "so far:\n{}", trace.shape());
        Ok(trace)
    })
    .await
}

/// The spans of what is done for clients.
fn for_clients(receiver: &Receiver) -> Vec<Span> {
    receiver.spans().all().into_iter().filter(|span| span.name != TAKE_OVER).collect()
}

fn one<'a>(trace: &'a Trace, name: &str) -> &'a Span {
    let [span] = trace.named(name)[..] else { panic!("not one {name}:\n{}", trace.shape()) };
    span
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_partition_that_a_worker_takes_over_is_a_trace_of_its_own() -> Result<()> {
    let receiver = Receiver::start().await?;
    let _site = Site::start(setup(&receiver.grpc_flags(), "0")).await?;
    let expected: BTreeSet<String> = (0..DEFAULT.partitions).map(|n| n.to_string()).collect();
    eventually("all partitions are taken over", PATIENCE, async || {
        let traces = traces(&receiver.spans().all(), &[]);
        let shapes = traces.iter().map(Trace::shape).collect::<Vec<_>>();
        let alone = format!("{TAKE_OVER} [INTERNAL, herald-worker]\n");
        ensure!(shapes.iter().all(|shape| *shape == alone), "{shapes:?}");
        let partition = "messaging.destination.partition.id";
        let spans = traces.iter().flat_map(|trace| &trace.spans);
        let taken: BTreeSet<String> =
            spans.filter_map(|(_, span)| span.get(partition).map(ToOwned::to_owned)).collect();
        ensure!(taken == expected, "{taken:?}");
        Ok(())
    })
    .await
}

fn assert_attributes(span: &Span, expected: &[(&str, &str)]) {
    for (key, value) in expected {
        assert_eq!(span.get(key), Some(*value), "{key} of {}: {:?}", span.name, span.attributes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_one_trace_from_the_senders_frame_to_the_recipients_ack() -> Result<()> {
    let receiver = Receiver::start().await?;
    let site = Site::start(setup(&receiver.grpc_flags(), "1")).await?;
    let mut user1 = connect(&site, 0, "User1").await?;
    let mut user2 = connect(&site, 1, "User2").await?;
    user1.request("new", new("k")).await?;
    let event = user2.event("new").await?;
    user2.ack(event["id"].as_u64().context("no id")?).await?;

    let trace = only_trace(&receiver, 9, &[]).await?;
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
    let look_up = one(&trace, "SELECT chats messages");
    for query in [look_up, transaction] {
        let database = [("db.system.name", "postgresql"), ("server.address", "127.0.0.1")];
        assert_attributes(query, &database);
        assert_attributes(query, &[("db.query.summary", &query.name)]);
        assert!(query.get("server.port").is_some() && query.get("db.namespace").is_some());
    }
    assert!(look_up.end <= transaction.start);
    let append = one(&trace, "publish EVENTS");
    let to_events = ("messaging.destination.name", "EVENTS");
    assert_attributes(append, &[nats, to_events, ("messaging.operation.type", "send")]);
    let deliver = one(&trace, "deliver EVENTS");
    let live = ("herald.delivery.source", "live");
    assert_attributes(deliver, &[nats, to_events, attempt, live]);
    let ack = one(&trace, "ack EVENTS");
    assert_attributes(ack, &[nats, to_events, attempt, ("messaging.operation.type", "settle")]);
    for message in [publish, process, apply, append, deliver, ack] {
        assert_attributes(message, &[("server.address", "127.0.0.1")]);
        assert!(
            message.get("server.port").is_some()
                && message.get("messaging.operation.name").is_some()
        );
    }
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
    is_shown(&receiver, &trace).await
}

/// The page of `cargo dev --observe` lists it, and draws all of its spans.
async fn is_shown(receiver: &Receiver, trace: &Trace) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    // Nothing answers there: metrics are left blank.
    let programs = vec![("gone".into(), ([127, 0, 0, 1], port::free()?).into())];
    let observed = Observed { spans: receiver.spans().clone(), programs };
    let page = tokio::spawn(observe::serve(listener, observed));
    let json = async |path: &str| {
        let (status, text) = http::get(address, path).await?;
        ensure!(status == 200, "{status}: {text}");
        Ok(serde_json::from_str::<Value>(&text)?)
    };
    let listed = json("/traces").await?;
    let listed = listed.as_array().context("no list")?;
    let row = listed.iter().find(|row| row["id"] == json!(trace.id)).context("not listed")?;
    assert_eq!(row["spans"], json!(9));
    assert_eq!(json("/metrics").await?, json!([{"program": "gone", "values": null}]));
    let (_, picture) = http::get(address, &format!("/traces/{}", trace.id)).await?;
    for (_, span) in &trace.spans {
        assert!(picture.contains(&format!(">{} <", span.name)), "{} in {picture}", span.name);
    }
    page.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_traceparent_decides_over_its_request_and_is_continued() -> Result<()> {
    let receiver = Receiver::start().await?;
    // By HTTP, and with what the standard variables say.
    let setup = also(setup(&receiver.http_flags(), "0"), &["--service-name", "edge"], &[]);
    let mut site = Site::start(setup).await?;
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
    // What was said before is remembered: nothing is looked up.
    let lines = WHOLE.lines().filter(|line| !line.contains("SELECT")).take(6);
    let expected = lines.fold(String::new(), |text, line| text + line + "\n");
    assert_eq!(trace.shape(), expected.replace("herald-gateway", "edge"));
    let request = one(&trace, "request new");
    assert_eq!(request.parent.as_deref(), Some(CLIENT_SPAN));
    // What is not sampled leaves nothing at all, not even when everything is flushed.
    site.workers[0].stop().await?;
    site.gateways[0].stop().await?;
    assert_eq!(for_clients(&receiver).len(), 6);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_is_a_span_in_its_clients_trace() -> Result<()> {
    let receiver = Receiver::start().await?;
    let site = Site::start(setup(&receiver.grpc_flags(), "0")).await?;
    let url = format!("{}?userId=User1", site.urls()[0]);
    let traceparent = format!("00-{CLIENT_TRACE}-{CLIENT_SPAN}-01");
    let _user1 = Client::connect_with(&url, &[("traceparent", &traceparent)]).await?;
    let span = eventually("its span is there", PATIENCE, async || {
        for_clients(&receiver).pop().context("no span")
    })
    .await?;
    assert_eq!((span.name.as_str(), span.kind), ("GET /ws", "SERVER"));
    assert_eq!((span.trace.as_str(), span.parent.as_deref()), (CLIENT_TRACE, Some(CLIENT_SPAN)));
    let status = ("http.response.status_code", "101");
    assert_attributes(&span, &[("http.request.method", "GET"), ("http.route", "/ws"), status]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_of_which_no_session_came_is_kept_as_a_failure_whether_it_is_traced_or_not()
-> Result<()> {
    let receiver = Receiver::start().await?;
    let mut site = Site::start(setup(&receiver.grpc_flags(), "0")).await?;
    let url = format!("{}?userId=User1", site.urls()[0]);
    site.broker.kill().await?;
    let traceparent = format!("00-{CLIENT_TRACE}-{CLIENT_SPAN}-01");
    for headers in [&[][..], &[("traceparent", traceparent.as_str())]] {
        let mut user1 = Client::connect_with(&url, headers).await?;
        assert_eq!(user1.expect_close().await?.0, 1013);
    }
    let spans = eventually("both spans are there", PATIENCE, async || {
        let spans = for_clients(&receiver);
        ensure!(spans.len() == 2, "{spans:?}");
        Ok(spans)
    })
    .await?;
    for span in &spans {
        assert_eq!((span.name.as_str(), span.error.as_deref()), ("GET /ws", Some("not_begun")));
    }
    let parents: Vec<&str> = spans.iter().filter_map(|span| span.parent.as_deref()).collect();
    assert_eq!(parents, [CLIENT_SPAN]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_between_commit_and_publish_leaves_one_trace_without_a_gap() -> Result<()> {
    killed("after-commit=return").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_sends_all_its_spans_before_it_is_killed_leaves_no_gap_either() -> Result<()>
{
    // Long enough for whatever has ended by then to be sent.
    killed("after-commit=sleep(1000);after-reply=return").await
}

/// A worker is killed at a failpoint. Its own spans are lost with it: what the next worker does must not hang from them,
/// and none that was sent may hang from one that was not.
async fn killed(failpoints: &str) -> Result<()> {
    let receiver = Receiver::start().await?;
    let mut setup = also(setup(&receiver.grpc_flags(), "1"), &["--request-timeout", "60s"], &[]);
    setup.env.push(("OTEL_BSP_SCHEDULE_DELAY".into(), "1".into()));
    let mut site = Site::start(setup).await?;
    let mut user1 = connect(&site, 0, "User1").await?;
    let mut user2 = connect(&site, 1, "User2").await?;
    let worker = &mut site.workers[0];
    worker.stop().await?;
    worker.launch_with(failpoints)?;
    worker.start().await?;
    let frame = json!({"type": "request", "id": "r", "timestamp": 1, "payloadType": "new", "payload": new("k")});
    user1.send(&frame).await?;
    site.workers[0].process()?.wait().await?;
    site.add_worker().await?;
    eventually("it is answered", PATIENCE, async || user1.response("r").await).await?;
    let event = user2.event("new").await?;
    user2.ack(event["id"].as_u64().context("no id")?).await?;

    let trace = only_trace(&receiver, 9, &[]).await?;
    let expected = "\
request new [SERVER, herald-gateway]
  publish FRAMES [PRODUCER, herald-gateway]
    process FRAMES [CONSUMER, herald-worker]
      apply FRAMES [CONSUMER, herald-worker]
      SELECT chats messages [CLIENT, herald-worker]
      UPDATE partitions INSERT messages UPDATE chats [CLIENT, herald-worker]
    publish EVENTS [PRODUCER, herald-worker]
      deliver EVENTS [CONSUMER, herald-gateway]
        ack EVENTS [SERVER, herald-gateway]
";
    assert_eq!((trace.shape().as_str(), trace.orphans), (expected, 0));
    assert_attributes(one(&trace, "process FRAMES"), &[("herald.replay", "true")]);
    assert_attributes(one(&trace, "publish EVENTS"), &[("herald.republished", "true")]);
    Ok(())
}

/// Deliveries as the events came in, and those read from the log.
fn by_source(trace: &Trace) -> (Vec<&Span>, Vec<&Span>) {
    let deliveries = trace.named("deliver EVENTS").into_iter();
    deliveries.partition(|span| span.get("herald.delivery.source") == Some("live"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_delivered_again_is_linked_to_the_first_time() -> Result<()> {
    let receiver = Receiver::start().await?;
    let setup = also(setup(&receiver.grpc_flags(), "1"), &["--ack-wait", "200ms"], &[]);
    let site = Site::start(setup).await?;
    let mut user1 = connect(&site, 0, "User1").await?;
    let mut user2 = connect(&site, 1, "User2").await?;
    user1.request("new", new("k")).await?;
    let event = user2.event("new").await?;
    assert_eq!(user2.event("new").await?["id"], event["id"]);
    drop(user2);
    let mut user2 = connect(&site, 0, "User2").await?;
    assert_eq!(user2.event("new").await?["id"], event["id"]);
    user2.ack(event["id"].as_u64().context("no id")?).await?;

    // Each gateway sends its spans in its own time: the ack's say nothing of the first gateway's.
    let trace = eventually("both gateways' spans are there", PATIENCE, async || {
        let trace = only_trace(&receiver, 11, &[]).await?;
        let (live, log) = by_source(&trace);
        let whole = live.len() >= 2 && !log.is_empty() && trace.named("ack EVENTS").len() == 1;
        ensure!(whole, "so far:\n{}", trace.shape());
        Ok(trace)
    })
    .await?;
    assert_eq!(trace.orphans, 0, "{}", trace.shape());
    let append = one(&trace, "publish EVENTS");
    let (live, log) = by_source(&trace);
    assert!(live.iter().chain(&log).all(|span| span.parent.as_ref() == Some(&append.id)));
    for some in [&live, &log] {
        let first = (trace.id.clone(), some[0].id.clone());
        for (n, span) in some.iter().enumerate() {
            assert_attributes(span, &[("herald.delivery.attempt", &(n + 1).to_string())]);
            let expected = if n == 0 { vec![] } else { vec![first.clone()] };
            assert_eq!(span.links, expected, "delivery {n}");
        }
    }
    assert_ne!(live[0].sender("service.instance.id"), log[0].sender("service.instance.id"));
    assert_eq!(one(&trace, "ack EVENTS").parent.as_ref(), Some(&log[0].id));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_is_kept_though_it_is_not_sampled_and_its_log_line_names_a_trace_that_is()
-> Result<()> {
    let receiver = Receiver::start().await?;
    let mut setup = also(setup(&receiver.grpc_flags(), "0"), &[], &["--log-format", "json"]);
    setup.env.push(("FAILPOINTS".into(), "poison=return(bad-)".into()));
    let site = Site::start(setup).await?;
    let mut user1 = connect(&site, 0, "User1").await?;
    for key in ["good", "bad-1"] {
        user1.request("new", new(key)).await?;
    }
    let trace = only_trace(&receiver, 1, &[]).await?;
    assert_eq!(trace.shape(), "process FRAMES [CONSUMER, herald-worker]\n");
    assert_eq!(one(&trace, "process FRAMES").error.as_deref(), Some("dead_letter"));

    let frame = json!({"type": "request", "id": "r", "timestamp": 1, "payloadType": "new", "payload": new("bad-2"),
        "traceparent": format!("00-{CLIENT_TRACE}-{CLIENT_SPAN}-01")});
    user1.send(&frame).await?;
    assert_eq!(user1.response("r").await?["error"]["code"], "unavailable");
    let (trace, process) = eventually("the failed spans are there", PATIENCE, async || {
        let traces = traces(&receiver.spans().all(), &[CLIENT_SPAN]);
        let trace =
            traces.into_iter().find(|trace| trace.id == CLIENT_TRACE).context("no trace")?;
        let process = trace.named("process FRAMES").pop().context("no worker's span")?.clone();
        ensure!(trace.named("request new").len() == 1, "so far:\n{}", trace.shape());
        Ok((trace, process))
    })
    .await?;
    assert_eq!(process.error.as_deref(), Some("dead_letter"));
    assert_eq!(one(&trace, "request new").error.as_deref(), Some("unavailable"));
    let log = std::fs::read_to_string(site.logs().join("herald-worker-1.log"))?;
    let lines = log.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let errors: Vec<&Value> = lines.iter().filter(|line| line["level"] == "ERROR").collect();
    assert_eq!(errors.len(), 2, "{log}");
    assert_eq!((&errors[0]["trace_id"], &errors[0]["span_id"]), (&Value::Null, &Value::Null));
    let ids = (json!(CLIENT_TRACE), json!(process.id));
    assert_eq!((&errors[1]["trace_id"], &errors[1]["span_id"]), (&ids.0, &ids.1));
    Ok(())
}

/// Whoever takes spans and says nothing must cost neither memory nor requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_stands_still_costs_spans_that_are_counted_and_nothing_else() -> Result<()>
{
    const REQUESTS: usize = 1500;
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", silent.local_addr()?);
    let receiver = ["--otlp-endpoint".into(), endpoint, "--otlp-protocol".into(), "grpc".into()];
    let mut setup = setup(&receiver, "1");
    setup.gateways = 1;
    for (name, value) in [("QUEUE_SIZE", "256"), ("EXPORT_BATCH_SIZE", "64")] {
        setup.env.push((format!("OTEL_BSP_MAX_{name}"), value.into()));
    }
    let mut site = Site::start(setup).await?;
    let mut user1 = connect(&site, 0, "User1").await?;
    let mut memory = Vec::new();
    for n in 0..REQUESTS {
        let answer = user1.request("new", new(&n.to_string())).await?;
        assert!(answer.get("error").is_none(), "{answer}");
        if n % (REQUESTS / 3) == 0 {
            memory.push(resident(site.gateways[0].process()?.pid())?);
        }
    }
    memory.push(resident(site.gateways[0].process()?.pid())?);
    // Twice the spans that the queue holds lie between these two.
    assert!(memory[3] < memory[1] + (4 << 20), "grows from {memory:?} bytes");
    site.gateways[0].stop().await?;
    let log = std::fs::read_to_string(site.logs().join("herald-gateway-2.log"))?;
    let complaints = log.lines().filter(|line| line.contains("spans can't be sent")).count();
    assert!((1..=3).contains(&complaints), "{complaints} lines: one a minute is enough");
    let last = log.lines().rfind(|line| line.contains("not all spans were sent"));
    let last = last.context("nothing is said at the end")?;
    let dropped = last.rsplit('=').next().and_then(|count| count.parse::<usize>().ok());
    // A handshake is one more.
    let made = 2 * REQUESTS + 1;
    assert!(dropped.is_some_and(|dropped| (made - 1000..=made).contains(&dropped)), "{last}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_receiver_refuses_of_what_it_was_sent_is_counted_and_told() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let refuse = async || {
        let partial = ExportTracePartialSuccess { rejected_spans: 1, error_message: "full".into() };
        ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec()
    };
    let router = Router::new().route("/v1/traces", post(refuse));
    let served = tokio::spawn(async move { axum::serve(listener, router).await });
    let flags =
        ["--otlp-endpoint".into(), endpoint, "--otlp-protocol".into(), "http/protobuf".into()];
    let admin = ([127, 0, 0, 1], port::free()?).into();
    let mut setup = also(setup(&flags, "1"), &["--admin-listen", &format!("{admin}")], &[]);
    setup.gateways = 1;
    let site = Site::start(setup).await?;
    let mut user1 = connect(&site, 0, "User1").await?;
    user1.request("new", new("k")).await?;
    eventually("it is counted and told", PATIENCE, async || {
        let dropped = Scrape::of(admin).await?.sum("herald_dropped_spans_total", &[])?;
        ensure!(dropped >= 1.0, "{dropped}");
        let log = std::fs::read_to_string(site.logs().join("herald-gateway-2.log"))?;
        ensure!(log.contains("rejected_spans=1 error_message=\"full\""), "{log}");
        Ok(())
    })
    .await?;
    served.abort();
    Ok(())
}

/// A process's memory, in bytes.
fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
