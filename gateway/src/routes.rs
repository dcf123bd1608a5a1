//! The HTTP surface: `/ws`, `/healthz` (the process is alive), `/readyz` (its dependencies are up and it is not
//! draining).

use std::sync::Arc;

use async_nats::connection;
use axum::{
    Router,
    extract::{Query, State, WebSocketUpgrade},
    http::{HeaderMap, HeaderValue, StatusCode},
    response::Response,
    routing::get,
};

use crate::{
    auth::{self, Authenticator},
    error::Error,
    session::{self, Shared},
};

/// What the routes act on.
#[derive(Clone)]
pub struct App {
    /// What sessions share.
    pub shared: Arc<Shared>,
    /// Who clients are.
    pub authenticator: Arc<Authenticator>,
}

/// tungstenite allocates this for each connection and keeps it; frames larger than it take more reads.
const READ_BUFFER: usize = 2 * 1024;
/// What may wait in a connection's write buffer before it is written.
const WRITE_BUFFER: usize = 16 * 1024;

/// The router.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/ws", get(websocket))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .with_state(app)
}

async fn ready(State(app): State<App>) -> (StatusCode, &'static str) {
    if app.shared.drain.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else if app.shared.client.connection_state() != connection::State::Connected {
        (StatusCode::SERVICE_UNAVAILABLE, "no connection to NATS\n")
    } else {
        (StatusCode::OK, "ready\n")
    }
}

/// Who is not let in is told by a close code: a browser sees no HTTP status.
async fn websocket(
    State(App { shared, authenticator }): State<App>,
    query: Result<Query<auth::Query>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let identity = match query {
        Ok(Query(query)) => authenticator.identify(&headers, query).await,
        Err(error) => Err(Error::Unauthenticated(error.to_string())),
    };
    let hard_limit = shared.limits.max_frame_bytes.saturating_mul(4);
    let mut upgrade = upgrade
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(usize::MAX)
        .max_message_size(hard_limit)
        .max_frame_size(hard_limit);
    let bearer = HeaderValue::from_static(auth::SUBPROTOCOL);
    if upgrade.requested_protocols().any(|protocol| *protocol == bearer) {
        upgrade.set_selected_protocol(bearer);
    }
    upgrade.on_upgrade(move |mut socket| async move {
        let patience = shared.limits.write_timeout;
        match identity {
            _ if shared.drain.is_cancelled() => {
                let code = herald_proto::CloseCode::ServiceRestart;
                session::close(&mut socket, code, "this gateway is restarting".into(), patience)
                    .await;
            }
            Ok(identity) => session::run(shared, socket, identity).await,
            Err(error) => {
                tracing::info!(%error, "a client is not let in");
                session::close(&mut socket, error.close_code(), error.to_string(), patience).await;
            }
        }
    })
}
