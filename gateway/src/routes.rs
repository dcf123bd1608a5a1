//! The HTTP surface: `/ws`, `/healthz` (the process is alive), `/readyz` (its dependencies are up and it is not
//! draining).

use std::{sync::Arc, time::Instant};

use async_nats::connection;
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use herald_proto::{CloseCode, telemetry::Span};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;

use crate::{
    auth::{self, Authenticator},
    error::Error,
    metrics::Login,
    session::{self, Identity, Shared, Socket},
    spans,
};

/// What the routes act on.
#[derive(Clone)]
pub struct App {
    /// What sessions share.
    pub shared: Arc<Shared>,
    /// Who clients are.
    pub authenticator: Arc<Authenticator>,
}

/// The router.
pub fn router(app: App) -> Router {
    let probes = probes(app.shared.clone());
    Router::new().route("/ws", get(websocket)).with_state(app).merge(probes)
}

/// What an orchestrator asks: whether the gateway lives, and whether it takes clients.
pub fn probes(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .with_state(shared)
}

async fn ready(State(shared): State<Arc<Shared>>) -> (StatusCode, &'static str) {
    if shared.drain.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else if shared.client.connection_state() != connection::State::Connected
        || !shared.tap.is_connected()
        || !shared.log.is_connected()
    {
        (StatusCode::SERVICE_UNAVAILABLE, "no connection to NATS\n")
    } else {
        (StatusCode::OK, "ready\n")
    }
}

/// Who is not let in is told by a close code: a browser sees no HTTP status.
///
/// The handshake is done here and not by axum's extractor: its sockets can only stand on hyper's connections, and a
/// session is to be tested on a stream in memory too.
async fn websocket(State(app): State<App>, mut request: Request) -> Response {
    let Ok(mut response) = create_response_with_body(&request, Body::empty) else {
        return (StatusCode::BAD_REQUEST, "this is a WebSocket endpoint\n").into_response();
    };
    if auth::offers_bearer(request.headers()) {
        let bearer = HeaderValue::from_static(auth::SUBPROTOCOL);
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, bearer);
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let parent =
        request.headers().get("traceparent").and_then(|text| text.to_str().ok()?.parse().ok());
    let is_traced = app.shared.sampler.keeps(parent.as_ref());
    let span = if is_traced { spans::handshake(parent) } else { Span::none() };
    let identity = app.authenticator.identify(request.headers(), request.uri()).await;
    app.shared.tasks.clone().spawn(async move {
        match upgrade.await {
            Ok(stream) => serve(app.shared, TokioIo::new(stream), identity, span).await,
            Err(error) => tracing::debug!(%error, "a client left during its handshake"),
        }
    });
    response
}

/// Begins the client's session, or says why not; `span` lasts until then.
async fn serve(
    shared: Arc<Shared>,
    stream: TokioIo<Upgraded>,
    identity: Result<Identity, Error>,
    mut span: Span,
) {
    let (limits, logins) = (&shared.limits, &shared.metrics.logins);
    let hard_limit = limits.max_frame_bytes.saturating_mul(4);
    let socket = Socket::new(stream, hard_limit, limits.write_timeout).await;
    match identity {
        _ if shared.drain.is_cancelled() => {
            logins.inc(Login::TryAgain);
            span.set("error.type", i64::from(CloseCode::ServiceRestart.code()).to_string());
            let reason = shared.door.come_back(shared.registry.len());
            socket.close(CloseCode::ServiceRestart, &reason).await;
        }
        Ok(identity) => match shared.door.enter(Instant::now()) {
            Ok(()) => {
                if session::begin(shared, socket, identity).await.is_err() {
                    spans::fail_handshake(&mut span, "not_begun");
                }
            }
            Err(reason) => {
                logins.inc(Login::TryAgain);
                span.set("error.type", i64::from(CloseCode::TryAgainLater.code()).to_string());
                socket.close(CloseCode::TryAgainLater, &reason).await;
            }
        },
        Err(error) => {
            logins.inc(Login::Unauthenticated);
            let logs = span.enter();
            tracing::info!(%error, "a client is not let in");
            drop(logs);
            span.set("error.type", i64::from(error.close_code().code()).to_string());
            socket.close(error.close_code(), &error.to_string()).await;
        }
    }
}
