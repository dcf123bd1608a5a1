//! What operators ask a gateway, on a listener of its own: clients reach the other one, and metrics are not theirs.

use std::sync::Arc;

use axum::{Router, http::header, routing::get};
use herald_proto::metrics::{self, Registry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves `/metrics` until `gone`.
pub async fn serve(listener: TcpListener, registry: Arc<Registry>, gone: CancellationToken) {
    let metrics =
        async move || ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], registry.openmetrics());
    let router = Router::new().route("/metrics", get(metrics));
    let served = axum::serve(listener, router).with_graceful_shutdown(gone.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!(%error, "metrics are not served any more");
    }
}
