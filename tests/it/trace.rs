//! The trace of a client's request goes on through the broker, the worker and the event.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use herald_proto::wire::Bundle;
use herald_tests::{Backend, Cluster, Options};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_traceparent_of_a_request_is_on_its_frame_and_on_its_event() -> Result<()> {
    let cluster =
        Cluster::start(Backend::Sqlite, Options::default().gateway_flags(&["--trace-ratio", "1"]))
            .await?;
    let broker = async_nats::connect(cluster.broker.url()).await?;
    let mut all = broker.subscribe(">").await?;
    broker.flush().await?;
    let mut user1 = cluster.connect("User1").await?;
    for key in ["a", "b"] {
        user1
            .request("new", json!({"chatId": "User2", "clientMessageId": key, "message": "hi"}))
            .await?;
    }
    let mut seen: HashMap<&str, Vec<String>> = HashMap::new();
    while seen.get("events").is_none_or(|events| events.len() < 2) {
        let message = all.next().await.context("the broker is gone")?;
        for kind in ["frames", "events"] {
            // What a worker is delivered keeps its subject, but answers to an ack: only what is published counts.
            let is_delivery =
                message.reply.as_ref().is_some_and(|reply| reply.starts_with("$JS.ACK"));
            if message.subject.starts_with(&format!("{kind}.")) && !is_delivery {
                let parents = if kind == "frames" {
                    let bundle: Bundle = serde_json::from_slice(&message.payload)?;
                    bundle.commands.into_iter().map(|command| command.traceparent).collect()
                } else {
                    let headers = message.headers.as_ref().context("no headers")?;
                    vec![headers.get("traceparent").map(ToString::to_string)]
                };
                let parents: Option<Vec<String>> = parents.into_iter().collect();
                seen.entry(kind).or_default().extend(parents.context("no traceparent")?);
            }
        }
    }
    let trace = |parent: &String| parent.split('-').nth(1).unwrap().to_owned();
    let span = |parent: &String| parent.split('-').nth(2).unwrap().to_owned();
    let (frames, events) = (&seen["frames"], &seen["events"]);
    for (frame, event) in frames.iter().zip(events) {
        assert_eq!(trace(frame), trace(event), "one trace");
        assert_ne!(span(frame), span(event), "the worker's span is its own");
    }
    assert_ne!(trace(&frames[0]), trace(&frames[1]), "each request has its own trace");
    Ok(())
}
