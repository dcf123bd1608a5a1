//! Batched direct gets (ADR-31): messages of a stream, read from whichever replica answers. And what a consumer delivers,
//! for a [`Scan`](super::scan::Scan).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use herald_proto::{
    header,
    link::{
        Link, Receive, command,
        dial::Dialer,
        protocol::{self, Message},
    },
    metrics::nats::Traffic,
    subject,
    telemetry::Traceparent,
};
use serde::Serialize;
use tokio::{sync::oneshot, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{MAX_BYTES, bucket::REMOVALS};
use crate::{error::Error, metrics::Origin};

/// What is asked for.
#[derive(Serialize, Default)]
pub(super) struct DirectGet<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_by_subj: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub(super) multi_last: &'a [String],
    /// The most messages; without it there is one, and nothing is counted that comes after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) batch: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_bytes: Option<usize>,
}

/// A message of a stream, as it was read.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) subject: Arc<str>,
    pub(super) sequence: u64,
    pub(super) traceparent: Option<Traceparent>,
    pub(super) origin: Origin,
    pub(super) is_removed: bool,
    pub(super) payload: Bytes,
    /// How many messages that were asked for come after it, whether in the same answer or not.
    pub(super) pending: u64,
}

/// Reads, on a connection of their own.
pub struct Reads {
    link: Link,
    /// What answers come under, each with its number.
    inbox: String,
    asked: Mutex<Asked>,
}

/// What was asked for and is not answered.
#[derive(Default)]
struct Asked {
    last: u64,
    answers: HashMap<u64, Answer>,
    /// By consumer, which of them is for what it delivers: such a message says no number.
    deliveries: HashMap<String, u64>,
}

/// What an answer consists of.
pub(super) enum Form {
    /// A message alone, which no end follows.
    One,
    /// Messages up to an end.
    Batch,
    /// What a consumer delivers from its message `next` on: `most` messages, or fewer up to an end.
    Delivered { consumer: String, next: u64, most: usize },
}

/// Where a message comes from that a consumer delivers, as the subject for its acknowledgement tells.
#[derive(Debug, PartialEq)]
struct Delivery<'a> {
    consumer: &'a str,
    /// Its number in the stream.
    sequence: u64,
    /// Its number among all that the consumer has delivered, from 1 on.
    number: u64,
    /// How many come after it.
    pending: u64,
}

/// An answer on its way.
struct Answer {
    form: Form,
    /// How much a consumer has delivered, as the broker counts it.
    bytes: usize,
    found: Vec<Stored>,
    whole: oneshot::Sender<Whole>,
}

type Whole = Result<Vec<Stored>, Error>;

/// Somebody waits for an answer; dropping it ends the waiting.
struct Asking<'a> {
    reads: &'a Reads,
    number: u64,
}

/// The number of the subscription to answers.
const ANSWERS: u64 = 1;
/// How long an answer may take, all of it.
const PATIENCE: Duration = Duration::from_secs(5);
const WHAT: &str = "read a log";

impl Reads {
    /// Reads without a connection: [`run`](Self::run) makes one.
    #[allow(clippy::new_without_default)] // a default would hide that it has to run
    pub fn new() -> Self {
        let inbox = subject::inbox(subject::GATEWAY_INBOX, fastrand::u64(..));
        Self { link: Link::new("reads"), inbox, asked: Mutex::default() }
    }

    /// Keeps a connection until `stop`.
    pub async fn run(&self, dialer: Dialer, stop: CancellationToken) {
        self.link.run(dialer, self, stop).await;
    }

    /// What its connections have carried.
    pub fn traffic(&self) -> Arc<Traffic> {
        self.link.traffic()
    }

    /// Tells the broker something, if there is a connection.
    pub(super) fn tell(&self, write: impl FnOnce(&mut Vec<u8>)) {
        // Nobody waits for an answer.
        let _is_sent = self.link.send(1, write);
    }

    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        self.link.is_connected()
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        // Every change is whole, whoever panicked while holding the lock.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for messages, and returns them all.
    ///
    /// # Errors
    /// If the broker fails or is silent, or a part of the answer was lost.
    pub(super) async fn get(
        &self,
        stream: &str,
        request: &DirectGet<'_>,
    ) -> Result<Vec<Stored>, Error> {
        let body = serde_json::to_vec(request).map_err(|_| Error::Unreadable("a direct get"))?;
        let form = if request.batch.is_none() { Form::One } else { Form::Batch };
        self.ask(form, &format!("$JS.API.DIRECT.GET.{stream}"), &body).await
    }

    /// Asks for what is answered in such a form.
    pub(super) async fn ask(
        &self,
        form: Form,
        subject: &str,
        body: &[u8],
    ) -> Result<Vec<Stored>, Error> {
        if !self.link.is_connected() {
            // It may come back, or come up, in a moment.
            self.link.confirmed().await?;
        }
        let (whole, answered) = oneshot::channel();
        let number = self.asked().add(Answer { form, bytes: 0, found: Vec::new(), whole });
        let _asking = Asking { reads: self, number };
        let reply = format!("{}.{number}", self.inbox);
        let is_sent = self.link.send(1, |out| command::request(out, subject, &reply, body));
        if !is_sent {
            return Err(Error::broker(WHAT)("there is no connection"));
        }
        match timeout(PATIENCE, answered).await {
            Ok(Ok(found)) => found,
            Ok(Err(_)) => Err(Error::broker(WHAT)("the connection was lost")),
            Err(_) => Err(Error::Silent(WHAT)),
        }
    }
}

impl Asked {
    /// Adds an answer to be waited for; returns its number.
    fn add(&mut self, answer: Answer) -> u64 {
        self.last += 1;
        if let Form::Delivered { consumer, .. } = &answer.form {
            self.deliveries.insert(consumer.clone(), self.last);
        }
        self.answers.insert(self.last, answer);
        self.last
    }

    fn remove(&mut self, number: u64) -> Option<Answer> {
        let answer = self.answers.remove(&number)?;
        if let Form::Delivered { consumer, .. } = &answer.form {
            self.deliveries.remove(consumer);
        }
        Some(answer)
    }
}

impl Receive for Reads {
    fn subscribe(&self, commands: &mut Vec<u8>) {
        command::subscribe(commands, ANSWERS, &format!("{}.*", self.inbox));
    }

    fn receive(&self, message: &Message<'_>) {
        let mut asked = self.asked();
        let delivery = Delivery::parse(message.reply);
        let number = match &delivery {
            Some(delivery) => asked.deliveries.get(delivery.consumer).copied(),
            None => message.subject.rsplit_once('.').and_then(|(_, number)| number.parse().ok()),
        };
        // One that nobody waits for any more is left.
        let Some(number) = number else { return };
        let Some(answer) = asked.answers.get_mut(&number) else { return };
        let taken = match &delivery {
            Some(delivery) => answer.deliver(message, delivery),
            None => answer.take(message),
        };
        let whole = match taken {
            Ok(false) => return,
            Ok(true) => Ok(std::mem::take(&mut answer.found)),
            Err(error) => Err(error),
        };
        if let Some(answer) = asked.remove(number) {
            // Nobody may wait for it any more.
            let _ = answer.whole.send(whole);
        }
    }

    fn lost(&self) {
        let mut asked = self.asked();
        asked.answers.clear();
        asked.deliveries.clear();
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.reads.asked().remove(self.number);
    }
}

impl Stored {
    /// What a message brings that was stored under `subject`.
    fn new(message: &Message<'_>, subject: &str, sequence: u64, pending: u64) -> Self {
        let (mut message_id, mut traceparent, mut is_removed) = (None, None, false);
        for (name, value) in protocol::fields(message.headers) {
            match name {
                header::MESSAGE_ID => message_id = Some(value),
                header::TRACEPARENT => traceparent = value.parse().ok(),
                _ => is_removed |= REMOVALS.contains(&name),
            }
        }
        Self {
            subject: subject.into(),
            sequence,
            traceparent,
            origin: Origin::of(message_id, traceparent),
            is_removed,
            // Copied: the connection's buffer must not be kept for as long as what is read.
            payload: Bytes::copy_from_slice(message.payload),
            pending,
        }
    }
}

impl Answer {
    /// Takes a part of it; returns whether that is its end.
    fn take(&mut self, message: &Message<'_>) -> Result<bool, Error> {
        let headers = message.headers;
        let (mut subject, mut sequence, mut pending, mut before) = (None, None, 0, None);
        for (name, value) in protocol::fields(headers) {
            match name {
                "Nats-Subject" => subject = Some(value),
                "Nats-Sequence" => sequence = value.parse().ok(),
                "Nats-Num-Pending" => pending = value.parse().unwrap_or(0),
                "Nats-Last-Sequence" => before = value.parse().ok(),
                _ => {}
            }
        }
        // Each message names the one before it, and the end the last one: nothing is left out unnoticed.
        let last = self.found.last().map_or(0, |last| last.sequence);
        if before.is_some_and(|before: u64| before != last) {
            return Err(Error::broker(WHAT)("a part of the answer was lost"));
        }
        match protocol::status(headers) {
            None => {}
            // End of batch, and nothing found.
            Some(("204" | "404", _)) => return Ok(true),
            // As much of it as may be read at once.
            Some(("409", "Message Size Exceeds MaxBytes"))
                if matches!(self.form, Form::Delivered { .. }) && !self.found.is_empty() =>
            {
                return Ok(true);
            }
            Some((code, why)) => return Err(Error::broker(WHAT)(format!("{code} {why}"))),
        }
        let (Some(subject), Some(sequence)) = (subject, sequence) else {
            return Err(Error::Unreadable("a stored message"));
        };
        self.found.push(Stored::new(message, subject, sequence, pending));
        Ok(matches!(self.form, Form::One))
    }

    /// Takes what a consumer delivers; returns whether that is the end.
    fn deliver(&mut self, message: &Message<'_>, delivery: &Delivery<'_>) -> Result<bool, Error> {
        let Form::Delivered { next, most, .. } = self.form else {
            return Err(Error::Unreadable("a delivered message"));
        };
        if delivery.number != next + self.found.len() as u64 {
            return Err(Error::broker(WHAT)("a part of what was delivered was lost"));
        }
        self.bytes +=
            [message.subject, message.reply, message.headers].map(str::len).iter().sum::<usize>()
                + message.payload.len();
        let Delivery { sequence, pending, .. } = *delivery;
        self.found.push(Stored::new(message, message.subject, sequence, pending));
        // Of these ends the broker says nothing, or only now and then.
        Ok(self.found.len() == most || delivery.pending == 0 || self.bytes >= MAX_BYTES)
    }
}

impl<'a> Delivery<'a> {
    /// Reads such a subject: `$JS.ACK.<stream>.<consumer>.<times>.<sequence>.<number>.<time>.<pending>`, with a domain and
    /// an account before the stream since 2.14 (ADR-15).
    fn parse(reply: &'a str) -> Option<Self> {
        let tokens = reply.strip_prefix("$JS.ACK.")?;
        let before = if tokens.split('.').count() > 7 { 3 } else { 1 };
        let mut tokens = tokens.split('.').skip(before);
        let consumer = tokens.next()?;
        let mut numbers = tokens.skip(1).map(|number| number.parse().ok());
        let (sequence, number) = (numbers.next()??, numbers.next()??);
        let pending = numbers.nth(1)??;
        Some(Self { consumer, sequence, number, pending })
    }
}

#[cfg(test)]
mod tests;
