//! Appends messages to streams, in order and without gaps, by JetStream's fast-ingest batches (ADR-50): the server takes
//! a batch's messages one after the other, stops at the first that is missing, and confirms all of them at once.
//!
//! Publishing message by message, each with its own confirmation, costs more on both sides, and keeps no order: when
//! a connection breaks in the middle, the messages before it can be lost while those after it arrive.

use std::{
    collections::HashMap,
    fmt::Write,
    time::{Duration, Instant},
};

use async_nats::{Client, HeaderMap, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use serde::Deserialize;

use crate::error::Error;

/// A message to be appended.
pub(super) struct Message {
    pub(super) subject: String,
    pub(super) headers: HeaderMap,
    pub(super) payload: Bytes,
}

/// Appends for one worker: what was sent last is confirmed before more is sent.
pub(super) struct Appender {
    client: Client,
    /// What its batches are called, with a number. The server knows a batch by its name alone, whoever sends it: it must
    /// be no other worker's.
    name: String,
    inbox: String,
    answers: Subscriber,
    batches: u64,
}

/// Batches that are on their way.
pub(super) struct Pending {
    /// The number of the first of them.
    first: u64,
    /// How many messages each has.
    sizes: Vec<u64>,
    /// The sequence of the last message of each that is confirmed.
    ends: HashMap<u64, u64>,
    sent_at: Instant,
}

/// What the server says about a batch.
#[derive(Deserialize)]
struct Answer {
    /// `ack`, `gap` or `err` on the way; missing at the end.
    #[serde(rename = "type")]
    kind: Option<String>,
    error: Option<serde_json::Value>,
    seq: u64,
    /// How many messages were taken; missing for a batch of one.
    count: Option<u64>,
}

/// How long the server may be silent.
const PATIENCE: Duration = Duration::from_secs(3);
const WHAT: &str = "append events";
/// The length of what comes last in a message's reply subject, in bytes, at most.
const END: usize = "65535.2.$FI".len();

impl Appender {
    pub(super) async fn new(client: Client) -> Result<Self, Error> {
        let inbox = client.new_inbox();
        let answers = client.subscribe(format!("{inbox}.>")).await.map_err(Error::broker(WHAT))?;
        let name = format!("{:016x}", fastrand::u64(..));
        Ok(Self { client, name, inbox, answers, batches: 0 })
    }

    /// Sends one batch to each of some streams; no batch is empty.
    ///
    /// # Errors
    /// If the connection is closed.
    pub(super) async fn send(&mut self, batches: Vec<Vec<Message>>) -> Result<Pending, Error> {
        // An answer to a batch that was given up must not be taken for one of these.
        let first = self.batches;
        self.batches += batches.len() as u64;
        let sizes = batches.iter().map(|batch| batch.len() as u64).collect();
        for (id, batch) in (first..).zip(batches) {
            self.send_batch(id, batch).await?;
        }
        Ok(Pending { first, sizes, ends: HashMap::new(), sent_at: Instant::now() })
    }

    /// Waits until all of it is confirmed, and returns the sequence of each batch's last message. Can be given up and
    /// called again.
    ///
    /// # Errors
    /// If a batch was not taken as a whole, or may not have been: then all of it must be appended again. Copies of
    /// what was taken are dropped by their message ids.
    pub(super) async fn confirm(&mut self, pending: &mut Pending) -> Result<Vec<u64>, Error> {
        let Pending { first, ref sizes, ref mut ends, sent_at } = *pending;
        while ends.len() < sizes.len() {
            let left = PATIENCE.saturating_sub(sent_at.elapsed());
            let answer = tokio::time::timeout(left, self.answers.next()).await;
            let answer = answer
                .map_err(|_| Error::broker(WHAT)("JetStream does not answer"))?
                .ok_or_else(|| Error::broker(WHAT)("the inbox is closed"))?;
            let Some(id) = self.batch_of(&answer.subject).filter(|id| *id >= first) else {
                continue;
            };
            let Some(size) = usize::try_from(id - first).ok().and_then(|n| sizes.get(n)) else {
                continue;
            };
            if let Some(last) = end(&answer, *size)? {
                ends.insert(id, last);
            }
        }
        Ok((first..).zip(sizes).filter_map(|(id, _)| ends.get(&id).copied()).collect())
    }

    /// Sends a batch. The server is asked to confirm only its end: `flow` is how many messages it may take without
    /// a word, and no batch is larger.
    async fn send_batch(&self, id: u64, batch: Vec<Message>) -> Result<(), Error> {
        let last = batch.len();
        let Self { name, inbox, .. } = self;
        let start = format!("{inbox}.{name}-{id}.{}.fail.", u16::MAX);
        for (n, message) in (1..).zip(batch) {
            let operation = match n {
                n if n == last => 2, // commit
                1 => 0,              // start
                _ => 1,              // append
            };
            let mut reply = String::with_capacity(start.len() + END);
            // A string takes all that is written to it.
            let _ = write!(reply, "{start}{n}.{operation}.$FI");
            let Message { subject, headers, payload } = message;
            self.client.publish_with_reply_and_headers(subject, reply, headers, payload).await?;
        }
        Ok(())
    }

    fn batch_of(&self, reply: &str) -> Option<u64> {
        let batch = reply.strip_prefix(&self.inbox)?.strip_prefix('.')?.split('.').next()?;
        batch.strip_prefix(&self.name)?.strip_prefix('-')?.parse().ok()
    }
}

/// The sequence of a batch's last message, if this is its end.
fn end(answer: &async_nats::Message, size: u64) -> Result<Option<u64>, Error> {
    if answer.status.is_some() {
        return Err(Error::broker(WHAT)("no stream takes the events"));
    }
    let text = &answer.payload;
    let answer: Answer =
        serde_json::from_slice(text).map_err(|error| Error::Unreadable("an answer", error))?;
    let is_refused = answer.error.is_some();
    let is_whole = answer.count.is_none_or(|count| count == size);
    match answer.kind.as_deref() {
        Some("ack") => Ok(None),
        None if !is_refused && is_whole => Ok(Some(answer.seq)),
        _ => Err(Error::broker(WHAT)(String::from_utf8_lossy(text).into_owned())),
    }
}
