//! The frames of the client protocol: JSON text over one WebSocket.
//!
//! [`ClientFrame::parse`] takes what a client sent; [`Response`] and [`Event`] are what it gets. An event lies in
//! its user's log without `id` and `prev`, which only the log knows: [`with_id`] puts them in on the way out.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    Error, EventId, RequestId, UserId,
    payload::{About, Arrived, Delete, Delivered, Mark, New, Presence, ReadUpTo, Stored, Typing},
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
        Ok(ClientFrame::Request { id, timestamp, request })
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

fn check_content(new: &New) -> Result<(), &'static str> {
    match &new.message {
        Some(text) if text.contains('\0') => Err("message: must not hold the character U+0000"),
        None if new.attachments.is_empty() => Err("message: needs a text or attachments"),
        Some(text) if text.is_empty() && new.attachments.is_empty() => {
            Err("message: needs a text or attachments")
        }
        _ => Ok(()),
    }
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
    let rest = body.strip_prefix('{')?;
    Some(format!("{{\"id\":{id},\"prev\":{prev},{rest}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::ErrorCode;

    fn value(frame: &impl Serialize) -> Value {
        serde_json::to_value(frame).unwrap()
    }

    fn refusal(frame: Value) -> Refusal {
        ClientFrame::parse(&frame.to_string()).unwrap_err()
    }

    #[test]
    fn unknown_fields_and_field_order_never_matter() {
        let frame = r#"{"zzz":[1],"payload":{"x":1,"messageId":125,"chatId":"User1"},"payloadType":"dlvrd",
            "id":"101","timestamp":1700200000000,"type":"request"}"#;
        let ClientFrame::Request { id, request: Request::Dlvrd(mark), .. } =
            ClientFrame::parse(frame).unwrap()
        else {
            panic!("not a dlvrd request")
        };
        assert_eq!(id.as_str(), "101");
        assert_eq!(mark.message_id.map(MessageIdNumber::number), Some(125));
    }

    trait MessageIdNumber {
        fn number(self) -> i64;
    }
    impl MessageIdNumber for crate::MessageId {
        fn number(self) -> i64 {
            self.get()
        }
    }

    #[test]
    fn a_client_event_is_named_by_either_field() {
        for name in ["payloadType", "eventType"] {
            let frame = json!({"type": "event", "timestamp": 1, name: "typing", "payload": {"chatId": "User2"}});
            assert!(
                matches!(ClientFrame::parse(&frame.to_string()), Ok(ClientFrame::Typing(_))),
                "{name}"
            );
            let frame = json!({"type": "event", "timestamp": 1, name: "offline"});
            assert_eq!(ClientFrame::parse(&frame.to_string()), Ok(ClientFrame::Offline));
        }
    }

    #[test]
    fn a_bad_field_is_named_and_the_id_kept() {
        let base = json!({"type": "request", "timestamp": 1, "id": "7", "payloadType": "new",
            "payload": {"chatId": "u", "clientMessageId": "k", "message": "hi"}});
        let cases = [
            ("/payload/chatId", json!(""), "chatId"),
            ("/payload/chatId", json!(5), "chatId"),
            ("/payload/chatId", json!("a\u{7}"), "chatId"),
            ("/payload/clientMessageId", json!("x".repeat(65)), "clientMessageId"),
            ("/payload/message", json!(""), "message"),
            ("/payload/message", json!("a\0b"), "message"),
            ("/payloadType", json!("nope"), "payloadType"),
            ("/timestamp", json!("late"), "timestamp"),
            ("/payload", json!(null), "null"),
        ];
        for (pointer, bad, named) in cases {
            let mut frame = base.clone();
            *frame.pointer_mut(pointer).unwrap() = bad;
            let refusal = refusal(frame);
            assert_eq!(refusal.error.code, ErrorCode::BadRequest);
            assert!(refusal.error.message.contains(named), "{pointer}: {}", refusal.error.message);
            assert_eq!(refusal.id.unwrap().as_str(), "7", "{pointer}");
        }
    }

    #[test]
    fn an_unreadable_id_is_answered_with_null() {
        for frame in [
            "",
            "nonsense",
            "[]",
            r#"{"type":"request","id":5,"timestamp":1}"#,
            r#"{"type":"request"}"#,
        ] {
            assert_eq!(ClientFrame::parse(frame).unwrap_err().id, None, "{frame}");
        }
        let text = to_text(&Response {
            id: None,
            timestamp: 1,
            answer: Answer::Failed(Error::bad_request("x")),
        });
        assert!(text.unwrap().contains(r#""id":null"#));
    }

    #[test]
    fn responses_have_the_fields_of_the_examples() {
        let key = crate::ClientMessageId::new("9CD9").unwrap();
        let message_id = crate::MessageId::new(125).unwrap();
        let answer = |answer| value(&Response { id: Some("1".into()), timestamp: 5, answer });
        assert_eq!(
            answer(Answer::Stored(Stored { message_id, client_message_id: key.clone() })),
            json!({"type": "response", "timestamp": 5, "id": "1",
                "payload": {"messageId": 125, "clientMessageId": "9CD9"}})
        );
        assert_eq!(
            answer(Answer::Delivered),
            json!({"type": "response", "timestamp": 5, "id": "1", "payload": {}})
        );
        assert_eq!(answer(Answer::Done), json!({"type": "response", "timestamp": 5, "id": "1"}));
        let read = ReadUpTo {
            chat_id: UserId::new("User1").unwrap(),
            message_id: Some(message_id),
            client_message_id: Some(key),
            missed: 0,
        };
        assert_eq!(
            answer(Answer::Read(read)),
            json!({"type": "response", "timestamp": 5, "id": "1", "payloadType": "read",
                "payload": {"chatId": "User1", "messageId": 125, "clientMessageId": "9CD9", "missed": 0}})
        );
        assert_eq!(
            answer(Answer::Failed(Error::rate_limited(250))),
            json!({"type": "response", "timestamp": 5, "id": "1",
                "error": {"code": "rate_limited", "message": "too many frames", "retryAfter": 250}})
        );
    }

    #[test]
    fn golden_bytes_of_an_event_with_its_place_in_the_log() {
        let about = About {
            chat_id: UserId::new("User2").unwrap(),
            message_id: crate::MessageId::new(125).unwrap(),
            client_message_id: crate::ClientMessageId::new("k").unwrap(),
        };
        let body = to_text(&Event::new(7, EventBody::Read(about))).unwrap();
        assert_eq!(
            with_id(&body, EventId(23), EventId(21)).unwrap(),
            r#"{"id":23,"prev":21,"type":"event","timestamp":7,"eventType":"read","payload":{"chatId":"User2","messageId":125,"clientMessageId":"k"}}"#
        );
        assert_eq!(
            to_text(&Event::new(7, EventBody::Resync)).unwrap(),
            r#"{"type":"event","timestamp":7,"eventType":"resync"}"#
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            let _ = ClientFrame::parse(&text);
        }

        #[test]
        fn no_json_makes_the_parser_panic_or_answer_at_length(
            kind in prop_oneof!["request", "event", "ack", ".{0,200}"],
            payload_type in prop_oneof!["new", "dlvrd", "read", "delete", ".{0,300}"],
            id in ".{0,80}", chat in ".{0,200}", extra in ".*",
        ) {
            let frame = json!({"type": kind, "id": id, "timestamp": 1, "payloadType": payload_type,
                "payload": {"chatId": chat, "clientMessageId": extra, "message": extra}});
            if let Err(refusal) = ClientFrame::parse(&frame.to_string()) {
                prop_assert!(refusal.error.message.len() < 1200);
            }
        }
    }
}
