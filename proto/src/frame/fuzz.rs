//! Hostile frames: no bytes make the parser panic, overflow its stack or answer at length, and whatever it accepts a
//! worker can read.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::wire::Command;

/// The longest answer to a frame that is refused, in bytes: what it quotes is clipped.
const LONGEST_ANSWER: usize = 2048;

/// Parses a text and holds the parser to its promises.
fn check(text: &str) -> Result<(), TestCaseError> {
    match ClientFrame::parse(text) {
        Err(Refusal { id, error }) => {
            let id = id.map(|id| id.as_str().to_owned());
            let answer = Response { id, timestamp: i64::MIN, answer: Answer::Failed(error) };
            let answer = to_text(&answer).unwrap();
            prop_assert!(answer.len() <= LONGEST_ANSWER, "{} bytes", answer.len());
        }
        Ok(ClientFrame::Request { id, timestamp, request, .. }) => {
            prop_assert!((1..=64).contains(&id.as_str().chars().count()));
            prop_assert!((1..=128).contains(&request.peer().as_str().len()));
            let (from, traceparent) = (UserId::new("me").unwrap(), None);
            let command = Command {
                from,
                session: 1,
                id,
                sent_at: timestamp,
                received_at: 7,
                traceparent,
                request,
            };
            let body = serde_json::to_vec(&command).unwrap();
            match serde_json::from_slice::<Command>(&body) {
                Ok(read) => prop_assert_eq!(read, command),
                Err(error) => prop_assert!(false, "no worker can read it: {error}"),
            }
        }
        Ok(_) => {}
    }
    Ok(())
}

fn examples() -> [String; 7] {
    let attachment = json!({"type": "image", "id": "img123", "filename": "photo.jpg", "url": "http://example.com/p",
        "meta": {"mimetype": "image/jpeg", "width": 1024, "height": 768.5, "size": 204_800, "more": [null, {"a": 1e9}]}});
    [
        json!({"type": "request", "id": "1", "timestamp": 1, "payloadType": "new", "payload": {"chatId": "User2",
            "clientMessageId": "9CD99794", "message": "Check\nout \u{1F980}", "attachments": [attachment]}}),
        json!({"type": "request", "id": "2", "timestamp": 1, "payloadType": "dlvrd",
            "payload": {"chatId": "User1", "messageId": 125}}),
        json!({"type": "request", "id": "3", "timestamp": 1, "payloadType": "read", "payload": {"chatId": "User1"}}),
        json!({"type": "request", "id": "4", "timestamp": 1, "payloadType": "delete",
            "payload": {"chatId": "User2", "messageId": 125, "clientMessageId": "9CD99794"}}),
        json!({"type": "ack", "id": 23}),
        json!({"type": "event", "timestamp": 1, "payloadType": "typing", "payload": {"chatId": "User2"}}),
        json!({"type": "event", "timestamp": 1, "eventType": "offline"}),
    ]
    .map(|frame| frame.to_string())
}

/// A change to a text, at a place given in thousandths of its length.
#[derive(Debug, Clone)]
enum Mutation {
    Replace(usize, u8),
    Insert(usize, Vec<u8>),
    Delete(usize, usize),
    Repeat(usize, usize, usize),
}

/// What JSON and this protocol give a meaning to: met more often than chance would have it.
const WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "\\",
    "\\u0000",
    "\\ud800",
    "null",
    "true",
    "-1",
    "1e400",
    "0.1",
    "18446744073709551616",
    "9223372036854775807",
    "\"id\":\"x\",",
    "\"payload\":{},",
    "\u{202e}",
    "\u{0}",
    "request",
    "new",
];

fn mutation() -> impl Strategy<Value = Mutation> {
    let place = 0..1000_usize;
    let word = prop::sample::select(WORDS).prop_map(|word| word.as_bytes().to_vec());
    prop_oneof![
        (place.clone(), any::<u8>()).prop_map(|(at, byte)| Mutation::Replace(at, byte)),
        (place.clone(), word).prop_map(|(at, word)| Mutation::Insert(at, word)),
        (place.clone(), 1..20_usize).prop_map(|(at, count)| Mutation::Delete(at, count)),
        (place, 1..40_usize, 1..200_usize)
            .prop_map(|(at, len, times)| Mutation::Repeat(at, len, times)),
    ]
}

fn mutate(text: &str, mutations: &[Mutation]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for mutation in mutations {
        let at = |place: usize| place * bytes.len() / 1000;
        match mutation {
            Mutation::Replace(place, byte) => {
                let at = at(*place);
                if let Some(found) = bytes.get_mut(at) {
                    *found = *byte;
                }
            }
            Mutation::Insert(place, word) => {
                let at = at(*place);
                bytes.splice(at..at, word.iter().copied());
            }
            Mutation::Delete(place, count) => {
                let at = at(*place);
                bytes.drain(at..bytes.len().min(at + count));
            }
            Mutation::Repeat(place, length, times) => {
                let at = at(*place);
                let part = bytes[at..bytes.len().min(at + length)].repeat(*times);
                bytes.splice(at..at, part);
            }
        }
    }
    // A text frame is UTF-8 before it comes here.
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Any JSON value.
fn tree() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,20}|.{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map(".{0,8}", inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A frame with some of its fields, at any depth, replaced by any value.
fn grafted() -> impl Strategy<Value = Value> {
    let places = prop::sample::select(
        &[
            "/id",
            "/type",
            "/timestamp",
            "/payloadType",
            "/payload",
            "/payload/chatId",
            "/payload/messageId",
            "/payload/clientMessageId",
            "/payload/message",
            "/payload/attachments",
            "/payload/attachments/0",
            "/payload/attachments/0/id",
            "/payload/attachments/0/meta",
            "/payload/attachments/0/meta/width",
            "/payload/attachments/0/meta/more",
        ][..],
    );
    let grafts = prop::collection::vec((places, tree()), 0..3);
    (prop::sample::select(examples().to_vec()), grafts).prop_map(|(example, grafts)| {
        let mut frame: Value = serde_json::from_str(&example).unwrap();
        for (place, graft) in grafts {
            if let Some(found) = frame.pointer_mut(place) {
                *found = graft;
            }
        }
        frame
    })
}

proptest! {
    // `PROPTEST_CASES` makes them look longer.
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 8, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        check(&String::from_utf8_lossy(&bytes))?;
    }

    #[test]
    fn any_json(tree in tree()) {
        check(&tree.to_string())?;
    }

    #[test]
    fn frames_with_any_json_in_their_fields(frame in grafted()) {
        check(&frame.to_string())?;
    }

    #[test]
    fn frames_with_damaged_text(
        example in prop::sample::select(examples().to_vec()),
        mutations in prop::collection::vec(mutation(), 1..5),
    ) {
        check(&mutate(&example, &mutations))?;
    }

    #[test]
    fn frames_with_any_number_in_them(number in "-?(0|[1-9][0-9]{0,24})(\\.[0-9]{1,24})?([eE][+-]?[0-9]{1,3})?") {
        for example in examples() {
            check(&example.replace("768.5", &number))?;
            check(&example.replace("125", &number))?;
            check(&example.replace(r#""timestamp":1"#, &format!(r#""timestamp":{number}"#)))?;
        }
    }
}

#[test]
fn every_example_is_accepted() {
    for example in examples() {
        assert!(ClientFrame::parse(&example).is_ok(), "{example}");
        check(&example).unwrap();
    }
}

/// As deep as a frame's size allows, in every place: a stack that grew with it would be gone long before.
#[test]
fn depth_is_bounded_wherever_it_is() {
    let new = &examples()[0];
    for depth in (1..200).chain([1_000, 30_000]) {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let closed = format!("{}0{}", open.repeat(depth), close.repeat(depth));
            let unclosed = open.repeat(depth);
            for deep in [closed, unclosed] {
                check(&deep).unwrap();
                check(&format!(r#"{{"unknown":{deep},{}"#, &new[1..])).unwrap();
                check(&format!(r#"{{"type":"ack","id":{deep}}}"#)).unwrap();
                for field in ["1024", "\"User2\"", "\"image\"", "\"new\""] {
                    check(&new.replace(field, &deep)).unwrap();
                }
            }
        }
    }
}
