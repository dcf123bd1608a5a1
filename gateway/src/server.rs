//! Takes connections until their handshakes are done. Who has not finished in time is cut off. While too many have not,
//! the others wait in the system's queue, and the one that has taken longest gives way once it has had its moment: a
//! client that means it is through by then, in a crowd too, and never finds the door shut.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::Router;
use herald_proto::metrics::Part;
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    door::Door,
    metrics::{Metrics, Stage},
};

/// Serves HTTP connections.
pub struct Server {
    /// What is served.
    pub router: Router,
    /// How long a connection may last that does not become a WebSocket.
    pub handshake_timeout: Duration,
    /// The most connections in that state.
    pub max_handshakes: usize,
    /// Where they are counted.
    pub metrics: Arc<Metrics>,
    /// Where they wait for their turns.
    pub door: Arc<Door>,
}

/// How many connections are taken before others have their turn.
const AT_A_TIME: u64 = 4;
/// How long to wait when the system has no more sockets to give.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a handshake has its place, however many wait for one.
const MOMENT: Duration = Duration::from_secs(2);

/// Handshakes under way, oldest first.
#[derive(Clone, Default)]
struct Handshakes {
    all: Arc<Mutex<BTreeMap<u64, Handshake>>>,
    /// A place is free again.
    left: Arc<Notify>,
}

struct Handshake {
    begun_at: Instant,
    evicted: CancellationToken,
}

/// A place among the handshakes; dropping it gives the place up.
struct Place {
    handshakes: Handshakes,
    number: u64,
    evicted: CancellationToken,
    _counted: Part,
}

impl Server {
    /// Takes connections until `gone`.
    pub async fn run(self, listener: TcpListener, gone: CancellationToken) {
        let handshakes = Handshakes::default();
        for number in 0.. {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = gone.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    handshakes.make_room(self.max_handshakes).await;
                    let place = handshakes.enter(number, &self.metrics);
                    tokio::spawn(shake_hands(
                        stream,
                        self.router.clone(),
                        self.handshake_timeout,
                        place,
                        self.door.clone(),
                    ));
                    if number % AT_A_TIME == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection can't be taken");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

async fn shake_hands(
    stream: TcpStream,
    router: Router,
    patience: Duration,
    place: Place,
    door: Arc<Door>,
) {
    // Small frames must not wait for the acknowledgement of those before them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection keeps Nagle's algorithm");
    }
    let serve = async {
        // A client that says nothing needs no turn. A new connection can count as readable before anything was sent, so
        // it is looked at. A client that is gone is found out below.
        let _ = stream.peek(&mut [0]).await;
        door.handshakes.next().await;
        http1::Builder::new()
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
            .with_upgrades()
            .await
    };
    tokio::select! {
        served = timeout(patience, serve) => match served {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a client left during its handshake"),
            Err(_) => tracing::debug!("a handshake was not finished in time"),
        },
        () = place.evicted.cancelled() => {
            tracing::debug!("too many handshakes at once, the one that took longest is cut off");
        }
    }
}

impl Handshakes {
    fn all(&self) -> MutexGuard<'_, BTreeMap<u64, Handshake>> {
        // Every change is one statement: whole, whoever panicked while holding the lock.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until fewer than `most` are under way, for a moment at most.
    async fn make_room(&self, most: usize) {
        loop {
            let left = self.left.notified();
            let wait = {
                let mut all = self.all();
                let is_full = all.len() >= most;
                let Some(oldest) = all.first_entry().filter(|_| is_full) else { return };
                let wait = MOMENT.saturating_sub(oldest.get().begun_at.elapsed());
                if wait.is_zero() {
                    oldest.remove().evicted.cancel();
                    return;
                }
                wait
            };
            // Whichever comes first.
            let _ = timeout(wait, left).await;
        }
    }

    fn enter(&self, number: u64, metrics: &Metrics) -> Place {
        let evicted = CancellationToken::new();
        let handshake = Handshake { begun_at: Instant::now(), evicted: evicted.clone() };
        self.all().insert(number, handshake);
        let counted = metrics.connections.one(Stage::Handshake);
        Place { handshakes: self.clone(), number, evicted, _counted: counted }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.handshakes.all().remove(&self.number);
        self.handshakes.left.notify_one();
    }
}
