//! One device: connects, writes, acks, and connects again, until the fleet stops.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use fastrand::Rng;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::{
    Habits, Plan,
    outbox::Outbox,
    reading::{self, Read},
    shared::Shared,
};
use crate::{
    history::{Answer, Event, Key, Request, User, What},
    load::{
        connection::{Connection, Ended},
        wire,
    },
};

/// The pause before a connection is tried again: doubled each time up to the longest, and short again after a session
/// in which something was answered.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// How long a request may stay without any answer: a gateway that lives gives one before.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a frame may take to be written.
const WRITE: Duration = Duration::from_secs(10);
/// How often it is looked whether there is something to write, when it can't be said when there will be.
const LOOK: Duration = Duration::from_millis(20);
/// Requests that a device has open at the same time.
const OPEN: usize = 12;
/// The chance that an event's ack is followed by those that were held back.
const RELEASE: f64 = 0.2;
/// Messages that a device remembers to take back, or to send again.
const REMEMBERED: usize = 8;

/// A client of one user.
pub struct Device {
    number: usize,
    user: User,
    peers: Vec<User>,
    habits: Habits,
    rng: Rng,
    shared: Arc<Shared>,
    outbox: Outbox,
    /// The last event it has.
    last: u64,
    /// Its own latest messages: to whom, under which key, with which id.
    own: VecDeque<(User, Key, u32)>,
    pace: Duration,
    next_message: Instant,
    /// Whether it was ever answered, and in this session.
    is_ready: bool,
    is_served: bool,
    /// Events whose acks are held back.
    held: Vec<u64>,
    /// Frames to be written.
    out: Vec<String>,
}

impl Device {
    /// The device with that number, which writes a message each `pace`.
    pub fn new(
        number: usize,
        user: User,
        plan: &Plan,
        pace: Duration,
        mut rng: Rng,
        shared: Arc<Shared>,
    ) -> Self {
        let neighbours = [1, 2, plan.users.saturating_sub(1), plan.users.saturating_sub(2)];
        let mut peers: Vec<User> =
            neighbours.iter().map(|by| User((user.0 + by) % plan.users.max(1))).collect();
        peers.sort_unstable();
        peers.dedup();
        peers.retain(|peer| *peer != user);
        let next_message = Instant::now() + pace.mul_f64(rng.f64());
        Self {
            number,
            user,
            peers,
            habits: plan.habits,
            rng,
            shared,
            outbox: Outbox::default(),
            last: 0,
            own: VecDeque::new(),
            pace,
            next_message,
            is_ready: false,
            is_served: false,
            held: Vec::new(),
            out: Vec::new(),
        }
    }

    /// Lives until the fleet stops.
    pub async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        let stop = self.shared.stop.clone();
        let mut gateway = self.number;
        while !stop.is_cancelled() {
            self.is_served = false;
            let hint = match self.session(gateway).await {
                Ok(()) => return,
                Err(ended) => {
                    tracing::debug!(device = self.number, why = %ended.why, "a session ended");
                    ended.retry_after
                }
            };
            if self.is_served {
                pause = FIRST_PAUSE;
            }
            let hint = Duration::from_millis(hint.unwrap_or(0));
            let jittered = hint + pause.mul_f64(0.5 + self.rng.f64() / 2.0);
            pause = (pause * 2).min(LONGEST_PAUSE);
            gateway += 1;
            tokio::select! {
                () = sleep(jittered) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// One session; `Ok` when the fleet stops.
    async fn session(&mut self, gateway: usize) -> Result<(), Ended> {
        let gateways = &self.shared.gateways;
        let url = gateways.get(gateway % gateways.len().max(1)).map_or("", String::as_str);
        let device = format!("d{}", self.number);
        let connection = Connection::connect(url, &self.user.name(), &device).await;
        let mut connection = connection.map_err(|error| Ended::new(format!("{error:#}")))?;
        self.shared.note(self.number, What::Opened);
        let result = self.serve(&mut connection).await;
        self.outbox.lost(Instant::now());
        self.out.clear();
        // They were never acked, and come again.
        self.held.clear();
        self.shared.note(self.number, What::Ended);
        if result.is_ok() {
            connection.close().await;
        }
        result
    }

    async fn serve(&mut self, connection: &mut Connection) -> Result<(), Ended> {
        // Its answer shows that the session is under way.
        self.out.push(wire::ack(0));
        let mut batch = Vec::new();
        let stop = self.shared.stop.clone();
        loop {
            let now = Instant::now();
            self.write_if_due(now);
            if !self.shared.is_writing() {
                self.ack_held();
            }
            self.send_due(now);
            let sent = timeout(WRITE, connection.send(&mut self.out)).await;
            sent.unwrap_or_else(|_| Err(Ended::new("nobody takes a frame")))?;
            if self.outbox.oldest_asked().is_some_and(|asked| now >= asked + PATIENCE) {
                return Err(Ended::new("a request was not answered at all"));
            }
            let wake = [
                self.outbox.next_due(),
                self.outbox.oldest_asked().map(|asked| asked + PATIENCE),
                // Looked at even when nothing is written: that may begin at any time.
                Some(self.next_message.max(now + LOOK)),
            ];
            let wake = wake.into_iter().flatten().min().unwrap_or(now);
            tokio::select! {
                received = connection.receive(&mut batch) => {
                    for text in batch.drain(..) {
                        self.take(&text)?;
                    }
                    received?;
                }
                () = sleep_until(wake) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Makes the messages that are due. Those that fell due while the outbox was full are made up for later, as far as a
    /// device would keep them.
    fn write_if_due(&mut self, now: Instant) {
        if !self.shared.is_writing() {
            self.next_message = now + self.pace.mul_f64(self.rng.f64());
            return;
        }
        self.next_message = self.next_message.max(now - 100 * self.pace);
        while self.next_message <= now && self.outbox.len() < OPEN {
            self.next_message += self.pace;
            if let Some(peer) = self.rng.choice(&self.peers).copied() {
                let key = Key(self.shared.number());
                self.ask(Request::New { peer, key }, now);
            }
        }
    }

    fn ask(&mut self, request: Request, now: Instant) {
        self.shared.asked();
        self.outbox.add(self.shared.number(), request, now);
    }

    fn send_due(&mut self, now: Instant) {
        for (number, request) in self.outbox.take_due(now) {
            self.shared.note(self.number, What::Sent { number, request });
            self.out.push(reading::write(number, request));
        }
    }

    fn take(&mut self, text: &Utf8Bytes) -> Result<(), Ended> {
        match reading::read(text) {
            Some(Read::Answer(number, answer, retry_after)) => {
                self.answered(number, answer, retry_after);
            }
            Some(Read::Event(id, prev, event)) => self.event(id, prev, event)?,
            Some(Read::Resync) => self.shared.note(self.number, What::Resync),
            Some(Read::Acked(_)) => {
                self.is_served = true;
                if !std::mem::replace(&mut self.is_ready, true) {
                    self.shared.is_ready();
                }
            }
            Some(Read::Passing) => {}
            None => tracing::error!(%text, "a frame can't be explained"),
        }
        Ok(())
    }

    fn answered(&mut self, number: u32, answer: Answer, retry_after: Option<u64>) {
        let now = Instant::now();
        self.shared.note(self.number, What::Answered { number, answer });
        let pause = Duration::from_millis(retry_after.unwrap_or(0)).mul_f64(1.0 + self.rng.f64());
        let Some(request) = self.outbox.answered(number, answer, pause, now) else { return };
        if answer.is_transient() {
            return;
        }
        let stored = match (request, answer) {
            (Request::New { peer, key }, Answer::Stored { message, .. }) => {
                Some((peer, key, message))
            }
            _ => None,
        };
        self.shared.answered(stored.is_some());
        if let Some(stored) = stored {
            self.own.push_back(stored);
            if self.own.len() > REMEMBERED {
                self.own.pop_front();
            }
            self.look_back(now);
        }
    }

    /// Takes a message back now and then, or sends one again that was answered.
    fn look_back(&mut self, now: Instant) {
        if !self.shared.is_writing() || self.own.is_empty() {
            return;
        }
        let Some((peer, key, message)) = self.own.get(self.rng.usize(..self.own.len())).copied()
        else {
            return;
        };
        if self.chance(self.habits.delete) {
            self.ask(Request::Delete { peer, message }, now);
        }
        if self.chance(self.habits.repeat) {
            self.ask(Request::New { peer, key }, now);
        }
    }

    fn chance(&mut self, of: f64) -> bool {
        self.rng.f64() < of
    }

    fn event(&mut self, id: u64, prev: u64, event: Event) -> Result<(), Ended> {
        self.shared.note(self.number, What::Got { id, prev, event });
        if self.shared.is_writing() && self.chance(self.habits.vanish) {
            return Err(Ended::new("vanished"));
        }
        let is_new = id > self.last;
        self.last = self.last.max(id);
        if let (true, true, Event::New { peer, message, .. }) =
            (is_new, self.shared.is_writing(), event)
        {
            self.mark(peer, message);
        }
        if self.chance(self.habits.hold) {
            self.held.push(id);
        } else {
            self.ack(id);
            // Some events later, so that acks come in another order than events.
            if self.chance(RELEASE) {
                self.ack_held();
            }
        }
        Ok(())
    }

    fn ack_held(&mut self) {
        for id in std::mem::take(&mut self.held) {
            self.ack(id);
        }
    }

    fn ack(&mut self, id: u64) {
        self.shared.note(self.number, What::Acked(id));
        self.out.push(wire::ack(id));
    }

    /// Reports a message, or reads it, or neither.
    fn mark(&mut self, peer: User, message: u32) {
        let now = Instant::now();
        let up_to = if self.chance(self.habits.mark_all) { None } else { Some(message) };
        if self.chance(self.habits.report) {
            self.ask(Request::Dlvrd { peer, up_to }, now);
        }
        if self.chance(self.habits.read) {
            self.ask(Request::Read { peer, up_to }, now);
        }
    }
}
