//! What operators ask a gateway, on a listener of its own: clients reach the other one, and metrics are not theirs. And
//! probes are answered here too, however many clients wait there for their handshakes.

use std::sync::Arc;

use axum::{Router, http::header, routing::get};
use herald_proto::metrics::{self, Registry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves `/metrics`, and these `probes`, until `gone`.
pub async fn serve(
    listener: TcpListener,
    registry: Arc<Registry>,
    probes: Router,
    gone: CancellationToken,
) {
    let metrics =
        async move || ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], registry.openmetrics());
    let router = probes.route("/metrics", get(metrics));
    let served = axum::serve(listener, router).with_graceful_shutdown(gone.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!(%error, "metrics and probes are not served any more");
    }
}
