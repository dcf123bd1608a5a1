//! `/healthz` (the process is alive), `/readyz` (its dependencies are up and it is not stopping) and `/metrics`.

use std::{sync::Arc, time::Duration};

use async_nats::{Client, connection};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    routing::get,
};
use herald_proto::{
    link::Link,
    metrics::{self, Registry},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::store::Store;

/// What a worker has to have.
#[derive(Clone)]
pub struct Health {
    /// The connection to NATS.
    pub client: Client,
    /// The one for replies and events.
    pub link: Arc<Link>,
    /// The database.
    pub store: Store,
    /// Whether the worker is stopping.
    pub stop: CancellationToken,
}

const PATIENCE: Duration = Duration::from_secs(2);

/// Serves until `gone`.
///
/// # Errors
/// If the listener fails.
pub async fn serve(
    listener: TcpListener,
    health: Health,
    registry: Arc<Registry>,
    gone: CancellationToken,
) -> std::io::Result<()> {
    let metrics =
        async move || ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], registry.openmetrics());
    let router = Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(health);
    axum::serve(listener, router).with_graceful_shutdown(gone.cancelled_owned()).await
}

async fn ready(State(health): State<Health>) -> (StatusCode, &'static str) {
    if health.stop.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
    } else if health.client.connection_state() != connection::State::Connected
        || !health.link.is_connected()
    {
        (StatusCode::SERVICE_UNAVAILABLE, "no connection to NATS\n")
    } else if !matches!(tokio::time::timeout(PATIENCE, health.store.ping()).await, Ok(Ok(()))) {
        (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n")
    } else {
        (StatusCode::OK, "ready\n")
    }
}
