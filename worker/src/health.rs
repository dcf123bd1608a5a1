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
use tokio::{net::TcpListener, time::sleep};
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
/// How long a worker may lack the connection for replies and events while it has the other one.
const HALF: Duration = Duration::from_secs(20);
/// How often it is looked.
const LOOK: Duration = Duration::from_secs(1);

impl Health {
    fn is_connected(&self) -> bool {
        self.client.connection_state() == connection::State::Connected
    }

    /// Ends a worker that can't publish, but is heard by the others: it would keep its partitions, and do nothing for them.
    pub async fn watch(self) {
        let is_half = || self.is_connected() && !self.link.is_connected();
        tokio::select! {
            () = lasts(is_half) => {
                tracing::error!("there is no connection for replies and events: this worker stops, to be started again");
                self.stop.cancel();
            }
            () = self.stop.cancelled() => {}
        }
    }
}

/// Waits until something has been so for [`HALF`], whenever it was looked at.
async fn lasts(is_so: impl Fn() -> bool) {
    let mut looks = Duration::ZERO;
    while looks < HALF {
        sleep(LOOK).await;
        looks = if is_so() { looks + LOOK } else { Duration::ZERO };
    }
}

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
    } else if !health.is_connected() || !health.link.is_connected() {
        (StatusCode::SERVICE_UNAVAILABLE, "no connection to NATS\n")
    } else if !matches!(tokio::time::timeout(PATIENCE, health.store.ping()).await, Ok(Ok(()))) {
        (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n")
    } else {
        (StatusCode::OK, "ready\n")
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_worker_lacks_half_of_its_connections_for_a_while_before_it_ends() {
        let (begun, looks) = (Instant::now(), Cell::new(0));
        let is_back_once = || {
            looks.set(looks.get() + 1);
            looks.get() != 15
        };
        lasts(is_back_once).await;
        assert_eq!(begun.elapsed(), LOOK * 15 + HALF);
    }
}
