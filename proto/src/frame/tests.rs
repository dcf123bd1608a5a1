//! Frames as the examples show them, and as nobody should send them.

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

#[test]
fn an_events_type_is_read_where_the_service_writes_it_and_not_in_what_users_write() {
    let arrived = |message: &str| {
        let arrived = json!({"messageId": 1, "chatId": "User1", "clientMessageId": "k",
            "missed": 1, "message": message});
        EventBody::New(serde_json::from_value(arrived).unwrap())
    };
    let typing = EventBody::Typing(Typing { chat_id: UserId::new("User1").unwrap() });
    for (body, expected) in [
        (arrived("hi"), "new"),
        (arrived(r#""eventType":"read""#), "new"),
        (typing, "typing"),
        (EventBody::Resync, "resync"),
    ] {
        let text = to_text(&Event::new(i64::MAX, body)).unwrap();
        assert_eq!(event_type(&text), Some(expected));
        let sent = with_id(&text, EventId(u64::MAX), EventId(u64::MAX)).unwrap();
        assert_eq!(event_type(&sent), Some(expected), "{sent}");
    }
    let late = format!("{{\"a\":\"{}\",\"eventType\":\"new\"}}", "é".repeat(100));
    for text in [late.as_str(), "", "{}", "{\"eventType\":1}"] {
        assert_eq!(event_type(text), None);
    }
}
