//! The live taps: what comes for the users that are connected here, on one connection of its own.
//!
//! `async-nats` gives each subscription a channel, which takes 6 KB of memory before anything is in it, and a task to
//! empty it another 800 bytes: as much as all the rest of an idle session. Here one task reads the connection and
//! leaves each message in the inboxes of the sessions it is for.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt::Write,
    io,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Buf, BytesMut};
use herald_proto::broker;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Notify, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{error::Error, registry::Registry};

pub mod dial;
pub mod protocol;

use dial::{Dialer, Opened, Stream};
use protocol::{Op, parse};

/// Takes subscriptions for the connection.
pub struct Tap {
    left: Mutex<Left>,
    arrived: Notify,
    /// The last round that the server has confirmed.
    confirmed: watch::Sender<u64>,
    connects: AtomicU64,
}

/// What is left for the connection's task.
#[derive(Default)]
struct Left {
    /// Whether there is a connection. Without one nothing is left: the next one begins with all subscriptions.
    is_connected: bool,
    /// Commands for the server.
    commands: String,
    /// Whether somebody waits for them to be confirmed.
    is_waited_for: bool,
    /// The round that the next ping confirms.
    round: u64,
}

/// How long the server may take to confirm subscriptions, or to take what it is sent.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the server is asked whether it lives.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How much is read at once, in bytes.
const BUFFER: usize = 64 * 1024;

impl Tap {
    /// Taps without a connection: [`run`](Self::run) makes one.
    #[allow(clippy::new_without_default)] // a default would hide that it has to run
    pub fn new() -> Self {
        Self {
            left: Mutex::new(Left { round: 1, ..Left::default() }),
            arrived: Notify::new(),
            confirmed: watch::Sender::new(0),
            connects: AtomicU64::new(0),
        }
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        // Every change is whole, whoever panicked while holding the lock.
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        self.left().is_connected
    }

    /// How often all subscriptions were made on a new connection: messages in between were missed.
    pub fn connects(&self) -> u64 {
        self.connects.load(Ordering::Acquire)
    }

    /// Subscribes under a number of the caller's.
    pub fn subscribe(&self, sid: u64, subject: &str) {
        self.command(|commands| subscribe(commands, sid, subject));
    }

    /// Ends a subscription.
    pub fn unsubscribe(&self, sid: u64) {
        self.command(|commands| unsubscribe(commands, sid));
    }

    fn command(&self, write: impl FnOnce(&mut String)) {
        let mut left = self.left();
        if left.is_connected {
            write(&mut left.commands);
            drop(left);
            self.arrived.notify_one();
        }
    }

    /// Waits until the server has made every subscription that was asked for before.
    ///
    /// # Errors
    /// If it takes long.
    pub async fn confirmed(&self) -> Result<(), Error> {
        let round = {
            let mut left = self.left();
            left.is_waited_for = true;
            left.round
        };
        self.arrived.notify_one();
        let mut confirmed = self.confirmed.subscribe();
        match timeout(PATIENCE, confirmed.wait_for(|last| *last >= round)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Silent("subscribe to a user's events")),
        }
    }

    /// Keeps a connection until `stop`, and hands what comes in to the registry.
    pub async fn run(&self, mut dialer: Dialer, registry: Registry, stop: CancellationToken) {
        let mut attempts = 0;
        loop {
            let work = async {
                match dialer.dial().await {
                    Ok(opened) => {
                        attempts = 0;
                        self.serve(opened, &registry).await
                    }
                    Err(error) => error,
                }
            };
            let error = tokio::select! {
                error = work => error,
                () = stop.cancelled() => return,
            };
            self.end();
            tracing::warn!(%error, "no connection to NATS for live events, trying again");
            tokio::select! {
                () = sleep(broker::reconnect_delay(attempts)) => attempts += 1,
                () = stop.cancelled() => return,
            }
        }
    }

    /// Works on one connection until it breaks; returns why.
    async fn serve(&self, opened: Opened, registry: &Registry) -> io::Error {
        let Opened { stream, read } = opened;
        let mut connection = Connection { stream, read, pings: VecDeque::new(), was_heard: true };
        match self.work(&mut connection, registry).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn work(
        &self,
        connection: &mut Connection,
        registry: &Registry,
    ) -> io::Result<Infallible> {
        self.begin();
        // Listed after it: who comes later leaves a command. The server ignores a subscription that it has already.
        let mut all = String::new();
        registry.for_each_tap(|sid, subject| subscribe(&mut all, sid, subject));
        let (later, round) = self.take(true);
        connection.send(all + &later, round).await?;
        let first = connection.pings.back().copied();
        let mut ping = interval(PING_INTERVAL);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ping.reset();
        loop {
            tokio::select! {
                read = connection.stream.read_buf(&mut connection.read) => {
                    if read? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    connection.was_heard = true;
                }
                () = self.arrived.notified() => {
                    let (commands, round) = self.take(false);
                    connection.send(commands, round).await?;
                }
                _ = ping.tick() => {
                    if !std::mem::take(&mut connection.was_heard) {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    let (commands, round) = self.take(true);
                    connection.send(commands, round).await?;
                }
            }
            while let Some(round) = connection.receive(registry).await? {
                if Some(round) == first {
                    self.connects.fetch_add(1, Ordering::Release);
                    tracing::info!("listening for live events");
                }
                self.confirmed.send_replace(round);
            }
        }
    }

    /// Nothing is left for a connection that is gone.
    fn end(&self) {
        let mut left = self.left();
        *left = Left { round: left.round, ..Left::default() };
    }

    /// From now on commands are left for the connection.
    fn begin(&self) {
        let mut left = self.left();
        *left = Left { is_connected: true, round: left.round, ..Left::default() };
    }

    /// What was left; and the round that a ping after it confirms, if somebody waits for it or `is_due`.
    fn take(&self, is_due: bool) -> (String, Option<u64>) {
        let mut left = self.left();
        let commands = std::mem::take(&mut left.commands);
        let is_due = std::mem::take(&mut left.is_waited_for) || is_due;
        let round = is_due.then_some(left.round);
        left.round += u64::from(is_due);
        (commands, round)
    }
}

/// A connection under way.
struct Connection {
    stream: Box<dyn Stream>,
    read: BytesMut,
    /// The rounds whose pongs are to come.
    pings: VecDeque<u64>,
    /// Whether anything came in since the last ping.
    was_heard: bool,
}

impl Connection {
    /// Sends commands, and after them a ping if a round is to be confirmed.
    async fn send(&mut self, mut commands: String, round: Option<u64>) -> io::Result<()> {
        if let Some(round) = round {
            commands.push_str("PING\r\n");
            self.pings.push_back(round);
        }
        let sent = async {
            self.stream.write_all(commands.as_bytes()).await?;
            self.stream.flush().await
        };
        timeout(PATIENCE, sent).await?
    }

    /// Hands on what was read, up to a pong: returns the round that it confirms. `None` if all is handed on.
    async fn receive(&mut self, registry: &Registry) -> io::Result<Option<u64>> {
        let (mut done, mut is_pinged) = (0, false);
        let confirmed = loop {
            let rest = self.read.get(done..).unwrap_or_default();
            let Some((op, used)) = parse(rest).map_err(io::Error::other)? else { break None };
            done += used;
            match op {
                Op::Message { sid, headers, payload } => registry.deliver(sid, headers, payload),
                Op::Pong => {
                    if let Some(round) = self.pings.pop_front() {
                        break Some(round);
                    }
                }
                Op::Ping => is_pinged = true,
                Op::Refused(why) => tracing::error!(error = why, "NATS refuses live events"),
                Op::Info(_) | Op::Ok => {}
            }
        };
        self.read.advance(done);
        self.read.reserve(BUFFER / 2);
        if is_pinged {
            self.send("PONG\r\n".to_owned(), None).await?;
        }
        Ok(confirmed)
    }
}

// Writing to a string can't fail.
fn subscribe(commands: &mut String, sid: u64, subject: &str) {
    let _ = write!(commands, "SUB {subject} {sid}\r\n");
}

fn unsubscribe(commands: &mut String, sid: u64) {
    let _ = write!(commands, "UNSUB {sid}\r\n");
}
