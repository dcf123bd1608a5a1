//! Scans of a stream: all of its messages from one on, whomever they are for.
//!
//! For what it returns by direct gets, the broker puts each of a message's headers in one by one, and writes all of them
//! anew each time. What it delivers by a consumer goes out as it is stored, which costs it a third, and nothing is counted
//! before and after each batch.

use std::time::Duration;

use async_nats::jetstream::{
    Context,
    consumer::{AckPolicy, DeliverPolicy, pull},
};
use herald_proto::link::command;

use super::{
    MAX_BYTES,
    direct::{Form, Reads, Stored},
};
use crate::error::Error;

/// A scan under way. Dropping it removes the consumer, and so does the broker if that can't be.
pub(super) struct Scan<'a> {
    reads: &'a Reads,
    stream: String,
    consumer: String,
    /// The number of the message that the consumer delivers next.
    next: u64,
}

/// Where a message comes from that a consumer delivers, as the subject for its acknowledgement tells.
#[derive(Debug, PartialEq)]
pub(super) struct Delivery<'a> {
    pub(super) consumer: &'a str,
    /// Its number in the stream.
    pub(super) sequence: u64,
    /// Its number among all that the consumer has delivered, from 1 on.
    pub(super) number: u64,
    /// How many come after it.
    pub(super) pending: u64,
}

/// How long the broker keeps a consumer of which nothing is heard.
const FORSAKEN: Duration = Duration::from_secs(30);

impl<'a> Scan<'a> {
    /// Begins a scan at a sequence.
    ///
    /// # Errors
    /// If the broker fails.
    pub(super) async fn begin(
        jetstream: &Context,
        reads: &'a Reads,
        stream: String,
        from: u64,
    ) -> Result<Self, Error> {
        let consumer = format!("scan-{:016x}", fastrand::u64(..));
        let config = pull::Config {
            name: Some(consumer.clone()),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
            ack_policy: AckPolicy::None,
            inactive_threshold: FORSAKEN,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let created = jetstream.create_consumer_on_stream(config, &stream).await;
        created.map_err(Error::broker("scan a log"))?;
        Ok(Self { reads, stream, consumer, next: 1 })
    }

    /// The next messages, at most so many. None if there are none.
    ///
    /// # Errors
    /// If the broker fails or is silent, a part was lost, or the next message is larger than what is read at once.
    pub(super) async fn next(&mut self, most: usize) -> Result<Vec<Stored>, Error> {
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.stream, self.consumer);
        let body = format!("{{\"batch\":{most},\"max_bytes\":{MAX_BYTES},\"no_wait\":true}}");
        let form = Form::Delivered { consumer: self.consumer.clone(), next: self.next, most };
        let found = self.reads.ask(form, &subject, body.as_bytes()).await?;
        self.next += found.len() as u64;
        Ok(found)
    }
}

impl Drop for Scan<'_> {
    fn drop(&mut self) {
        let subject = format!("$JS.API.CONSUMER.DELETE.{}.{}", self.stream, self.consumer);
        self.reads.tell(|commands| command::publish(commands, &subject, b""));
    }
}

impl<'a> Delivery<'a> {
    /// Reads such a subject: `$JS.ACK.<stream>.<consumer>.<times>.<sequence>.<number>.<time>.<pending>`, with a domain and
    /// an account before the stream since 2.14 (ADR-15).
    pub(super) fn parse(reply: &'a str) -> Option<Self> {
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
mod tests {
    use super::*;

    #[test]
    fn where_a_delivered_message_comes_from_is_read_whatever_the_brokers_age() {
        let delivery = Delivery { consumer: "scan-1", sequence: 20, number: 7, pending: 3 };
        for reply in [
            "$JS.ACK.EVENTS_0.scan-1.1.20.7.1796025718167416328.3",
            "$JS.ACK._.hash.EVENTS_0.scan-1.1.20.7.1796025718167416328.3",
            "$JS.ACK.hub.hash.EVENTS_0.scan-1.1.20.7.1796025718167416328.3.random",
        ] {
            assert_eq!(Delivery::parse(reply).as_ref(), Some(&delivery), "{reply}");
        }
        for reply in
            ["", "_INBOX_gateway.1.7", "$JS.ACK.EVENTS_0.scan-1.1.20.7.9", "$JS.ACK.a.b.1.x.7.9.3"]
        {
            assert_eq!(Delivery::parse(reply), None, "{reply}");
        }
    }
}
