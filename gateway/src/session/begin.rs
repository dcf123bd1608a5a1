//! How a session begins.

use std::sync::Arc;

use herald_proto::{clock::now_ms, subject, wire::Signal};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Identity, Session, Shared, Socket, State, Traces, now};
use crate::{
    error::Error,
    log::Place,
    metrics::{Login, Stage},
    registry::Seat,
};

/// Begins to serve a client, until it goes or has to.
///
/// The session goes on in a task of its own: what beginning it took is not kept for as long as it lives.
///
/// # Errors
/// Why it can't begin: its client has been told.
pub async fn begin<S>(
    shared: Arc<Shared>,
    socket: Socket<S>,
    identity: Identity,
) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let opening = shared.metrics.connections.one(Stage::Opening);
    let opened = match shared.door.turn_to_begin().await {
        Ok(_turn) => {
            let opened = open(&shared, &identity).await;
            if opened.is_ok() {
                shared.door.begins.next().await;
            }
            opened
        }
        Err(error) => Err(error),
    };
    match opened {
        Ok((seat, state)) => {
            drop(opening);
            shared.presence.opened(&identity.user);
            let metrics = &shared.metrics;
            metrics.logins.inc(Login::Accepted);
            let (counted, unacked) = (metrics.connections.one(Stage::Open), metrics.unacked.part());
            let waiting = shared.waiting.share();
            let tasks = shared.tasks.clone();
            let traces = Traces::default();
            // Boxed: a task keeps what it was given, and once more what becomes of it.
            let session = Box::new(Session {
                shared,
                identity,
                socket,
                seat,
                state,
                traces,
                waiting,
                unacked,
                counted,
                is_present: true,
            });
            tasks.spawn(session.run());
            Ok(())
        }
        Err(error) => {
            tracing::warn!(%error, "a session can't begin");
            shared.metrics.logins.inc(Login::TryAgain);
            socket.close(error.close_code(), &error.to_string()).await;
            Err(error)
        }
    }
}

/// Subscribes first and reads then: an event in between is heard live.
async fn open(shared: &Shared, identity: &Identity) -> Result<(Seat, State), Error> {
    let opened_at = now_ms();
    let seat = shared.registry.join(&identity.user, &identity.device, opened_at).await?;
    let signal = Signal::Opened {
        device: identity.device.clone(),
        at: opened_at,
        gateway: shared.gateway.to_string(),
        session: seat.id,
    };
    shared.signal(&identity.user, &signal).await;
    // Asked first: what is on its way now is stored then.
    let latest = shared.cursors.latest(&subject::cursor_key(&identity.user, &identity.device));
    let mut place = shared.log.place(&identity.user, &identity.device).await?;
    if let Some(latest) = latest.filter(|latest| *latest > place.cursor) {
        place = Place::after(latest);
    }
    let (limits, metrics, user) =
        (shared.limits.clone(), shared.metrics.clone(), identity.user.clone());
    Ok((seat, State::new(user, limits, metrics, place, identity.expires_at, now())))
}
