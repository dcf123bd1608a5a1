//! Batched direct gets (ADR-31): messages of a stream, read from whichever replica answers.

use std::{sync::Arc, time::Duration};

use async_nats::StatusCode;
use bytes::Bytes;
use futures::StreamExt;
use herald_proto::{header, telemetry::Traceparent};
use serde::Serialize;

use super::{EventLog, bucket};
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) batch: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_bytes: Option<usize>,
}

/// A message of a stream, as a direct get returns it.
#[derive(Clone)]
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

/// How long an answer, or the next message of one, may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The header of a batch's messages that counts what comes after them (ADR-31).
const NUM_PENDING: &str = "Nats-Num-Pending";

impl EventLog {
    /// Asks for messages, and returns them all.
    ///
    /// # Errors
    /// If the broker fails or is silent, or a part of the answer was lost.
    pub(super) async fn get(
        &self,
        stream: &str,
        request: &DirectGet<'_>,
    ) -> Result<Vec<Stored>, Error> {
        const WHAT: &str = "read a log";
        let inbox = self.client.new_inbox();
        let mut answers =
            self.client.subscribe(inbox.clone()).await.map_err(Error::broker(WHAT))?;
        let body = serde_json::to_vec(request).map_err(|_| Error::Unreadable("a direct get"))?;
        let api = format!("$JS.API.DIRECT.GET.{stream}");
        self.client
            .publish_with_reply(api, inbox, body.into())
            .await
            .map_err(Error::broker(WHAT))?;
        let mut found: Vec<Stored> = Vec::new();
        loop {
            let answer = tokio::time::timeout(PATIENCE, answers.next())
                .await
                .map_err(|_| Error::Silent(WHAT))?;
            let Some(answer) = answer else { return Err(Error::Silent(WHAT)) };
            // Each message names the one before it, and the end the last one: nothing is left out unnoticed.
            let before = answer.headers.as_ref().and_then(|headers| {
                header::number(headers, async_nats::header::NATS_LAST_SEQUENCE)
            });
            let last = found.last().map_or(0, |last| last.sequence);
            if before.is_some_and(|before| before != last) {
                return Err(Error::broker(WHAT)("a part of the answer was lost"));
            }
            match answer.status {
                None | Some(StatusCode::OK) => found.push(stored(answer)?),
                // End of batch, and nothing found.
                Some(status) if status.as_u16() == 204 || status == StatusCode::NOT_FOUND => {
                    return Ok(found);
                }
                Some(status) => {
                    let why = format!("{status} {}", answer.description.unwrap_or_default());
                    return Err(Error::broker(WHAT)(why));
                }
            }
        }
    }
}

fn stored(message: async_nats::Message) -> Result<Stored, Error> {
    let headers = message.headers.as_ref().ok_or(Error::Unreadable("a stored message"))?;
    let traceparent = header::traceparent(Some(headers));
    let message_id = headers.get(async_nats::header::NATS_MESSAGE_ID).map(AsRef::as_ref);
    Ok(Stored {
        subject: headers
            .get(async_nats::header::NATS_SUBJECT)
            .map(|subject| subject.as_str().into())
            .ok_or(Error::Unreadable("a stored message"))?,
        sequence: header::number(headers, async_nats::header::NATS_SEQUENCE)
            .ok_or(Error::Unreadable("a stored message"))?,
        traceparent,
        origin: Origin::of(message_id, traceparent),
        is_removed: bucket::is_removal(headers),
        pending: header::number(headers, NUM_PENDING).unwrap_or(0),
        payload: message.payload,
    })
}
