//! Frames as the fleet writes and reads them.

use herald_proto::{ErrorCode, clock::now_ms};

use crate::{
    history::{Answer, Event, Key, Request, User, record::About},
    load::wire::{EventType, Frame, Id, Kind, Payload},
};

/// A frame from the server, as far as a history cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// The answer to a request, and after how many milliseconds to send it again.
    Answer(u32, Answer, Option<u64>),
    /// The answer to an ack.
    Acked(u64),
    /// An event.
    Event(u64, u64, Event),
    /// The log no longer reaches back.
    Resync,
    /// Presence and typing.
    Passing,
}

/// The text of a message.
pub fn text_of(key: Key) -> String {
    format!("This is message {} and nothing else, whoever passes it on.", key.0)
}

/// A request's frame.
pub fn write(number: u32, request: Request) -> String {
    let up_to = |up_to: Option<u32>| {
        up_to.map_or(String::new(), |up_to| format!(r#","messageId":{up_to}"#))
    };
    let (kind, rest) = match request {
        Request::New { key, .. } => {
            ("new", format!(r#","clientMessageId":"{}","message":"{}""#, key.0, text_of(key)))
        }
        Request::Dlvrd { up_to: mark, .. } => ("dlvrd", up_to(mark)),
        Request::Read { up_to: mark, .. } => ("read", up_to(mark)),
        Request::Delete { message, .. } => ("delete", up_to(Some(message))),
    };
    format!(
        r#"{{"type":"request","id":"q{number}","timestamp":{now},"payloadType":"{kind}","payload":{{"chatId":"{peer}"{rest}}}}}"#,
        now = now_ms(),
        peer = request.peer(),
    )
}

/// Reads a frame; `None` if nothing in the protocol explains it.
pub fn read(text: &str) -> Option<Read> {
    let frame: Frame<'_> = serde_json::from_str(text).ok()?;
    match frame.kind {
        Kind::Response => {
            let Id::Text(id) = frame.id else { return None };
            let Some(number) = id.strip_prefix('q') else {
                return Some(Read::Acked(id.parse().ok()?));
            };
            let number = number.parse().ok()?;
            if let Some(error) = &frame.error {
                let code: ErrorCode = serde_json::from_str(&format!("\"{}\"", error.code)).ok()?;
                return Some(Read::Answer(number, Answer::Refused(code), error.retry_after));
            }
            Some(Read::Answer(number, answer(&frame.payload)?, None))
        }
        Kind::Event => match (frame.id, frame.event_type) {
            (Id::None, EventType::Resync) => Some(Read::Resync),
            (Id::None, EventType::Other) => Some(Read::Passing),
            (Id::Number(id), kind) => {
                Some(Read::Event(id, frame.prev?, event(kind, &frame.payload)?))
            }
            _ => None,
        },
    }
}

/// Which kind of answer it is, its fields tell: the checker knows which it must be.
fn answer(payload: &Payload<'_>) -> Option<Answer> {
    Some(match (payload.missed, payload.client_message_id) {
        (Some(missed), _) => Answer::Read { missed: missed.try_into().ok()? },
        (None, Some(key)) => Answer::Stored {
            message: payload.message_id?.try_into().ok()?,
            key: Key(key.parse().ok()?),
        },
        (None, None) => Answer::Done,
    })
}

fn event(kind: EventType, payload: &Payload<'_>) -> Option<Event> {
    let about = About {
        peer: User::named(payload.chat_id?)?,
        message: payload.message_id?.try_into().ok()?,
        key: Key(payload.client_message_id?.parse().ok()?),
    };
    Some(match kind {
        EventType::New => Event::New {
            peer: about.peer,
            key: about.key,
            message: about.message,
            missed: payload.missed?.try_into().ok()?,
            is_intact: payload.message == Some(text_of(about.key).as_str()),
        },
        EventType::Dlvrd => Event::Dlvrd(about),
        EventType::Read => Event::Read(about),
        EventType::Delete => Event::Delete(about),
        EventType::Resync | EventType::Other => return None,
    })
}

#[cfg(test)]
mod tests {
    use herald_proto::frame::{ClientFrame, Request as Asked};

    use super::*;

    const BOB: User = User(2);

    #[test]
    fn what_is_written_the_service_reads() {
        let asked = |request| match ClientFrame::parse(&write(7, request)).unwrap() {
            ClientFrame::Request { id, request, .. } if id.as_str() == "q7" => request,
            other => panic!("{other:?}"),
        };
        let Asked::New(new) = asked(Request::New { peer: BOB, key: Key(5) }) else { panic!() };
        assert_eq!((new.chat_id.as_str(), new.client_message_id.as_str()), ("u2", "5"));
        assert_eq!(new.message, Some(text_of(Key(5))));
        let Asked::Read(all) = asked(Request::Read { peer: BOB, up_to: None }) else { panic!() };
        assert!(all.message_id.is_none());
        let request = Request::Dlvrd { peer: BOB, up_to: Some(3) };
        let Asked::Dlvrd(mark) = asked(request) else { panic!() };
        assert_eq!(mark.message_id.map(herald_proto::MessageId::get), Some(3));
        let request = Request::Delete { peer: BOB, message: 4 };
        let Asked::Delete(delete) = asked(request) else { panic!() };
        assert_eq!(delete.message_id.get(), 4);
    }

    #[test]
    fn what_the_service_writes_is_read() {
        let about = About { peer: BOB, message: 3, key: Key(5) };
        let new = format!(
            r#"{{"id":9,"prev":4,"type":"event","timestamp":1,"eventType":"new","payload":{{"chatId":"u2",
            "messageId":3,"clientMessageId":"5","message":"{}","missed":1}}}}"#,
            text_of(Key(5))
        );
        let event = Event::New { peer: BOB, key: Key(5), message: 3, missed: 1, is_intact: true };
        assert_eq!(read(&new), Some(Read::Event(9, 4, event)));
        let text = r#"{"id":9,"prev":0,"type":"event","timestamp":1,"eventType":"read",
            "payload":{"chatId":"u2","messageId":3,"clientMessageId":"5"}}"#;
        assert_eq!(read(text), Some(Read::Event(9, 0, Event::Read(about))));
        let text = r#"{"type":"response","id":"q4","timestamp":1,"payload":{"messageId":3,"clientMessageId":"5"}}"#;
        let stored = Answer::Stored { message: 3, key: Key(5) };
        assert_eq!(read(text), Some(Read::Answer(4, stored, None)));
        let text = r#"{"type":"response","id":"q4","timestamp":1,"error":{"code":"unavailable","message":"x","retryAfter":9}}"#;
        let refused = Answer::Refused(ErrorCode::Unavailable);
        assert_eq!(read(text), Some(Read::Answer(4, refused, Some(9))));
        let text = r#"{"type":"response","id":"9","timestamp":1}"#;
        assert_eq!(read(text), Some(Read::Acked(9)));
        let text =
            r#"{"type":"event","timestamp":1,"eventType":"online","payload":{"userId":"u2"}}"#;
        assert_eq!(read(text), Some(Read::Passing));
    }
}
