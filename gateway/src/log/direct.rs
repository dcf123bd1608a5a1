//! Batched direct gets (ADR-31): messages of a stream, read from whichever replica answers.

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

use super::bucket::REMOVALS;
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

/// A message of a stream, as a direct get returns it.
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

/// Direct gets, on a connection of their own.
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
}

/// An answer on its way.
struct Answer {
    /// Whether it is a message alone, which no end follows.
    is_one: bool,
    found: Vec<Stored>,
    whole: oneshot::Sender<Result<Vec<Stored>, Error>>,
}

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
        if !self.link.is_connected() {
            // It may come back, or come up, in a moment.
            self.link.confirmed().await?;
        }
        let body = serde_json::to_vec(request).map_err(|_| Error::Unreadable("a direct get"))?;
        let (whole, answered) = oneshot::channel();
        let number = {
            let mut asked = self.asked();
            asked.last += 1;
            let number = asked.last;
            let is_one = request.batch.is_none();
            asked.answers.insert(number, Answer { is_one, found: Vec::new(), whole });
            number
        };
        let _asking = Asking { reads: self, number };
        let reply = format!("{}.{number}", self.inbox);
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        let is_sent = self.link.send(1, |out| command::request(out, &subject, &reply, &body));
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

impl Receive for Reads {
    fn subscribe(&self, commands: &mut Vec<u8>) {
        command::subscribe(commands, ANSWERS, &format!("{}.*", self.inbox));
    }

    fn receive(&self, message: &Message<'_>) {
        let number = message.subject.rsplit_once('.').and_then(|(_, number)| number.parse().ok());
        let Some(number) = number else { return };
        let mut asked = self.asked();
        // One that nobody waits for any more is left.
        let Some(answer) = asked.answers.get_mut(&number) else { return };
        let whole = match answer.take(message) {
            Ok(false) => return,
            Ok(true) => Ok(std::mem::take(&mut answer.found)),
            Err(error) => Err(error),
        };
        if let Some(answer) = asked.answers.remove(&number) {
            // Nobody may wait for it any more.
            let _ = answer.whole.send(whole);
        }
    }

    fn lost(&self) {
        self.asked().answers.clear();
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.reads.asked().answers.remove(&self.number);
    }
}

impl Answer {
    /// Takes a part of it; returns whether that is its end.
    fn take(&mut self, message: &Message<'_>) -> Result<bool, Error> {
        let Message { headers, payload, .. } = *message;
        let (mut subject, mut sequence, mut pending, mut before) = (None, None, 0, None);
        let (mut message_id, mut traceparent, mut is_removed) = (None, None, false);
        for (name, value) in protocol::fields(headers) {
            match name {
                "Nats-Subject" => subject = Some(value),
                "Nats-Sequence" => sequence = value.parse().ok(),
                "Nats-Num-Pending" => pending = value.parse().unwrap_or(0),
                "Nats-Last-Sequence" => before = value.parse().ok(),
                header::MESSAGE_ID => message_id = Some(value),
                header::TRACEPARENT => traceparent = value.parse().ok(),
                _ => is_removed |= REMOVALS.contains(&name),
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
            Some((code, why)) => return Err(Error::broker(WHAT)(format!("{code} {why}"))),
        }
        let (Some(subject), Some(sequence)) = (subject, sequence) else {
            return Err(Error::Unreadable("a stored message"));
        };
        self.found.push(Stored {
            subject: subject.into(),
            sequence,
            traceparent,
            origin: Origin::of(message_id, traceparent),
            is_removed,
            // Copied: the connection's buffer must not be kept for as long as what is read.
            payload: Bytes::copy_from_slice(payload),
            pending,
        });
        Ok(self.is_one)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message<'a>(headers: &'a str, payload: &'a [u8]) -> Message<'a> {
        Message { sid: 1, subject: "inbox.1", headers, payload }
    }

    fn part(sequence: u64, before: u64, more: &str) -> String {
        format!(
            "NATS/1.0\r\nNats-Subject: events.0.a\r\nNats-Sequence: {sequence}\r\nNats-Num-Pending: 3\r\n\
             Nats-Last-Sequence: {before}\r\n{more}\r\n"
        )
    }

    fn answer() -> Answer {
        Answer { is_one: false, found: Vec::new(), whole: oneshot::channel().0 }
    }

    #[test]
    fn an_answer_is_taken_up_to_its_end() {
        let mut answer = answer();
        let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let more = format!("Nats-Msg-Id: 17f-7-2001-18bdbd12a01\r\ntraceparent: {traceparent}\r\n");
        assert!(!answer.take(&message(&part(5, 0, &more), b"one")).unwrap());
        assert!(!answer.take(&message(&part(8, 5, "KV-Operation: DEL\r\n"), b"")).unwrap());
        let end = "NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\nNats-Last-Sequence: 8\r\n\r\n";
        assert!(answer.take(&message(end, b"")).unwrap());
        let [one, two] = &answer.found[..] else { panic!("{:?}", answer.found) };
        assert_eq!((one.sequence, &*one.subject, &one.payload[..]), (5, "events.0.a", &b"one"[..]));
        assert_eq!((one.pending, one.origin.at, one.is_removed), (3, 1_700_200_000_001, false));
        assert_eq!(one.traceparent.map(|parent| parent.to_string()).as_deref(), Some(traceparent));
        assert!((two.sequence, two.is_removed) == (8, true) && two.traceparent.is_none());
    }

    #[test]
    fn a_message_alone_is_the_whole_answer() {
        let headers = "NATS/1.0\r\nNats-Subject: events.0.a\r\nNats-Sequence: 5\r\n\r\n";
        let mut alone = Answer { is_one: true, ..answer() };
        assert!(alone.take(&message(headers, b"one")).unwrap());
        assert_eq!(alone.found.iter().map(|found| found.sequence).collect::<Vec<_>>(), [5]);
        let nothing = message("NATS/1.0 404 Message Not Found\r\n\r\n", b"");
        assert!(Answer { is_one: true, ..answer() }.take(&nothing).unwrap());
    }

    #[test]
    fn a_part_that_was_lost_is_noticed() {
        let mut lost = answer();
        assert!(!lost.take(&message(&part(5, 0, ""), b"")).unwrap());
        assert!(lost.take(&message(&part(9, 8, ""), b"")).is_err());
        let mut lost = answer();
        let end = "NATS/1.0 204 EOB\r\nNats-Last-Sequence: 8\r\n\r\n";
        assert!(lost.take(&message(end, b"")).is_err());
    }

    #[test]
    fn nothing_found_is_no_error_and_anything_else_is() {
        let nothing = message("NATS/1.0 404 Message Not Found\r\n\r\n", b"");
        assert!(answer().take(&nothing).unwrap());
        for headers in
            ["NATS/1.0 503\r\n\r\n", "NATS/1.0 408 Bad Request\r\n\r\n", "NATS/1.0\r\n\r\n", ""]
        {
            assert!(answer().take(&message(headers, b"")).is_err(), "{headers}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_connection_nobody_waits_for_long() {
        let (reads, begin) = (Reads::new(), tokio::time::Instant::now());
        let error = reads.get("EVENTS_0", &DirectGet::default()).await.unwrap_err();
        assert_eq!(error.to_string(), "NATS has not confirmed in time what it was told");
        assert!(begin.elapsed() <= PATIENCE, "{:?}", begin.elapsed());
    }

    #[tokio::test]
    async fn whoever_waits_is_told_that_the_connection_is_lost() {
        let reads = Reads::new();
        let (whole, answered) = oneshot::channel();
        let answer = Answer { whole, ..answer() };
        reads.asked().answers.insert(7, answer);
        reads.lost();
        assert!(answered.await.is_err());
    }
}
