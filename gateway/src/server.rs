//! Takes connections until their handshakes are done. Who has not finished in time is cut off. While too many have not,
//! the others wait in the system's queue, and the one whose client is waited for longest gives way once it has had its
//! moment: a client that means it is through by then, in a crowd too, and never finds the door shut.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::Router;
use herald_proto::metrics::Part;
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    door::Door,
    metrics::{Metrics, Stage},
    turns::Turns,
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
/// How long a client may be waited for, however many others wait for a place: until it has said something, and once more
/// until it is through.
const MOMENT: Duration = Duration::from_secs(2);

/// Handshakes under way.
#[derive(Clone, Default)]
struct Handshakes {
    all: Arc<Mutex<All>>,
    /// A place is free again.
    left: Arc<Notify>,
}

#[derive(Default)]
struct All {
    /// Those whose clients are waited for, the longest first.
    awaited: BTreeMap<u64, Handshake>,
    /// How many wait for their turn: their clients have done what they could.
    in_turn: usize,
    /// The number of the last one in `awaited`.
    last: u64,
}

struct Handshake {
    /// Since when its client is waited for.
    since: Instant,
    evicted: CancellationToken,
}

/// A place among the handshakes; dropping it gives the place up.
struct Place {
    handshakes: Handshakes,
    /// Its number among those whose clients are waited for; `None` while it waits for its turn.
    number: Option<u64>,
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
                    let place = handshakes.enter(&self.metrics);
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
    mut place: Place,
    door: Arc<Door>,
) {
    // Small frames must not wait for the acknowledgement of those before them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection keeps Nagle's algorithm");
    }
    let evicted = place.evicted.clone();
    let serve = async {
        // A client that says nothing needs no turn. A new connection can count as readable before anything was sent, so
        // it is looked at. A client that is gone is found out below.
        let _ = stream.peek(&mut [0]).await;
        place.turn(&door.handshakes).await;
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
        () = evicted.cancelled() => {
            tracing::debug!("too many handshakes at once, the client waited for longest is cut off");
        }
    }
}

impl Handshakes {
    fn all(&self) -> MutexGuard<'_, All> {
        // Every change is whole, whoever panicked while holding the lock.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until fewer than `most` are under way, for a moment at most once a client keeps it waiting.
    async fn make_room(&self, most: usize) {
        loop {
            let left = self.left.notified();
            let wait = {
                let mut all = self.all();
                if all.awaited.len() + all.in_turn < most {
                    return;
                }
                match all.awaited.first_entry() {
                    Some(longest) if longest.get().since.elapsed() >= MOMENT => {
                        longest.remove().evicted.cancel();
                        return;
                    }
                    Some(longest) => MOMENT.saturating_sub(longest.get().since.elapsed()),
                    None => MOMENT,
                }
            };
            // Whichever comes first.
            let _ = timeout(wait, left).await;
        }
    }

    fn enter(&self, metrics: &Metrics) -> Place {
        let evicted = CancellationToken::new();
        let number = Some(self.all().wait_for_client(evicted.clone()));
        let counted = metrics.connections.one(Stage::Handshake);
        Place { handshakes: self.clone(), number, evicted, _counted: counted }
    }
}

impl All {
    /// From now on a client is waited for; returns its number.
    fn wait_for_client(&mut self, evicted: CancellationToken) -> u64 {
        self.last += 1;
        self.awaited.insert(self.last, Handshake { since: Instant::now(), evicted });
        self.last
    }
}

impl Place {
    /// Waits for a turn: that it takes long is no fault of the client's.
    async fn turn(&mut self, turns: &Turns) {
        if let Some(number) = self.number.take() {
            let mut all = self.handshakes.all();
            all.awaited.remove(&number);
            all.in_turn += 1;
        }
        turns.next().await;
        let mut all = self.handshakes.all();
        all.in_turn -= 1;
        self.number = Some(all.wait_for_client(self.evicted.clone()));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.handshakes.all();
        match self.number {
            Some(number) => drop(all.awaited.remove(&number)),
            None => all.in_turn -= 1,
        }
        drop(all);
        self.handshakes.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(handshakes: &Handshakes) -> Place {
        handshakes.enter(&Metrics::default())
    }

    async fn room_is_made_after(handshakes: &Handshakes, most: usize) -> Duration {
        let asked_at = Instant::now();
        handshakes.make_room(most).await;
        asked_at.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_its_turn_is_not_cut_off() {
        let (handshakes, no_turn) = (Handshakes::default(), Turns::new(0));
        let mut waiting = place(&handshakes);
        tokio::select! {
            () = waiting.turn(&no_turn) => unreachable!("there is none"),
            made = timeout(MOMENT * 5, handshakes.make_room(1)) => assert!(made.is_err()),
        }
        assert!(!waiting.evicted.is_cancelled());
        drop(waiting);
        assert_eq!(room_is_made_after(&handshakes, 1).await, Duration::ZERO, "it is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_something_and_then_no_more_gives_way_a_moment_after_its_turn() {
        let handshakes = Handshakes::default();
        let (mut stalls, silent) = (place(&handshakes), place(&handshakes));
        sleep(MOMENT * 2).await;
        stalls.turn(&Turns::new(1)).await;
        assert_eq!(room_is_made_after(&handshakes, 2).await, Duration::ZERO);
        assert!(
            silent.evicted.is_cancelled() && !stalls.evicted.is_cancelled(),
            "silent for longer"
        );
        assert_eq!(room_is_made_after(&handshakes, 1).await, MOMENT);
        assert!(stalls.evicted.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_gives_way_after_a_moment() {
        let handshakes = Handshakes::default();
        let silent = place(&handshakes);
        assert_eq!(room_is_made_after(&handshakes, 1).await, MOMENT);
        assert!(silent.evicted.is_cancelled());
    }
}
