//! The frames of the client protocol as cheap as they can be: written by `format!`, read without copies.

use std::fmt;

use herald_proto::clock::now_ms;
use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};

/// The request `new`. The user and the text must need no escapes in JSON.
pub fn new(key: u64, peer: &str, text: &str) -> String {
    let now = now_ms();
    format!(
        r#"{{"type":"request","id":"n{key}","timestamp":{now},"payloadType":"new","payload":{{"chatId":"{peer}","clientMessageId":"{key}","message":"{text}"}}}}"#
    )
}

/// The request `dlvrd`.
pub fn dlvrd(message_id: u64, peer: &str) -> String {
    let now = now_ms();
    format!(
        r#"{{"type":"request","id":"d{message_id}","timestamp":{now},"payloadType":"dlvrd","payload":{{"chatId":"{peer}","messageId":{message_id}}}}}"#
    )
}

/// The ack of an event.
pub fn ack(id: u64) -> String {
    format!(r#"{{"type":"ack","id":{id}}}"#)
}

/// A frame from the server.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Frame<'a> {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Of a response the request's id, of an event its own.
    #[serde(borrow, default)]
    pub id: Id<'a>,
    /// Of an event the id of the one before.
    pub prev: Option<u64>,
    /// What an event tells.
    #[serde(default)]
    pub event_type: EventType,
    /// The payload's fields.
    #[serde(borrow, default)]
    pub payload: Payload<'a>,
    /// Why a request failed.
    #[serde(borrow)]
    pub error: Option<Failure<'a>>,
}

/// The kinds of frame that a server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An answer.
    Response,
    /// An event.
    Event,
}

/// The events that the generator knows.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventType {
    /// A message has come.
    New,
    /// The peer has received.
    Dlvrd,
    /// The peer has read.
    Read,
    /// The peer has taken a message back.
    Delete,
    /// The log no longer reaches back.
    Resync,
    /// Anything else.
    #[default]
    #[serde(other)]
    Other,
}

/// The fields of all payloads together.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Payload<'a> {
    /// The other one in the chat.
    pub chat_id: Option<&'a str>,
    /// A message's number in its chat.
    pub message_id: Option<u64>,
    /// The sender's key of a message.
    pub client_message_id: Option<&'a str>,
    /// A message's text.
    pub message: Option<&'a str>,
    /// How many messages are unread.
    pub missed: Option<u64>,
}

impl Payload<'_> {
    /// The key as the generator gave it.
    pub fn key(&self) -> Option<u64> {
        self.client_message_id?.parse().ok()
    }
}

/// An error response.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure<'a> {
    /// The stable code.
    pub code: &'a str,
    /// What is wrong, for people; may hold escapes, so it is copied.
    pub message: Option<String>,
    /// Milliseconds after which to try again.
    pub retry_after: Option<u64>,
}

/// An id: a string in responses, a number in events.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Id<'a> {
    /// There is none.
    #[default]
    None,
    /// An event's.
    Number(u64),
    /// A response's.
    Text(&'a str),
}

/// What a response answers, by the id that the generator gave its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// The message with that key.
    New(u64),
    /// The report of that message.
    Dlvrd(u64),
    /// The ack of that event.
    Ack(u64),
}

impl Id<'_> {
    /// What a response with this id answers; `None` if the generator never gave such an id.
    pub fn answers(self) -> Option<Answered> {
        let Self::Text(text) = self else { return None };
        if let Some(key) = text.strip_prefix('n') {
            key.parse().ok().map(Answered::New)
        } else if let Some(message_id) = text.strip_prefix('d') {
            message_id.parse().ok().map(Answered::Dlvrd)
        } else {
            text.parse().ok().map(Answered::Ack)
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Id<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IdVisitor)
    }
}

struct IdVisitor;

impl<'de> Visitor<'de> for IdVisitor {
    type Value = Id<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, a string without escapes, or null")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Id::Number(number))
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Id::Text(text))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(Id::None)
    }
}

#[cfg(test)]
mod tests {
    use herald_proto::frame::{ClientFrame, Request};

    use super::*;

    #[test]
    fn what_is_written_the_service_reads() {
        let ClientFrame::Request { id, request: Request::New(new), .. } =
            ClientFrame::parse(&new(7, "bob", "hello")).unwrap()
        else {
            panic!("not a new")
        };
        assert_eq!(Id::Text(id.as_str()).answers(), Some(Answered::New(7)));
        assert_eq!((new.chat_id.as_str(), new.client_message_id.as_str()), ("bob", "7"));
        assert_eq!(new.message.as_deref(), Some("hello"));

        let ClientFrame::Request { id, request: Request::Dlvrd(mark), .. } =
            ClientFrame::parse(&dlvrd(12, "alice")).unwrap()
        else {
            panic!("not a dlvrd")
        };
        assert_eq!(Id::Text(id.as_str()).answers(), Some(Answered::Dlvrd(12)));
        assert_eq!(mark.message_id.map(herald_proto::MessageId::get), Some(12));

        let parsed = ClientFrame::parse(&ack(44)).unwrap();
        assert_eq!(parsed, ClientFrame::Ack(herald_proto::EventId(44)));
    }

    #[test]
    fn what_the_service_writes_is_read() {
        let text = r#"{"id":5,"prev":3,"type":"event","timestamp":1,"eventType":"new","payload":{"chatId":"a",
            "messageId":2,"clientMessageId":"9","message":"hi","missed":4}}"#;
        let frame: Frame<'_> = serde_json::from_str(text).unwrap();
        assert_eq!((frame.kind, frame.event_type), (Kind::Event, EventType::New));
        assert_eq!((frame.id, frame.prev), (Id::Number(5), Some(3)));
        assert_eq!((frame.payload.message_id, frame.payload.key()), (Some(2), Some(9)));
        assert_eq!((frame.payload.message, frame.payload.missed), (Some("hi"), Some(4)));

        let text = r#"{"type":"response","timestamp":1,"id":"44"}"#;
        let frame: Frame<'_> = serde_json::from_str(text).unwrap();
        assert_eq!(frame.id.answers(), Some(Answered::Ack(44)));

        let text = r#"{"type":"response","id":null,"error":{"code":"rate_limited","message":"\"é\"","retryAfter":9}}"#;
        let frame: Frame<'_> = serde_json::from_str(text).unwrap();
        assert_eq!(frame.id, Id::None);
        let failure = frame.error.unwrap();
        assert_eq!((failure.code, failure.retry_after), ("rate_limited", Some(9)));
        assert_eq!(failure.message.as_deref(), Some("\"é\""));

        let text = r#"{"type":"event","eventType":"online","payload":{"userId":"b"}}"#;
        let frame: Frame<'_> = serde_json::from_str(text).unwrap();
        assert_eq!((frame.event_type, frame.id), (EventType::Other, Id::None));
    }
}
