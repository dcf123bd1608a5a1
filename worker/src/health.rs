//! `/healthz` (the process is alive), `/readyz` (its dependencies are up and it is not stopping) and `/metrics`.

use std::{sync::Arc, time::Duration};

use async_nats::{Client, connection};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    routing::get,
};
use herald_proto::metrics::{self, Registry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::store::Store;

#[derive(Clone)]
struct Health {
    client: Client,
    store: Store,
    stop: CancellationToken,
}

const PATIENCE: Duration = Duration::from_secs(2);

/// Serves until `gone`; not ready from `stop` on.
///
/// # Errors
/// If the listener fails.
pub async fn serve(
    listener: TcpListener,
    client: Client,
    store: Store,
    registry: Arc<Registry>,
    stop: CancellationToken,
    gone: CancellationToken,
) -> std::io::Result<()> {
    let metrics =
        async move || ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], registry.openmetrics());
    let router = Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Health { client, store, stop });
    axum::serve(listener, router).with_graceful_shutdown(gone.cancelled_owned()).await
}

async fn ready(State(health): State<Health>) -> (StatusCode, &'static str) {
    if health.stop.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
    } else if health.client.connection_state() != connection::State::Connected {
        (StatusCode::SERVICE_UNAVAILABLE, "no connection to NATS\n")
    } else if !matches!(tokio::time::timeout(PATIENCE, health.store.ping()).await, Ok(Ok(()))) {
        (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n")
    } else {
        (StatusCode::OK, "ready\n")
    }
}
