//! What a worker says to the rest of the service besides events: replies to gateways, dead letters.

use std::sync::Arc;

use async_nats::{
    HeaderMap,
    jetstream::{Context, message::PublishMessage},
};
use foldhash::{HashMap, HashMapExt};
use herald_proto::{
    frame::Response,
    header,
    link::{Link, command},
    subject,
    wire::{Replies, Reply},
};

use crate::{
    error::Error,
    metrics::{DeadLetterCause, Metrics},
};

/// Publishes for one worker. Clones share the connections.
#[derive(Clone)]
pub struct Publisher {
    link: Arc<Link>,
    jetstream: Context,
    metrics: Arc<Metrics>,
}

/// The answer to a frame, and who waits for it.
#[derive(Debug)]
pub struct Answered {
    /// The gateway.
    pub gateway: Arc<str>,
    /// The session there.
    pub session: u64,
    /// The response to be sent.
    pub response: Response,
}

/// The most replies in one message.
const REPLIES_PER_MESSAGE: usize = 256;
/// The size of most replies, in bytes.
const USUAL: usize = 256;

impl Publisher {
    /// A publisher that sends replies over `link`, as events are: so they come before the events of their frames.
    pub fn new(link: Arc<Link>, jetstream: Context, metrics: Arc<Metrics>) -> Self {
        Self { link, jetstream, metrics }
    }

    /// Sends answers to the gateways that wait for them. A lost one is no failure: its client asks again.
    pub fn replies(&self, answers: Vec<Answered>) {
        let mut by_gateway: HashMap<Arc<str>, Vec<Answered>> = HashMap::new();
        for answer in answers {
            by_gateway.entry(answer.gateway.clone()).or_default().push(answer);
        }
        for (gateway, answers) in by_gateway {
            let subject = subject::reply(&gateway);
            for some in answers.chunks(REPLIES_PER_MESSAGE) {
                let mut body = Vec::with_capacity(some.len() * USUAL);
                let replies = Replies(some.iter().map(reply).collect());
                let is_sent = serde_json::to_writer(&mut body, &replies).is_ok()
                    && self.link.send(1, |out| command::publish(out, &subject, &body));
                if !is_sent {
                    tracing::warn!(
                        herald.answers = some.len(),
                        "there is no connection for answers, their clients will ask again"
                    );
                }
            }
        }
    }

    /// Puts a frame that can never be applied aside, with the reason.
    ///
    /// # Errors
    /// If JetStream does not confirm it.
    pub async fn dead_letter(
        &self,
        letter: DeadLetter,
        cause: DeadLetterCause,
    ) -> Result<(), Error> {
        let mut headers = HeaderMap::new();
        headers.insert(header::REASON, letter.reason.replace(['\r', '\n'], " ").as_str());
        headers.insert(header::ORIGIN, letter.origin.as_str());
        let id = format!("{:x}-{}-{:x}", letter.epoch, letter.partition, letter.place);
        headers.insert(header::MESSAGE_ID, id.as_str());
        let message = PublishMessage::build().payload(letter.body).headers(headers);
        let subject = subject::dead_letter(letter.partition);
        let stored = self.jetstream.send_publish(subject, message).await?.await?;
        if !stored.duplicate {
            self.metrics.dead_letters.inc(cause);
        }
        Ok(())
    }
}

/// A frame that can never be applied.
pub struct DeadLetter {
    /// The partition it came through.
    pub partition: u16,
    /// Its place there ([`crate::frame::place`]).
    pub place: i64,
    /// What the place counts in.
    pub epoch: i64,
    /// The subject it came on.
    pub origin: String,
    /// Why it can't be applied.
    pub reason: String,
    /// The frame as it came.
    pub body: bytes::Bytes,
}

fn reply(answer: &Answered) -> Reply<'_, &Response> {
    let id = answer.response.id.as_deref().unwrap_or_default();
    Reply { session: answer.session, id: id.into(), frame: &answer.response }
}
