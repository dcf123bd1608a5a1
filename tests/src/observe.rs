//! What `cargo dev --observe` shows: the latest traces as waterfalls, and the key metrics as they are now.
//!
//! The page asks for both once a second. The traces come from our own OTLP receiver, the metrics from the programs'
//! `/metrics`; what a program does not serve is left blank.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::Result;
use axum::{
    Json, Router,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use futures::future::join_all;
use serde::Serialize;
use tokio::net::TcpListener;

use crate::{
    http,
    otlp::Spans,
    tree::{Trace, traces},
    waterfall,
};

/// The most traces listed.
const LATEST: usize = 50;

/// What the page shows.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The spans.
    pub spans: Spans,
    /// The programs, by name, and where they serve `/metrics`.
    pub programs: Vec<(String, SocketAddr)>,
}

#[derive(Serialize)]
struct Row {
    id: String,
    name: String,
    at: u64,
    duration: u64,
    spans: usize,
    failed: bool,
}

#[derive(Serialize)]
struct Metrics {
    program: String,
    /// Each metric, summed over its labels; none if the program serves no metrics.
    values: Option<BTreeMap<String, f64>>,
}

/// Serves the page until the listener's task ends with the program.
///
/// # Errors
/// If the listener fails.
pub async fn serve(listener: TcpListener, observed: Observed) -> Result<()> {
    let router = Router::new()
        .route("/", get(|| async { Html(include_str!("observe/page.html")) }))
        .route("/traces", get(latest))
        .route("/traces/{id}", get(picture))
        .route("/metrics", get(metrics))
        .with_state(observed);
    Ok(axum::serve(listener, router).await?)
}

async fn latest(State(observed): State<Observed>) -> Json<Vec<Row>> {
    let row = |trace: Trace| Row {
        name: trace.spans.first().map(|(_, span)| span.name.clone()).unwrap_or_default(),
        at: trace.start() / 1_000_000,
        duration: trace.duration(),
        spans: trace.spans.len(),
        failed: trace.spans.iter().any(|(_, span)| span.error.is_some()),
        id: trace.id,
    };
    let traces = traces(&observed.spans.all(), &[]);
    Json(traces.into_iter().rev().take(LATEST).map(row).collect())
}

async fn picture(State(observed): State<Observed>, Path(id): Path<String>) -> Response {
    let traces = traces(&observed.spans.all(), &[]);
    match traces.into_iter().find(|trace| trace.id == id) {
        Some(trace) => {
            ([(header::CONTENT_TYPE, "image/svg+xml")], waterfall::svg(&trace)).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn metrics(State(observed): State<Observed>) -> Json<Vec<Metrics>> {
    let asked = observed.programs.into_iter().map(async |(program, address)| {
        let answer = http::get(address, "/metrics").await;
        let text = answer.ok().filter(|(status, _)| *status == 200).map(|(_, text)| text);
        Metrics { program, values: text.map(|text| summed(&text)) }
    });
    Json(join_all(asked).await)
}

/// The samples of a Prometheus text, by name, summed over their labels.
fn summed(text: &str) -> BTreeMap<String, f64> {
    let mut values = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = match line.split_once('{') {
            Some((name, rest)) => (name, rest.split_once('}').map_or("", |(_, rest)| rest)),
            None => line.split_once(' ').unwrap_or((line, "")),
        };
        // After the value there may be an exemplar.
        let value = rest.split_whitespace().next().and_then(|value| value.parse::<f64>().ok());
        // A histogram's buckets count everything several times.
        if let Some(value) = value.filter(|_| !name.ends_with("_bucket")) {
            *values.entry(name.to_owned()).or_insert(0.0) += value;
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_over_their_labels() {
        let text = "# HELP a A.\na{x=\"1\"} 2\na{x=\"2\"} 3.5 # {trace_id=\"t\"} 1\nb 7\nc_bucket{le=\"1\"} 9\n";
        let expected = BTreeMap::from([("a".to_owned(), 5.5), ("b".to_owned(), 7.0)]);
        assert_eq!(summed(text), expected);
    }
}
