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
    DirectGet, MAX_BYTES,
    direct::{Form, Reads, Stored},
};
use crate::error::Error;

/// A scan under way.
pub(super) struct Scan<'a> {
    jetstream: &'a Context,
    reads: &'a Reads,
    stream: String,
    way: Way<'a>,
}

/// How a scan goes on.
enum Way<'a> {
    /// By a direct get: a few messages are not worth a consumer.
    AtFirst,
    /// By a consumer that is to be made.
    Far,
    /// By its consumer.
    Delivered(Consumer<'a>),
    /// By direct gets. Where the stream ends only they tell: what a consumer counts as left can be wrong for a moment.
    AtLast,
}

/// A consumer of a scan's own. Dropping it removes it, and so does the broker if that can't be.
struct Consumer<'a> {
    reads: &'a Reads,
    stream: String,
    name: String,
    /// The number of the message that it delivers next.
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
    /// A scan that has not begun.
    pub(super) fn new(jetstream: &'a Context, reads: &'a Reads, stream: String) -> Self {
        Self { jetstream, reads, stream, way: Way::AtFirst }
    }

    /// The next messages, at most so many, and whether the stream ends with them. `from` is where the scan begins, and then
    /// where it has come to.
    ///
    /// # Errors
    /// If the broker fails or is silent. Without a consumer a scan goes on all the same.
    pub(super) async fn next(
        &mut self,
        from: u64,
        most: usize,
    ) -> Result<(Vec<Stored>, bool), Error> {
        match self.deliver(from, most).await {
            Ok(found) if !found.is_empty() => return Ok((found, false)),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "a log is read without a consumer");
                self.way = Way::AtLast;
            }
        }
        let request = DirectGet {
            seq: Some(from),
            batch: Some(most),
            max_bytes: Some(MAX_BYTES),
            ..DirectGet::default()
        };
        let found = self.reads.get(&self.stream, &request).await?;
        if let Way::AtFirst = self.way {
            self.way = Way::Far;
        }
        let is_end = found.last().is_none_or(|last| last.pending == 0);
        Ok((found, is_end))
    }

    /// What the consumer delivers next; nothing without one.
    async fn deliver(&mut self, from: u64, most: usize) -> Result<Vec<Stored>, Error> {
        if let Way::Far = self.way {
            let stream = self.stream.clone();
            let consumer = Consumer::make(self.jetstream, self.reads, stream, from).await?;
            self.way = Way::Delivered(consumer);
        }
        let Way::Delivered(consumer) = &mut self.way else { return Ok(Vec::new()) };
        let found = consumer.next(most).await?;
        if found.last().is_none_or(|last| last.pending == 0) {
            self.way = Way::AtLast;
        }
        Ok(found)
    }
}

impl<'a> Consumer<'a> {
    async fn make(
        jetstream: &Context,
        reads: &'a Reads,
        stream: String,
        from: u64,
    ) -> Result<Self, Error> {
        let name = format!("scan-{:016x}", fastrand::u64(..));
        let config = pull::Config {
            name: Some(name.clone()),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
            ack_policy: AckPolicy::None,
            inactive_threshold: FORSAKEN,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let made = jetstream.create_consumer_on_stream(config, &stream).await;
        made.map_err(Error::broker("scan a log"))?;
        Ok(Self { reads, stream, name, next: 1 })
    }

    /// The next messages, at most so many; none if there are none.
    ///
    /// # Errors
    /// If the broker fails or is silent, a part was lost, or the next message is larger than what is read at once.
    async fn next(&mut self, most: usize) -> Result<Vec<Stored>, Error> {
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.stream, self.name);
        let body = format!("{{\"batch\":{most},\"max_bytes\":{MAX_BYTES},\"no_wait\":true}}");
        let form = Form::Delivered { consumer: self.name.clone(), next: self.next, most };
        let found = self.reads.ask(form, &subject, body.as_bytes()).await?;
        self.next += found.len() as u64;
        Ok(found)
    }
}

impl Drop for Consumer<'_> {
    fn drop(&mut self) {
        let subject = format!("$JS.API.CONSUMER.DELETE.{}.{}", self.stream, self.name);
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
