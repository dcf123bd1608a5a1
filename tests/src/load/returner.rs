//! A device that comes back and takes what waits for it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::{
    arrivals::{Arrivals, Place},
    connection::{Connection, Ended},
    faults::Faults,
    login::Login,
    wire::{self, EventType, Frame, Id, Kind},
};

/// The longest pause before a device that was cut off comes again.
const PAUSE: Duration = Duration::from_millis(500);

/// What became of it.
#[derive(Debug)]
pub struct Returned {
    /// When its session first said something.
    pub in_at: Option<Instant>,
    /// When it had all, or was given up.
    pub caught_up_at: Instant,
    /// How many different events it got.
    pub events: u64,
    /// How often it was told to come again later.
    pub refused: u64,
    /// How often its connection failed without a hint.
    pub cut_off: u64,
    /// What was wrong.
    pub faults: Faults,
    /// What it has seen in all its life.
    pub arrivals: Arrivals,
}

/// Comes in when its turn comes, as often as it has to, and acks until it has `expected` messages; gives up when nothing has
/// come for `patience`.
pub async fn run(
    login: Login,
    arrivals: Arrivals,
    expected: u64,
    patience: Duration,
    turns: Arc<Semaphore>,
) -> Returned {
    let mut device = Device {
        sent: 0,
        answered: 0,
        returned: Returned {
            in_at: None,
            caught_up_at: Instant::now(),
            events: 0,
            refused: 0,
            cut_off: 0,
            faults: Faults::default(),
            arrivals,
        },
    };
    let mut hope = Instant::now() + patience;
    while device.returned.events < expected && Instant::now() < hope {
        let events = device.returned.events;
        let ended = device.visit(&login, expected, patience, &turns).await;
        if device.returned.events > events {
            hope = Instant::now() + patience;
        }
        let Err(ended) = ended else { break };
        let returned = &mut device.returned;
        let pause = match ended.retry_after {
            Some(millis) => {
                returned.refused += 1;
                Duration::from_millis(millis)
            }
            None => {
                returned.cut_off += 1;
                PAUSE.mul_f64(fastrand::f64())
            }
        };
        // To be told to wait is no reason to give up.
        hope += pause;
        sleep(pause).await;
    }
    device.returned
}

struct Device {
    /// Acks of this session, and their answers.
    sent: u64,
    answered: u64,
    returned: Returned,
}

impl Device {
    /// One session, until it has all. Nothing came for long: neither an error nor all.
    async fn visit(
        &mut self,
        login: &Login,
        expected: u64,
        patience: Duration,
        turns: &Semaphore,
    ) -> Result<(), Ended> {
        // Its turn lasts until the session says something: then the login is done.
        let mut turn = turns.acquire().await.ok();
        let mut connection = match Connection::open(login).await {
            Ok(connection) => connection,
            Err(error) => return Err(Ended::new(format!("{error:#}"))),
        };
        let (mut batch, mut out) = (Vec::new(), Vec::new());
        (self.sent, self.answered) = (0, 0);
        // Acks that wait for their answers show that the last events were taken.
        while self.returned.events < expected || self.answered < self.sent {
            let Ok(received) = timeout(patience, connection.receive(&mut batch)).await else {
                return Ok(());
            };
            if !batch.is_empty() {
                turn.take();
                self.returned.in_at.get_or_insert_with(Instant::now);
            }
            for text in batch.drain(..) {
                match serde_json::from_str::<Frame<'_>>(&text) {
                    Ok(frame) => self.frame(&frame, &mut out),
                    Err(_) => self.returned.faults.odd_frames += 1,
                }
            }
            received?;
            connection.send(&mut out).await?;
        }
        self.returned.caught_up_at = Instant::now();
        connection.close().await;
        Ok(())
    }

    fn frame(&mut self, frame: &Frame<'_>, out: &mut Vec<String>) {
        match (frame.kind, frame.id) {
            (Kind::Event, Id::Number(id)) => {
                self.sent += 1;
                out.push(wire::ack(id));
                let place = Place { id, prev: frame.prev };
                let Returned { arrivals, faults, events, caught_up_at, .. } = &mut self.returned;
                if arrivals.take(place, faults) {
                    *events += 1;
                    *caught_up_at = Instant::now();
                }
            }
            (Kind::Event, _) => {
                let is_resync = frame.event_type == EventType::Resync;
                self.returned.faults.resyncs += u64::from(is_resync);
            }
            (Kind::Response, _) => self.answered += 1,
        }
    }
}
