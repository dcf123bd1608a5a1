//! Two users who go on whatever happens: one writes, and repeats what was not answered; the other takes and acks. Both come
//! back when their session ends. What was lost, doubled or out of order is an error; the rest is told at the end.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_util::sync::CancellationToken;

use crate::load::{
    connection::{Connection, Ended},
    wire::{self, Answered, EventType, Frame, Id},
};

/// How long a request may stay without any answer while its session lives.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a user tries to get its message stored, to get in again, or to get what is missing.
const PATIENCE: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(50);

/// Where users find gateways; changes while they do. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Gateways(Arc<Mutex<Vec<String>>>);

impl Gateways {
    /// These, by their WebSocket URLs.
    pub fn new(urls: impl IntoIterator<Item = String>) -> Self {
        let gateways = Self::default();
        gateways.set(urls);
        gateways
    }

    /// From now on these.
    pub fn set(&self, urls: impl IntoIterator<Item = String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = urls.into_iter().collect();
    }

    fn any(&self) -> Result<String> {
        let urls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        fastrand::choice(urls.iter()).cloned().context("there is no gateway")
    }

    /// Connects a user to any of them, trying for a while, and waits until the session has begun.
    ///
    /// # Errors
    /// If it is not let in.
    pub async fn login(&self, user: &str) -> Result<Connection> {
        self.enter(user, false).await
    }

    /// Connects a user again whose session has ended, after the time that it was told to wait. What was not acked comes
    /// at once.
    ///
    /// # Errors
    /// As [`Self::login`].
    pub async fn login_again(&self, user: &str, ended: &Ended) -> Result<Connection> {
        sleep(ended.retry_after.map_or(PAUSE, Duration::from_millis)).await;
        self.enter(user, true).await
    }

    async fn enter(&self, user: &str, is_known: bool) -> Result<Connection> {
        let begin = Instant::now();
        loop {
            let url = self.any()?;
            let connected = if is_known {
                Connection::connect(&url, user, "default").await
            } else {
                Connection::login(&url, user).await
            };
            match connected {
                Ok(connection) => return Ok(connection),
                Err(error) if begin.elapsed() > PATIENCE => return Err(error),
                Err(_) => sleep(PAUSE).await,
            }
        }
    }
}

/// A message that was stored.
#[derive(Debug, Clone, Copy)]
pub struct Stored {
    /// When it was first sent.
    pub sent_at: Instant,
    /// When its response came.
    pub answered_at: Instant,
    /// How often it had to be sent again.
    pub repeats: u32,
}

/// What two users have seen.
#[derive(Debug, Default)]
pub struct Report {
    /// The messages, in order: each was stored once and taken once.
    pub stored: Vec<Stored>,
    /// Events that came again: allowed, unless counted below too.
    pub again: usize,
    /// Events that came again though their ack had been answered.
    pub again_though_acked: usize,
    /// How sessions ended.
    pub ends: Vec<String>,
}

/// Two users under way.
#[derive(Debug)]
pub struct Pair {
    stop: CancellationToken,
    total: watch::Sender<Option<usize>>,
    sender: JoinHandle<Result<Report>>,
    recipient: JoinHandle<Result<Report>>,
}

impl Pair {
    /// Lets `<name>-a` write to `<name>-b`, with a pause after each message. Returns when both are connected.
    ///
    /// # Errors
    /// If they are not let in.
    pub async fn start(gateways: &Gateways, name: &str, pause: Duration) -> Result<Self> {
        let (sender, recipient) = (format!("{name}-a"), format!("{name}-b"));
        let taking = gateways.login(&recipient).await?;
        let writing = gateways.login(&sender).await?;
        let stop = CancellationToken::new();
        let (total, expected) = watch::channel(None);
        let taking = take(gateways.clone(), recipient.clone(), taking, expected);
        let writing = write(gateways.clone(), (sender, recipient), writing, pause, stop.clone());
        Ok(Self { stop, total, sender: tokio::spawn(writing), recipient: tokio::spawn(taking) })
    }

    /// Ends the writing, and waits until everything has been taken.
    ///
    /// # Errors
    /// If anything was lost, doubled or out of order, or a request was not answered.
    pub async fn finish(self) -> Result<Report> {
        self.stop.cancel();
        let sent = self.sender.await?.context("the sender")?;
        self.total.send_replace(Some(sent.stored.len()));
        let taken = self.recipient.await?.context("the recipient")?;
        let ends = [sent.ends, taken.ends].concat();
        Ok(Report { stored: sent.stored, ends, ..taken })
    }
}

enum Outcome {
    Stored(u64),
    Refused(Duration),
}

async fn write(
    gateways: Gateways,
    (user, peer): (String, String),
    mut connection: Connection,
    pause: Duration,
    stop: CancellationToken,
) -> Result<Report> {
    let mut report = Report::default();
    while !stop.is_cancelled() {
        let key = u64::try_from(report.stored.len())?;
        let (sent_at, mut repeats) = (Instant::now(), 0);
        loop {
            let asked = timeout(ANSWER, ask(&mut connection, key, &peer)).await;
            match asked.context("a request was not answered at all")? {
                Ok(outcome) => match outcome? {
                    Outcome::Stored(message_id) => {
                        ensure!(message_id == key + 1, "message {key} is stored as {message_id}");
                        break;
                    }
                    Outcome::Refused(retry_after) => sleep(retry_after).await,
                },
                Err(ended) => {
                    connection = gateways.login_again(&user, &ended).await?;
                    report.ends.push(ended.why);
                }
            }
            repeats += 1;
            ensure!(sent_at.elapsed() < PATIENCE, "message {key} can't be stored");
        }
        report.stored.push(Stored { sent_at, answered_at: Instant::now(), repeats });
        tokio::select! {
            () = sleep(pause) => {}
            () = stop.cancelled() => {}
        }
    }
    connection.close().await;
    Ok(report)
}

async fn ask(connection: &mut Connection, key: u64, peer: &str) -> Result<Result<Outcome>, Ended> {
    connection.send(&mut vec![wire::new(key, peer, "hi")]).await?;
    let mut batch = Vec::new();
    loop {
        connection.receive(&mut batch).await?;
        for text in batch.drain(..) {
            match outcome(&text, key) {
                Ok(Some(outcome)) => return Ok(Ok(outcome)),
                Ok(None) => {}
                Err(error) => return Ok(Err(error.context(text))),
            }
        }
    }
}

fn outcome(text: &str, key: u64) -> Result<Option<Outcome>> {
    let frame: Frame<'_> = serde_json::from_str(text)?;
    if frame.id.answers() != Some(Answered::New(key)) {
        return Ok(None);
    }
    let Some(error) = frame.error else {
        return Ok(Some(Outcome::Stored(frame.payload.message_id.context("no messageId")?)));
    };
    ensure!(["unavailable", "rate_limited"].contains(&error.code), "refused for good");
    let retry_after = error.retry_after.context("no retryAfter")?;
    Ok(Some(Outcome::Refused(Duration::from_millis(retry_after))))
}

async fn take(
    gateways: Gateways,
    user: String,
    mut connection: Connection,
    mut total: watch::Receiver<Option<usize>>,
) -> Result<Report> {
    let mut taken = Taken::default();
    let (mut batch, mut out) = (Vec::new(), Vec::new());
    let mut is_asked = false;
    loop {
        let ended = tokio::select! {
            received = connection.receive(&mut batch) => received.err(),
            changed = total.changed() => { changed?; None }
            () = sleep(PATIENCE), if total.borrow().is_some() => {
                bail!("{} of {:?} messages came", taken.count, *total.borrow());
            }
        };
        let is_answered = taken.frames(&mut batch, &mut out)?;
        // Whoever has everything asks once more, and nothing may come before the answer.
        if total.borrow().is_some_and(|total| taken.count >= total) {
            if is_asked && is_answered {
                connection.close().await;
                return Ok(taken.report);
            }
            if !std::mem::replace(&mut is_asked, true) {
                out.push(wire::ack(0));
            }
        }
        let ended = match ended {
            None => connection.send(&mut out).await.err(),
            ended => ended,
        };
        if let Some(ended) = ended {
            connection = gateways.login_again(&user, &ended).await?;
            taken.report.ends.push(ended.why);
            (is_asked, out) = (false, Vec::new());
        }
    }
}

/// What a recipient has taken.
#[derive(Default)]
struct Taken {
    count: usize,
    last: u64,
    /// Events whose acks were answered.
    acked: HashSet<u64>,
    report: Report,
}

impl Taken {
    /// Takes frames and leaves acks; returns whether the ack of nothing was answered.
    fn frames(&mut self, batch: &mut Vec<Utf8Bytes>, acks: &mut Vec<String>) -> Result<bool> {
        let mut is_answered = false;
        for text in batch.drain(..) {
            let frame: Frame<'_> = serde_json::from_str(&text).context(text.to_string())?;
            match (frame.id, frame.id.answers()) {
                (_, Some(Answered::Ack(0))) => is_answered = true,
                (_, Some(Answered::Ack(id))) => {
                    if frame.error.is_none() {
                        self.acked.insert(id);
                    }
                }
                (Id::Number(id), _) => {
                    self.event(id, &frame).context(text.to_string())?;
                    acks.push(wire::ack(id));
                }
                _ => ensure!(frame.event_type != EventType::Resync, "a resync: {text}"),
            }
        }
        Ok(is_answered)
    }

    fn event(&mut self, id: u64, frame: &Frame<'_>) -> Result<()> {
        if id <= self.last {
            self.report.again += 1;
            self.report.again_though_acked += usize::from(self.acked.contains(&id));
            return Ok(());
        }
        ensure!(self.last == 0 || frame.prev == Some(self.last), "not after event {}", self.last);
        let count = u64::try_from(self.count)?;
        ensure!(frame.event_type == EventType::New, "not a message");
        ensure!(frame.payload.key() == Some(count), "not message {count}");
        ensure!(frame.payload.message_id == Some(count + 1), "not the next message");
        ensure!(frame.payload.missed == Some(count + 1), "not the number of unread messages");
        (self.last, self.count) = (id, self.count + 1);
        Ok(())
    }
}
