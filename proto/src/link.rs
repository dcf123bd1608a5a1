//! A lean connection to NATS, for what comes in masses: requests, replies, events on their way to logs and from them.
//!
//! `async-nats` gives each subscription a channel, which takes 6 KB of memory before anything is in it, and a task to
//! empty it another 800 bytes: as much as all the rest of an idle session. And it takes a message's headers apart into
//! a map, which costs several times what is done with them here. A link has one task, which reads the connection and
//! hands each message on as it lies there.

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{broker, metrics::nats::Traffic};

pub mod command;
mod connection;
pub mod dial;
pub mod protocol;

use connection::{BUFFER, Connection};
use dial::{Dialer, Opened};
use protocol::Message;

/// Who takes what comes in on a link.
pub trait Receive: Sync {
    /// Writes the subscriptions that a new connection begins with.
    fn subscribe(&self, commands: &mut Vec<u8>);
    /// Writes the messages that are to be sent now, and returns how many: [`Link::wake`] has it asked for.
    fn due(&self, _commands: &mut Vec<u8>) -> usize {
        0
    }
    /// Takes a message. Others wait meanwhile.
    fn receive(&self, message: &Message<'_>);
    /// All that had come in is taken; said now and then.
    fn quiet(&self) {}
    /// The connection is gone, and with it whatever was on its way.
    fn lost(&self);
}

/// Takes commands for the connection.
pub struct Link {
    /// What it is for, as the log names it.
    purpose: &'static str,
    left: Mutex<Left>,
    arrived: Notify,
    /// The last round that the server has confirmed.
    confirmed: watch::Sender<u64>,
    max_payload: AtomicUsize,
    traffic: Arc<Traffic>,
}

/// What is left for the connection's task.
#[derive(Default)]
struct Left {
    /// Whether there is a connection. Without one nothing is left: the next one begins with all subscriptions.
    is_open: bool,
    /// Whether the server has made these.
    is_confirmed: bool,
    /// How often the server has.
    connects: u64,
    /// Commands for the server.
    commands: Vec<u8>,
    /// Whether somebody waits for them to be confirmed.
    is_waited_for: bool,
    /// The round that the next ping confirms.
    round: u64,
}

/// How long the server may take to confirm subscriptions, once there is a connection again, or to take what it is sent.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the server is asked whether it lives.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How often its receiver is told that all is taken.
const LOOK: Duration = Duration::from_millis(500);

/// The server has not confirmed in time what it was told.
#[derive(Debug, thiserror::Error)]
#[error("NATS has not confirmed in time what it was told")]
pub struct Silent;

impl Link {
    /// A link without a connection: [`run`](Self::run) makes one. `purpose` is what it is for, as the log names it.
    pub fn new(purpose: &'static str) -> Self {
        Self {
            purpose,
            left: Mutex::new(Left { round: 1, ..Left::default() }),
            arrived: Notify::new(),
            confirmed: watch::Sender::new(0),
            max_payload: AtomicUsize::new(0),
            traffic: Arc::default(),
        }
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        // Every change is whole, whoever panicked while holding the lock.
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a connection, with all subscriptions that it began with.
    pub fn is_connected(&self) -> bool {
        self.left().is_confirmed
    }

    /// How often all subscriptions were made on a new connection: messages in between were missed.
    pub fn connects(&self) -> u64 {
        self.left().connects
    }

    /// The largest message that the server takes, in bytes.
    pub fn max_payload(&self) -> usize {
        self.max_payload.load(Ordering::Relaxed)
    }

    /// What its connections have carried.
    pub fn traffic(&self) -> Arc<Traffic> {
        self.traffic.clone()
    }

    /// Subscribes under a number of the caller's. Without a connection nothing is done: the next one begins with all
    /// subscriptions.
    pub fn subscribe(&self, sid: u64, subject: &str) {
        self.leave(|left| left.is_open, 0, |commands| command::subscribe(commands, sid, subject));
    }

    /// Ends a subscription.
    pub fn unsubscribe(&self, sid: u64) {
        self.leave(|left| left.is_open, 0, |commands| command::unsubscribe(commands, sid));
    }

    /// Sends so many messages, which `write` writes with [`command`]; returns whether there is a connection to send them
    /// on.
    pub fn send(&self, messages: usize, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        self.leave(|left| left.is_open, messages, write)
    }

    /// The same, but only on the connection that [`connects`](Self::connects) counted as this one, and on no later one.
    pub fn send_on(&self, connect: u64, messages: usize, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        self.leave(|left| left.is_confirmed && left.connects == connect, messages, write)
    }

    /// Has the connection's task ask its receiver for what is due.
    pub fn wake(&self) {
        self.arrived.notify_one();
    }

    fn leave(
        &self,
        is_right: impl FnOnce(&Left) -> bool,
        messages: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        let mut left = self.left();
        if !is_right(&left) {
            return false;
        }
        write(&mut left.commands);
        drop(left);
        self.arrived.notify_one();
        self.traffic.sent(messages, 0);
        true
    }

    /// Waits until there is a connection, and the server has done what it was told on it before: has made every
    /// subscription that was asked for, has taken every message. Messages on a connection that breaks meanwhile are lost.
    ///
    /// # Errors
    /// If it takes long.
    pub async fn confirmed(&self) -> Result<(), Silent> {
        let round = {
            let mut left = self.left();
            left.is_waited_for = true;
            left.round
        };
        self.arrived.notify_one();
        let mut confirmed = self.confirmed.subscribe();
        match timeout(PATIENCE, confirmed.wait_for(|last| *last >= round)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Silent),
        }
    }

    /// Keeps a connection until `stop`, and hands what comes in to `receiver`.
    pub async fn run(&self, mut dialer: Dialer, receiver: &impl Receive, stop: CancellationToken) {
        let mut attempts = 0;
        loop {
            let work = async {
                match dialer.dial().await {
                    Ok(opened) => {
                        attempts = 0;
                        self.serve(opened, receiver).await
                    }
                    Err(error) => error,
                }
            };
            let error = tokio::select! {
                error = work => Some(error),
                () = stop.cancelled() => None,
            };
            self.end();
            receiver.lost();
            let Some(error) = error else { return };
            tracing::warn!(%error, herald.purpose = self.purpose, "no connection to NATS, trying again");
            tokio::select! {
                () = sleep(broker::reconnect_delay(attempts)) => attempts += 1,
                () = stop.cancelled() => return,
            }
        }
    }

    /// Works on one connection until it breaks; returns why.
    async fn serve(&self, opened: Opened, receiver: &impl Receive) -> io::Error {
        let Opened { stream, read, max_payload } = opened;
        self.max_payload.store(max_payload, Ordering::Relaxed);
        let mut connection = Connection::new(stream, read, self.traffic.clone());
        match self.work(&mut connection, receiver).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn work(
        &self,
        connection: &mut Connection,
        receiver: &impl Receive,
    ) -> io::Result<Infallible> {
        self.begin();
        // Listed after it: who comes later leaves a command. The server ignores a subscription that it has already.
        let mut all = Vec::new();
        receiver.subscribe(&mut all);
        let (later, round) = self.take(true);
        all.extend(later);
        connection.send(all, round).await?;
        let first = connection.last_ping();
        let mut ping = interval(PING_INTERVAL);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ping.reset();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_look_due = false;
        loop {
            let (mut is_flood, mut is_ping_due) = (false, false);
            tokio::select! {
                biased;
                _ = look.tick() => {
                    is_look_due = true;
                    // What has come in meanwhile is read first.
                    tokio::task::yield_now().await;
                    continue;
                }
                read = connection.read() => is_flood = read? >= BUFFER / 2,
                () = std::future::ready(()), if is_look_due => {}
                () = self.arrived.notified() => {}
                _ = ping.tick() => {
                    connection.expect_heard()?;
                    is_ping_due = true;
                }
            }
            while let Some(round) = connection.receive(receiver).await? {
                if Some(round) == first {
                    let mut left = self.left();
                    left.is_confirmed = true;
                    left.connects += 1;
                    drop(left);
                    tracing::info!(herald.purpose = self.purpose, "connected to NATS");
                }
                self.confirmed.send_replace(round);
            }
            if is_look_due && !is_flood {
                is_look_due = false;
                receiver.quiet();
            }
            let (mut commands, round) = self.take(is_ping_due);
            self.traffic.sent(receiver.due(&mut commands), 0);
            connection.send(commands, round).await?;
            if is_flood {
                // More is there, most likely: others have their turn before it.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Nothing is left for a connection that is gone.
    fn end(&self) {
        self.renew(false);
    }

    /// From now on commands are left for the connection.
    fn begin(&self) {
        self.renew(true);
    }

    fn renew(&self, is_open: bool) {
        let mut left = self.left();
        let (round, connects) = (left.round, left.connects);
        *left = Left { is_open, round, connects, ..Left::default() };
    }

    /// What was left; and the round that a ping after it confirms, if somebody waits for it or `is_due`.
    fn take(&self, is_due: bool) -> (Vec<u8>, Option<u64>) {
        let mut left = self.left();
        let commands = std::mem::take(&mut left.commands);
        let is_due = std::mem::take(&mut left.is_waited_for) || is_due;
        let round = is_due.then_some(left.round);
        left.round += u64::from(is_due);
        (commands, round)
    }
}

#[cfg(test)]
mod tests;
