//! Changes what is logged while a program runs: served to this machine alone, and only if a flag asks for it.
//!
//! Apart from the other listeners: whatever stands before those, a proxy or a mesh, may itself come from this machine.

use std::net::SocketAddr;

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::net::TcpListener;

use super::logs::LogLevel;

/// Why it can't be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Others could come in.
    #[error("--log-listen {0}: must be an address of this machine alone, such as 127.0.0.1:8090")]
    NotLoopback(SocketAddr),
    /// The address can't be used.
    #[error("--log-listen {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// Serves `/log` on `address` until the program ends.
///
/// # Errors
/// [`Error`]
pub(super) async fn serve(address: SocketAddr, level: LogLevel) -> Result<(), Error> {
    if !address.ip().is_loopback() {
        return Err(Error::NotLoopback(address));
    }
    let listener =
        TcpListener::bind(address).await.map_err(|source| Error::Bind { address, source })?;
    let router = Router::new().route("/log", get(read).put(change)).with_state(level);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "what is logged can't be changed any more");
        }
    });
    Ok(())
}

async fn read(State(level): State<LogLevel>) -> String {
    format!("{}\n", level.get())
}

async fn change(State(level): State<LogLevel>, directives: String) -> (StatusCode, String) {
    match level.set(directives.trim()) {
        Ok(()) => {
            tracing::info!(herald.log = level.get(), "what is logged was changed");
            (StatusCode::OK, format!("{}\n", level.get()))
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}
