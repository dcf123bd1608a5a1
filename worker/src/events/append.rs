//! Appends messages to streams, in order and without gaps, by JetStream's fast-ingest batches (ADR-50): the server takes
//! a batch's messages one after the other, stops at the first that is missing, and confirms all of them at once.
//!
//! Publishing message by message, each with its own confirmation, costs more on both sides, and keeps no order: when
//! a connection breaks in the middle, the messages before it can be lost while those after it arrive.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use herald_proto::{
    header,
    link::{
        Link, Receive, command,
        protocol::{self, Message},
    },
    subject,
    telemetry::Traceparent,
};
use serde::Deserialize;
use tokio::{sync::oneshot, time::timeout};

use crate::error::Error;

/// A message to be appended.
pub(super) struct Append<'a> {
    pub(super) subject: String,
    /// By which JetStream drops copies.
    pub(super) id: &'a str,
    pub(super) traceparent: Option<Traceparent>,
    pub(super) body: &'a str,
}

/// Appends for one worker: what was sent last is confirmed, or given up, before more is sent.
pub(super) struct Appender {
    link: Arc<Link>,
    answers: Arc<Answers>,
    batches: u64,
}

/// Takes what the server says about batches.
pub(super) struct Answers {
    /// What batches are called, with a number. The server knows a batch by its name alone, whoever sends it: it must be no
    /// other worker's.
    name: String,
    /// What answers come under, each with its batch's name.
    inbox: String,
    underway: Mutex<Option<Underway>>,
}

/// Batches that are on their way.
struct Underway {
    /// The number of the first of them.
    first: u64,
    batches: Vec<Batch>,
    outcome: oneshot::Sender<Result<Vec<u64>, Error>>,
}

struct Batch {
    /// How many messages it has.
    size: u64,
    /// The sequence of its last message, once it is confirmed.
    end: Option<u64>,
}

/// What becomes of batches that are on their way.
pub(super) struct Pending {
    outcome: oneshot::Receiver<Result<Vec<u64>, Error>>,
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
/// The number of the subscription to answers.
const ANSWERS: u64 = 1;
/// The size of most messages with their commands, in bytes.
const USUAL: usize = 640;

impl Appender {
    /// An appender that sends over `link`, which has to run with its [`answers`](Self::answers).
    pub(super) fn new(link: Arc<Link>) -> Self {
        let inbox = subject::inbox(subject::WORKER_INBOX, fastrand::u64(..));
        let name = format!("{:016x}", fastrand::u64(..));
        Self {
            link,
            answers: Arc::new(Answers { name, inbox, underway: Mutex::default() }),
            batches: 0,
        }
    }

    /// Who takes what comes over the link.
    pub(super) fn answers(&self) -> Arc<Answers> {
        self.answers.clone()
    }

    /// Sends one batch to each of some streams, on the connection that was counted as `connect`; no batch is empty.
    ///
    /// # Errors
    /// If that connection is gone.
    pub(super) fn send(
        &mut self,
        connect: u64,
        batches: &[Vec<Append<'_>>],
    ) -> Result<Pending, Error> {
        // An answer to a batch that was given up must not be taken for one of these.
        let first = self.batches;
        self.batches += batches.len() as u64;
        let messages = batches.iter().map(Vec::len).sum();
        let (outcome, pending) = oneshot::channel();
        let sizes = batches.iter().map(|batch| Batch { size: batch.len() as u64, end: None });
        *self.answers.underway() = Some(Underway { first, batches: sizes.collect(), outcome });
        let is_sent = self.link.send_on(connect, messages, |out| {
            out.reserve(messages * USUAL);
            for (id, batch) in (first..).zip(batches) {
                self.answers.write(out, id, batch);
            }
        });
        if !is_sent {
            return Err(Error::broker(WHAT)("there is no connection"));
        }
        Ok(Pending { outcome: pending, sent_at: Instant::now() })
    }

    /// Waits until all of it is confirmed, and returns the sequence of each batch's last message. Can be given up and
    /// called again, until it has returned.
    ///
    /// # Errors
    /// If a batch was not taken as a whole, or may not have been: then all of it must be appended again. Copies of
    /// what was taken are dropped by their message ids.
    pub(super) async fn confirm(&self, pending: &mut Pending) -> Result<Vec<u64>, Error> {
        let left = PATIENCE.saturating_sub(pending.sent_at.elapsed());
        match timeout(left, &mut pending.outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Error::broker(WHAT)("the connection was lost")),
            Err(_) => Err(Error::broker(WHAT)("JetStream does not answer")),
        }
    }
}

impl Answers {
    fn underway(&self) -> MutexGuard<'_, Option<Underway>> {
        // Every change is whole, whoever panicked while holding the lock.
        self.underway.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a batch. The server is asked to confirm only its end: it may take as many messages without a word as no
    /// batch has.
    fn write(&self, commands: &mut Vec<u8>, id: u64, batch: &[Append<'_>]) {
        let start = format!("{}.{}-{id}.{}.fail", self.inbox, self.name, u16::MAX);
        for (n, message) in (1..).zip(batch) {
            let operation = match n {
                n if n == batch.len() => 2, // commit
                1 => 0,                     // start
                _ => 1,                     // append
            };
            let reply = format_args!("{start}.{n}.{operation}.$FI");
            let Append { subject, id, traceparent, body } = message;
            let trace = traceparent.map(|traceparent| traceparent.to_string());
            let trace = trace.as_deref().map(|trace| (header::TRACEPARENT, trace));
            let headers = trace.into_iter().chain([(header::MESSAGE_ID, *id)]);
            command::request_with_headers(commands, subject, reply, headers, body.as_bytes());
        }
    }

    /// The number of the batch that an answer is about.
    fn batch_of(&self, reply: &str) -> Option<u64> {
        let batch = reply.strip_prefix(&self.inbox)?.strip_prefix('.')?.split('.').next()?;
        batch.strip_prefix(&self.name)?.strip_prefix('-')?.parse().ok()
    }
}

impl Receive for Answers {
    fn subscribe(&self, commands: &mut Vec<u8>) {
        command::subscribe(commands, ANSWERS, &format!("{}.>", self.inbox));
    }

    fn receive(&self, message: &Message<'_>) {
        let Some(id) = self.batch_of(message.subject) else { return };
        let mut underway = self.underway();
        // One that nobody waits for any more is left.
        let Some(outcome) = underway.as_mut().and_then(|some| some.take(id, message)) else {
            return;
        };
        if let Some(Underway { outcome: waits, .. }) = underway.take() {
            // Nobody may wait for it any more.
            let _ = waits.send(outcome);
        }
    }

    fn lost(&self) {
        *self.underway() = None;
    }
}

impl Underway {
    /// Takes an answer; returns what became of all batches, once that is known.
    fn take(&mut self, id: u64, message: &Message<'_>) -> Option<Result<Vec<u64>, Error>> {
        let place = usize::try_from(id.checked_sub(self.first)?).ok()?;
        let batch = self.batches.get_mut(place)?;
        match end(message, batch.size) {
            Ok(end) => batch.end = batch.end.or(end),
            Err(error) => return Some(Err(error)),
        }
        let ends: Option<Vec<u64>> = self.batches.iter().map(|batch| batch.end).collect();
        ends.map(Ok)
    }
}

/// The sequence of a batch's last message, if this is its end.
fn end(answer: &Message<'_>, size: u64) -> Result<Option<u64>, Error> {
    if protocol::status(answer.headers).is_some() {
        return Err(Error::broker(WHAT)("no stream takes the events"));
    }
    let text = answer.payload;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Batches of these sizes on their way, the first of them with the number 7.
    fn underway(sizes: &[u64]) -> (Answers, oneshot::Receiver<Result<Vec<u64>, Error>>) {
        let (outcome, pending) = oneshot::channel();
        let batches = sizes.iter().map(|size| Batch { size: *size, end: None }).collect();
        let underway = Mutex::new(Some(Underway { first: 7, batches, outcome }));
        (Answers { name: "w".into(), inbox: "i".into(), underway }, pending)
    }

    fn say(answers: &Answers, batch: &str, headers: &str, payload: &str) {
        let subject = format!("i.{batch}.65535.fail.2.2.$FI");
        let payload = payload.as_bytes();
        answers.receive(&Message { sid: ANSWERS, subject: &subject, reply: "", headers, payload });
    }

    #[test]
    fn batches_are_confirmed_by_their_ends_once_all_have_come() {
        let (answers, mut pending) = underway(&[3, 1]);
        say(&answers, "w-7", "", r#"{"type":"ack","seq":10,"msgs":1}"#);
        say(&answers, "w-8", "", r#"{"stream":"E","seq":40}"#);
        // Of a batch that was given up, of one to come, and of another worker.
        for other in ["w-6", "w-9", "v-7", "w7", ""] {
            say(&answers, other, "", r#"{"stream":"E","seq":99,"batch":"w","count":3}"#);
        }
        assert!(pending.try_recv().is_err(), "the first has not come to its end");
        say(&answers, "w-7", "", r#"{"stream":"E","seq":12,"batch":"w-7","count":3}"#);
        assert_eq!(pending.try_recv().unwrap().unwrap(), [12, 40]);
    }

    #[test]
    fn a_batch_that_was_not_taken_as_a_whole_has_failed() {
        for (headers, payload) in [
            ("", r#"{"stream":"E","seq":11,"batch":"w-7","count":2}"#),
            ("", r#"{"type":"gap","seq":11}"#),
            ("", r#"{"type":"err","seq":11,"error":{"code":400}}"#),
            ("", r#"{"error":{"code":503},"stream":"E","seq":0}"#),
            ("", "?"),
            ("NATS/1.0 503\r\n\r\n", ""),
        ] {
            let (answers, mut pending) = underway(&[3]);
            say(&answers, "w-7", headers, payload);
            assert!(pending.try_recv().unwrap().is_err(), "{headers}{payload}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_is_told_at_once_when_the_connection_is_lost() {
        let (answers, outcome) = underway(&[3]);
        let appender = Appender::new(Arc::new(Link::new("test")));
        let begun = tokio::time::Instant::now();
        answers.lost();
        let mut pending = Pending { outcome, sent_at: Instant::now() };
        let error = appender.confirm(&mut pending).await.unwrap_err();
        assert_eq!(error.to_string(), "append events: the connection was lost");
        assert!(begun.elapsed().is_zero());
    }
}
