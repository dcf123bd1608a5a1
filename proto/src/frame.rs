//! The frames of the client protocol: JSON text over one WebSocket.
//!
//! [`ClientFrame::parse`] takes what a client sent; [`Response`] and [`Event`] are what it gets. An event lies in
//! its user's log without `id` and `prev`, which only the log knows: [`with_id`] puts them in on the way out.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use crate::{
    Error, EventId, RequestId, UserId,
    payload::{About, Arrived, Delete, Delivered, Mark, New, Presence, ReadUpTo, Stored, Typing},
    telemetry::{self, Traceparent},
};

/// A request, by `payloadType`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "payloadType", content = "payload", rename_all = "lowercase")]
pub enum Request {
    /// Send a message.
    New(New),
    /// Everything up to a message was received.
    Dlvrd(Mark),
    /// Everything up to a message was read.
    Read(Mark),
    /// Take a message back.
    Delete(Delete),
}

impl Request {
    /// The other party of the chat this request is about.
    pub fn peer(&self) -> &UserId {
        match self {
            Self::New(new) => &new.chat_id,
            Self::Dlvrd(mark) | Self::Read(mark) => &mark.chat_id,
            Self::Delete(delete) => &delete.chat_id,
        }
    }

    /// The `payloadType`, for logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::New(_) => "new",
            Self::Dlvrd(_) => "dlvrd",
            Self::Read(_) => "read",
            Self::Delete(_) => "delete",
        }
    }
}

/// What a client can send.
#[derive(Debug, Clone, PartialEq)]
pub enum ClientFrame {
    /// To be answered under `id`.
    Request {
        /// The client's id of the request.
        id: RequestId,
        /// The sender's clock, in milliseconds since the Unix epoch.
        timestamp: i64,
        /// The trace that the client makes it a part of.
        traceparent: Option<Traceparent>,
        /// What is asked.
        request: Request,
    },
    /// The user is writing to that peer. Never answered.
    Typing(Typing),
    /// The user goes offline, though the connection stays. Never answered.
    Offline,
    /// An event this service does not know. Never answered.
    UnknownEvent,
    /// The device has safely taken the event.
    Ack(EventId),
}

/// A frame that can't be taken: what to answer, and under which id (`None` if it can't be read).
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// The id of the request, if it can be read.
    pub id: Option<RequestId>,
    /// What is wrong with it.
    pub error: Error,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(default)]
    timestamp: Option<i64>,
    #[serde(default)]
    payload_type: Option<String>,
    #[serde(default)]
    event_type: Option<String>,
    #[serde(default, deserialize_with = "telemetry::lenient")]
    traceparent: Option<Traceparent>,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
}

impl ClientFrame {
    /// Takes a client's text as a frame. Unknown fields are ignored, field order does not matter.
    ///
    /// # Errors
    /// [`Refusal`] with `bad_request` that names the field.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let envelope: Envelope<'_> = serde_json::from_str(text).map_err(|error| Refusal {
            id: readable_id(text),
            error: Error::bad_request(format!(
                "not a frame: {}",
                field_error::<Envelope<'_>>(text, &error)
            )),
        })?;
        match envelope.kind.as_str() {
            "request" => envelope.request(),
            "event" => envelope.event(),
            "ack" => envelope.ack(),
            other => Err(Refusal {
                id: envelope.id.and_then(request_id),
                error: Error::bad_request(format!(
                    "type: `{}` is none of request, event, ack",
                    clip(other)
                )),
            }),
        }
    }
}

impl Envelope<'_> {
    fn request(self) -> Result<ClientFrame, Refusal> {
        let raw = self.id.map_or("null", RawValue::get);
        let id: RequestId = serde_json::from_str(raw).map_err(|error| Refusal {
            id: None,
            error: Error::bad_request(format!("id: {}", plain(&error))),
        })?;
        let refuse =
            |message: String| Refusal { id: Some(id.clone()), error: Error::bad_request(message) };
        let timestamp = self.timestamp.ok_or_else(|| refuse("timestamp: missing".into()))?;
        let payload = self.payload.map_or("null", RawValue::get);
        let request = match self.payload_type.as_deref() {
            Some("new") => Request::New(typed(payload).map_err(refuse)?),
            Some("dlvrd") => Request::Dlvrd(typed(payload).map_err(refuse)?),
            Some("read") => Request::Read(typed(payload).map_err(refuse)?),
            Some("delete") => Request::Delete(typed(payload).map_err(refuse)?),
            Some(other) => {
                let message =
                    format!("payloadType: `{}` is none of new, dlvrd, read, delete", clip(other));
                return Err(refuse(message));
            }
            None => return Err(refuse("payloadType: missing".into())),
        };
        if let Request::New(new) = &request {
            check_content(new).map_err(|message| refuse(message.into()))?;
        }
        let traceparent = self.traceparent;
        Ok(ClientFrame::Request { id, timestamp, traceparent, request })
    }

    fn event(self) -> Result<ClientFrame, Refusal> {
        let refuse = |message: String| Refusal { id: None, error: Error::bad_request(message) };
        match self.payload_type.as_deref().or(self.event_type.as_deref()) {
            Some("typing") => typed(self.payload.map_or("null", RawValue::get))
                .map(ClientFrame::Typing)
                .map_err(refuse),
            Some("offline") => Ok(ClientFrame::Offline),
            Some(_) => Ok(ClientFrame::UnknownEvent),
            None => Err(refuse("payloadType: missing".into())),
        }
    }

    fn ack(self) -> Result<ClientFrame, Refusal> {
        let raw = self.id.map_or("null", RawValue::get);
        serde_json::from_str(raw).map(ClientFrame::Ack).map_err(|_| Refusal {
            id: None,
            error: Error::bad_request("id: must be the number of an event"),
        })
    }
}

/// How deep a `meta` may be nested. Far below what a parser takes: whoever wraps an accepted frame adds levels of its own.
const MAX_META_DEPTH: usize = 32;

fn check_content(new: &New) -> Result<(), &'static str> {
    if new.attachments.iter().any(|attachment| !is_shallow(attachment.meta.values(), 1)) {
        return Err("attachments: meta must not be nested deeper than 32 levels");
    }
    match &new.message {
        Some(text) if text.contains('\0') => Err("message: must not hold the character U+0000"),
        None if new.attachments.is_empty() => Err("message: needs a text or attachments"),
        Some(text) if text.is_empty() && new.attachments.is_empty() => {
            Err("message: needs a text or attachments")
        }
        _ => Ok(()),
    }
}

/// Whether values at that depth, and all that is in them, lie within the limit. Recursion is bounded by the limit.
fn is_shallow<'a>(mut values: impl Iterator<Item = &'a Value>, depth: usize) -> bool {
    depth <= MAX_META_DEPTH
        && values.all(|value| match value {
            Value::Array(values) => is_shallow(values.iter(), depth + 1),
            Value::Object(values) => is_shallow(values.values(), depth + 1),
            _ => true,
        })
}

fn request_id(raw: &RawValue) -> Option<RequestId> {
    serde_json::from_str(raw.get()).ok()
}

fn readable_id(text: &str) -> Option<RequestId> {
    #[derive(Deserialize)]
    struct OnlyId {
        id: RequestId,
    }
    serde_json::from_str::<OnlyId>(text).ok().map(|only| only.id)
}

/// Parses a payload; on failure parses once more to find out which field is to blame.
fn typed<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, String> {
    serde_json::from_str(json).map_err(|error| field_error::<T>(json, &error))
}

fn field_error<'a, T: Deserialize<'a>>(json: &'a str, error: &serde_json::Error) -> String {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
        Err(found) if found.path().iter().len() > 0 => {
            format!("{}: {}", clip(&found.path().to_string()), plain(found.inner()))
        }
        _ => plain(error),
    }
}

/// The error without serde_json's ` at line 1 column 5`, which tells a client nothing.
fn plain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let end = text.rfind(" at line ").unwrap_or(text.len());
    clip(text.get(..end).unwrap_or(&text))
}

/// Client text quoted back in an error: bounded, so that an error is never larger than what caused it.
fn clip(text: &str) -> String {
    const LIMIT: usize = 120;
    if text.chars().count() <= LIMIT {
        text.to_owned()
    } else {
        text.chars().take(LIMIT).chain(['…']).collect()
    }
}

/// The payload of a response, by the request it answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// To `new`.
    Stored(Stored),
    /// To `dlvrd`: an empty object.
    Delivered,
    /// To `read`: names itself by `payloadType`.
    Read(ReadUpTo),
    /// To `delete` and `ack`: no payload.
    Done,
    /// The request failed.
    Failed(Error),
}

/// A response as the client gets it.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// The request's id, or the event's as a string for an ack; `None` is written as `null`.
    pub id: Option<String>,
    /// The service's clock, in milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// What is answered.
    pub answer: Answer,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResponseFrame<'a> {
    r#type: &'static str,
    timestamp: i64,
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<AnswerPayload<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Error>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum AnswerPayload<'a> {
    Stored(&'a Stored),
    Read(&'a ReadUpTo),
    Empty {},
}

impl Serialize for Response {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (payload_type, payload, error) = match &self.answer {
            Answer::Stored(stored) => (None, Some(AnswerPayload::Stored(stored)), None),
            Answer::Delivered => (None, Some(AnswerPayload::Empty {}), None),
            Answer::Read(read) => (Some("read"), Some(AnswerPayload::Read(read)), None),
            Answer::Done => (None, None, None),
            Answer::Failed(error) => (None, None, Some(error)),
        };
        ResponseFrame {
            r#type: "response",
            timestamp: self.timestamp,
            id: self.id.as_deref(),
            payload_type,
            payload,
            error,
        }
        .serialize(serializer)
    }
}

/// What an event tells, by `eventType`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "eventType", content = "payload", rename_all = "lowercase")]
pub enum EventBody {
    /// A message has come.
    New(Arrived),
    /// The peer has received.
    Dlvrd(Delivered),
    /// The peer has read.
    Read(About),
    /// The peer has taken a message back.
    Delete(About),
    /// The peer is writing.
    Typing(Typing),
    /// A contact has come online.
    Online(Presence),
    /// A contact has gone offline.
    Offline(Presence),
    /// The log no longer reaches back to where the device was: reload from history.
    Resync,
}

/// An event without its place in the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Always `event`.
    #[serde(rename = "type")]
    kind: EventKind,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// What it tells.
    #[serde(flatten)]
    pub body: EventBody,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum EventKind {
    Event,
}

impl Event {
    /// An event at that time, in milliseconds since the Unix epoch.
    pub fn new(timestamp: i64, body: EventBody) -> Self {
        Self { kind: EventKind::Event, timestamp, body }
    }
}

/// Writes a frame as JSON text.
///
/// Our own types always serialize; should that ever change, the caller gets an error and not a half frame.
///
/// # Errors
/// Whatever serde_json reports.
pub fn to_text(frame: &impl Serialize) -> Result<String, serde_json::Error> {
    serde_json::to_string(frame)
}

/// Puts `id` and `prev` into an event as it lies in the log; `None` if `body` is not a JSON object.
///
/// Working on the text spares a parse of every event that passes the gateway.
pub fn with_id(body: &str, id: EventId, prev: EventId) -> Option<String> {
    /// Two numbers of up to 20 digits, and what is around them.
    const MORE: usize = 56;
    let rest = body.strip_prefix('{')?;
    let mut frame = String::with_capacity(rest.len() + MORE);
    // Writing to a string can't fail.
    let _ = write!(frame, "{{\"id\":{id},\"prev\":{prev},");
    frame.push_str(rest);
    Some(frame)
}

/// The `eventType` of an event as this service writes it, in the log or on its way out; `None` if it is nothing of ours.
///
/// It is looked for where it must be, before anything that a user has written: that, too, spares a parse.
pub fn event_type(frame: &str) -> Option<&str> {
    const KEY: &str = "\"eventType\":\"";
    /// `id`, `prev` and `timestamp` are before it, of up to 20 digits each.
    const FURTHEST: usize = 120;
    let head = frame.get(..frame.floor_char_boundary(FURTHEST + KEY.len()))?;
    let begin = head.find(KEY)? + KEY.len();
    frame.get(begin..)?.split('"').next()
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
