//! A lean connection to NATS, for what comes in masses: requests, replies, live events, and what is read from logs.
//!
//! `async-nats` gives each subscription a channel, which takes 6 KB of memory before anything is in it, and a task to
//! empty it another 800 bytes: as much as all the rest of an idle session. And it takes a message's headers apart into
//! a map, which costs several times what is done with them here. A link has one task, which reads the connection and
//! hands each message on as it lies there.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io::{self, Write},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Buf, BytesMut};
use herald_proto::{broker, metrics::nats::Traffic};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Notify, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::error::Error;

pub mod dial;
pub mod protocol;

use dial::{Dialer, Opened, Stream};
use protocol::{Message, Op, parse};

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
    connects: AtomicU64,
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
/// How much is read at once, in bytes.
const BUFFER: usize = 64 * 1024;

impl Link {
    /// A link without a connection: [`run`](Self::run) makes one. `purpose` is what it is for, as the log names it.
    pub fn new(purpose: &'static str) -> Self {
        Self {
            purpose,
            left: Mutex::new(Left { round: 1, ..Left::default() }),
            arrived: Notify::new(),
            confirmed: watch::Sender::new(0),
            connects: AtomicU64::new(0),
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
        self.connects.load(Ordering::Acquire)
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
        self.command(|commands| subscribe(commands, sid, subject));
    }

    /// Ends a subscription.
    pub fn unsubscribe(&self, sid: u64) {
        let command = format!("UNSUB {sid}\r\n");
        self.command(|commands| commands.extend(command.as_bytes()));
    }

    /// Sends a message that is answered on `reply`; returns whether there is a connection to send it on.
    pub fn request(&self, subject: &str, reply: &str, body: &str) -> bool {
        let command = format!("PUB {subject} {reply} {}\r\n{body}\r\n", body.len());
        let is_left = self.command(|commands| commands.extend(command.as_bytes()));
        self.traffic.sent(usize::from(is_left), 0);
        is_left
    }

    /// Has the connection's task ask its receiver for what is due.
    pub fn wake(&self) {
        self.arrived.notify_one();
    }

    fn command(&self, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut left = self.left();
        let is_open = left.is_open;
        if is_open {
            write(&mut left.commands);
            drop(left);
            self.arrived.notify_one();
        }
        is_open
    }

    /// Waits until there is a connection, and the server has made every subscription that was asked for before.
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
            Err(_) => Err(Error::Silent("confirm subscriptions")),
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
        let traffic = self.traffic.clone();
        let pings = VecDeque::new();
        let mut connection = Connection { stream, read, pings, was_heard: true, traffic };
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
        let first = connection.pings.back().copied();
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
                read = connection.stream.read_buf(&mut connection.read) => {
                    let read = read?;
                    if read == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    connection.was_heard = true;
                    is_flood = read >= BUFFER / 2;
                }
                () = std::future::ready(()), if is_look_due => {}
                () = self.arrived.notified() => {}
                _ = ping.tick() => {
                    if !std::mem::take(&mut connection.was_heard) {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    is_ping_due = true;
                }
            }
            while let Some(round) = connection.receive(receiver).await? {
                if Some(round) == first {
                    self.left().is_confirmed = true;
                    self.connects.fetch_add(1, Ordering::Release);
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
        let mut left = self.left();
        *left = Left { round: left.round, ..Left::default() };
    }

    /// From now on commands are left for the connection.
    fn begin(&self) {
        let mut left = self.left();
        *left = Left { is_open: true, round: left.round, ..Left::default() };
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

/// A connection under way.
struct Connection {
    stream: Box<dyn Stream>,
    read: BytesMut,
    /// The rounds whose pongs are to come.
    pings: VecDeque<u64>,
    /// Whether anything came in since the last ping.
    was_heard: bool,
    traffic: Arc<Traffic>,
}

impl Connection {
    /// Sends commands, and after them a ping if a round is to be confirmed.
    async fn send(&mut self, mut commands: Vec<u8>, round: Option<u64>) -> io::Result<()> {
        if let Some(round) = round {
            commands.extend(b"PING\r\n");
            self.pings.push_back(round);
        }
        if commands.is_empty() {
            return Ok(());
        }
        self.traffic.sent(0, commands.len());
        let sent = async {
            self.stream.write_all(&commands).await?;
            self.stream.flush().await
        };
        timeout(PATIENCE, sent).await?
    }

    /// Hands on what was read, up to a pong: returns the round that it confirms. `None` if all is handed on.
    async fn receive(&mut self, receiver: &impl Receive) -> io::Result<Option<u64>> {
        let (mut done, mut messages, mut is_pinged) = (0, 0, false);
        let confirmed = loop {
            let rest = self.read.get(done..).unwrap_or_default();
            let Some((op, used)) = parse(rest).map_err(io::Error::other)? else { break None };
            done += used;
            match op {
                Op::Message(message) => {
                    messages += 1;
                    receiver.receive(&message);
                }
                Op::Pong => {
                    if let Some(round) = self.pings.pop_front() {
                        break Some(round);
                    }
                }
                Op::Ping => is_pinged = true,
                Op::Refused(why) => tracing::error!(error = why, "NATS refuses something"),
                Op::Info(_) | Op::Ok => {}
            }
        };
        self.traffic.received(messages, done);
        self.read.advance(done);
        self.read.reserve(BUFFER / 2);
        if is_pinged {
            self.send(b"PONG\r\n".to_vec(), None).await?;
        }
        Ok(confirmed)
    }
}

/// Writes the command that subscribes under a number.
pub fn subscribe(commands: &mut Vec<u8>, sid: u64, subject: &str) {
    // Writing to memory can't fail.
    let _ = write!(commands, "SUB {subject} {sid}\r\n");
}

#[cfg(test)]
mod tests {
    use std::{
        pin::{Pin, pin},
        task::{Context, Poll, ready},
    };

    use tokio::{
        io::{AsyncRead, AsyncWrite, ReadBuf},
        task::consume_budget,
    };

    use super::*;

    /// Has a message whenever it is read; lets other tasks have their turn, as tokio's own do.
    struct Endless;

    impl AsyncRead for Endless {
        fn poll_read(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            ready!(pin!(consume_budget()).poll(context));
            buffer.put_slice(b"MSG a 1 2\r\nhi\r\n");
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Endless {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[derive(Default)]
    struct Looks(Notify);

    impl Receive for Looks {
        fn subscribe(&self, _: &mut Vec<u8>) {}
        fn receive(&self, _: &Message<'_>) {}
        fn quiet(&self) {
            self.0.notify_one();
        }
        fn lost(&self) {}
    }

    #[tokio::test]
    async fn a_receiver_has_its_look_however_much_comes_in() {
        let (link, looks) = (Link::new("test"), Looks::default());
        let opened = Opened { stream: Box::new(Endless), read: BytesMut::new(), max_payload: 9 };
        let looked = async {
            for _ in 0..3 {
                looks.0.notified().await;
            }
        };
        tokio::select! {
            error = link.serve(opened, &looks) => panic!("{error}"),
            looked = timeout(Duration::from_secs(30), looked) => looked.expect("it never looks"),
        }
    }
}
