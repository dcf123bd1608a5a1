//! Publishes clients' requests to `FRAMES`, each partition's in the order in which they came, and tells a session what
//! was not confirmed. Bounded: a request that finds no place is refused at once.
//!
//! Each partition has one bundle on its way. What comes meanwhile makes the next: so bundles grow under load, and
//! a request that comes alone does not wait. Bundles go over the tap: whoever reads it hears confirmations too.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use herald_proto::{
    Chat, RequestId,
    link::{
        Link, Receive, command,
        protocol::{self, Message},
    },
    subject,
    telemetry::Traceparent,
    topology::Topology,
    wire::{Bundle, Command},
};
use serde::Deserialize;
use tokio::time::Instant;

use crate::{
    inbox::{Delivery, Inbox},
    metrics::{Metrics, Publishing},
    spans,
};

mod lanes;

use lanes::{Job, Lanes, Outgoing, UnderWay};

/// Publishes for a gateway.
pub struct Publisher {
    tap: Arc<Link>,
    topology: Topology,
    gateway: Arc<str>,
    /// What confirmations come under, each with its partition and its bundle's number.
    inbox: String,
    lanes: Mutex<Lanes>,
    metrics: Arc<Metrics>,
}

/// Why a bundle is not confirmed.
#[derive(Debug, thiserror::Error)]
enum Unconfirmed {
    #[error("no answer in time")]
    Silent,
    #[error("the connection was lost")]
    Lost,
    #[error("no stream takes it")]
    NoStream,
    #[error("refused: {0}")]
    Refused(String),
    #[error("the answer is not readable")]
    Unreadable,
}

/// What JetStream answers a publish with (ADR-1).
#[derive(Deserialize)]
struct Ack {
    seq: Option<u64>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    description: String,
}

/// The number of the subscription to confirmations; no session has it.
pub const CONFIRMATIONS: u64 = u64::MAX;
/// The size of most commands, in bytes.
const USUAL: usize = 512;
/// What a bundle takes besides its commands and the gateway's name, at most, in bytes.
const MARGIN: usize = 1024;

impl Publisher {
    /// Publishes over `tap`; at most `capacity` requests are on their way.
    pub fn new(
        tap: Arc<Link>,
        topology: Topology,
        gateway: Arc<str>,
        capacity: usize,
        metrics: Arc<Metrics>,
    ) -> Self {
        let inbox = subject::inbox(subject::GATEWAY_INBOX, fastrand::u64(..));
        let lanes = Mutex::new(Lanes::new(topology.partitions, capacity));
        Self { tap, topology, gateway, inbox, lanes, metrics }
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        // Every change is whole, whoever panicked while holding the lock.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request on its way, as a part of the trace of `cause`. Whether it was confirmed is told to the inbox, and
    /// only if it was not.
    ///
    /// # Errors
    /// The request's id if there is no connection to the broker, or no place, or it is larger than the broker takes.
    pub fn submit(
        &self,
        chat: &Chat,
        mut command: Command,
        cause: Option<Traceparent>,
        inbox: &Arc<Inbox>,
    ) -> Result<(), RequestId> {
        if !self.tap.is_connected() || self.lanes().is_full() {
            return Err(command.id);
        }
        let partition = self.topology.partition(chat);
        let span = spans::publish(cause, partition);
        command.traceparent = span.traceparent();
        let mut body = Vec::with_capacity(USUAL);
        let Ok(()) = serde_json::to_writer(&mut body, &command) else { return Err(command.id) };
        let job = Job { body, span, id: command.id, inbox: inbox.clone() };
        let refuse = |mut job: Job| {
            job.span.fail("not_published");
            Err(job.id)
        };
        if job.body.len() > self.max_bytes() {
            tracing::warn!("a request is larger than the broker takes, it is refused");
            return refuse(job);
        }
        let taken = {
            let mut lanes = self.lanes();
            // Looked at with the lanes in hand: a connection that is lost from now on takes the request with it.
            if self.tap.is_connected() { lanes.push(partition, job) } else { Err(job) }
        };
        if let Err(job) = taken {
            return refuse(job);
        }
        self.tap.wake();
        Ok(())
    }

    /// How many bytes of commands the broker takes in a message.
    fn max_bytes(&self) -> usize {
        self.tap.max_payload().saturating_sub(self.gateway.len() + MARGIN)
    }

    /// A bundle has come to its end: tells its sessions if it was not confirmed.
    fn end(&self, bundle: UnderWay, confirmed: Result<(), Unconfirmed>) {
        self.metrics.publish.observe(bundle.sent_at.elapsed(), None);
        match confirmed {
            Ok(()) => self.metrics.publishes.inc(Publishing::Confirmed),
            Err(error) => {
                self.metrics.publishes.inc(Publishing::Failed);
                fail(bundle.jobs, &error);
            }
        }
    }
}

fn fail(jobs: Vec<Job>, error: &Unconfirmed) {
    let traced = jobs.iter().find(|job| job.span.is_some());
    let logs = traced.and_then(|job| job.span.enter());
    tracing::warn!(%error, herald.requests = jobs.len(), "requests were not confirmed by the broker");
    drop(logs);
    for mut job in jobs {
        match job.span.is_some() {
            true => job.span.fail("not_confirmed"),
            false => spans::keep_error("not_confirmed"),
        }
        // The request may still arrive: whoever sends it again gets the same answer.
        job.inbox.push(Delivery::Unconfirmed(job.id));
    }
}

impl Receive for Publisher {
    fn subscribe(&self, commands: &mut Vec<u8>) {
        command::subscribe(commands, CONFIRMATIONS, &format!("{}.*.*", self.inbox));
    }

    fn due(&self, out: &mut Vec<u8>) -> usize {
        let mut count = 0;
        let (outgoing, more) = self.lanes().send(Instant::now(), self.max_bytes());
        for Outgoing { partition, number, commands } in outgoing {
            count += 1;
            self.metrics.bundle.observe_size(commands.len());
            let body = Bundle::join(&self.gateway, commands.iter().map(Vec::as_slice));
            let reply = format_args!("{}.{partition}.{number}", self.inbox);
            command::request(out, &subject::frames(partition), reply, &body);
        }
        if more {
            self.tap.wake();
        }
        count
    }

    fn receive(&self, message: &Message<'_>) {
        let mut tokens = message.subject.rsplit('.');
        let number = tokens.next().and_then(|number| number.parse().ok());
        let partition = tokens.next().and_then(|partition| partition.parse().ok());
        let (Some(number), Some(partition)) = (number, partition) else { return };
        // One that nobody waits for any more is left.
        let answered = self.lanes().answered(partition, number);
        if let Some(bundle) = answered {
            self.end(bundle, confirmed(message));
        }
    }

    fn lost(&self) {
        let lost = self.lanes().lost();
        for bundle in lost.under_way {
            self.end(bundle, Err(Unconfirmed::Lost));
        }
        for jobs in lost.waiting {
            self.metrics.publishes.inc(Publishing::Failed);
            fail(jobs, &Unconfirmed::Lost);
        }
    }

    fn quiet(&self) {
        let overdue = self.lanes().overdue(Instant::now());
        for bundle in overdue {
            self.end(bundle, Err(Unconfirmed::Silent));
        }
    }
}

/// What the broker says to a bundle.
fn confirmed(message: &Message<'_>) -> Result<(), Unconfirmed> {
    if protocol::status(message.headers).is_some() {
        return Err(Unconfirmed::NoStream);
    }
    match serde_json::from_slice(message.payload) {
        Ok(Ack { error: Some(refusal), .. }) => Err(Unconfirmed::Refused(refusal.description)),
        Ok(Ack { seq: Some(_), .. }) => Ok(()),
        _ => Err(Unconfirmed::Unreadable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_confirmed_by_its_place_in_the_stream_and_by_nothing_else() {
        let answer = |headers: &str, payload: &str| {
            let message = Message {
                sid: 1,
                subject: "i.0.1",
                reply: "",
                headers,
                payload: payload.as_bytes(),
            };
            confirmed(&message).map_err(|error| error.to_string())
        };
        assert_eq!(answer("", r#"{"stream":"FRAMES", "seq":7}"#), Ok(()));
        assert_eq!(
            answer("", r#"{"stream":"FRAMES","domain":"d","seq":7,"duplicate":true}"#),
            Ok(())
        );
        let refused = r#"{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"},"stream":"FRAMES","seq":0}"#;
        assert_eq!(answer("", refused).unwrap_err(), "refused: maximum messages exceeded");
        let none = answer("NATS/1.0 503\r\n\r\n", "");
        assert_eq!(none.unwrap_err(), "no stream takes it");
        for garbage in ["", "{}", "7"] {
            assert_eq!(answer("", garbage).unwrap_err(), "the answer is not readable");
        }
    }
}
