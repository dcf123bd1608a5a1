//! What gateways and workers tell each other over the broker. Not seen by clients.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    DeviceId, RequestId, UserId,
    frame::Request,
    telemetry::{Traceparent, lenient},
};

/// Clients' requests on their way to a worker, as many of one partition as were waiting at one gateway: the body of
/// a message in `FRAMES`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bundle {
    /// The gateway that holds the requests.
    pub gateway: String,
    /// The requests, in order.
    pub commands: Vec<Command>,
}

/// The most commands in a bundle.
pub const MAX_COMMANDS: usize = 256;

impl Bundle {
    /// The same as JSON, from commands that are JSON already.
    pub fn join<'a>(gateway: &str, commands: impl Iterator<Item = &'a [u8]> + Clone) -> Vec<u8> {
        let gateway = serde_json::Value::from(gateway).to_string();
        let size = commands.clone().fold(gateway.len(), |size, command| size + command.len() + 1);
        let mut bundle = Vec::with_capacity(size + br#"{"gateway":,"commands":[]}"#.len());
        bundle.extend(br#"{"gateway":"#);
        bundle.extend(gateway.into_bytes());
        bundle.extend(br#","commands":["#);
        for (n, command) in commands.enumerate() {
            if n > 0 {
                bundle.push(b',');
            }
            bundle.extend(command);
        }
        bundle.extend(b"]}");
        bundle
    }
}

/// A client's request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// The authenticated sender.
    pub from: UserId,
    /// The session at the gateway.
    pub session: u64,
    /// The client's id of the request.
    pub id: RequestId,
    /// The sender's own clock, in milliseconds since the Unix epoch.
    pub sent_at: i64,
    /// When it came to its gateway, by the gateway's clock, in milliseconds since the Unix epoch; 0 if it does not say.
    #[serde(default)]
    pub received_at: i64,
    /// The W3C trace context of its publishing.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<Traceparent>,
    /// What is asked.
    pub request: Request,
}

/// One worker's answers to one gateway, as many as a batch gave: the body of a message on `reply.<gateway>`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Replies<'a, F = &'a RawValue>(#[serde(borrow)] pub Vec<Reply<'a, F>>);

/// The answer to one [`Command`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Reply<'a, F = &'a RawValue> {
    /// The session that asked.
    pub session: u64,
    /// The client's id of the request.
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    /// The response frame: what a worker has to say, or what a gateway sends as it came.
    pub frame: F,
}

/// What gateways tell a user's sessions directly on `live.<user>`; never stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// A frame for every session of the user: `typing`, `online`, `offline`.
    Frame(Box<RawValue>),
    /// A session of this device was opened; older sessions of it give way.
    Opened {
        /// The device.
        device: DeviceId,
        /// When, in milliseconds since the Unix epoch by the new session's gateway.
        at: i64,
        /// The gateway of the new session.
        gateway: String,
        /// The new session there.
        session: u64,
    },
}

/// A worker says that it is alive: the body of a message on `workers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The worker, by a name of its own for every start.
    pub worker: String,
    /// Whether it goes, and others should take its share at once.
    pub leaving: bool,
}

/// A gateway's lease: the value of its key in `LEASES`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// How long it lasts if it is not renewed, in milliseconds.
    pub lasts_ms: u64,
}

/// Whom users share a chat with: the answer to a request on `contacts`, whose body is a JSON array of user ids. In their
/// order, each one's contacts, newest chats first, bounded. The last of them may be left out: they are to be asked for again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Contacts(pub Vec<Vec<UserId>>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        frame::{Answer, Response},
        payload::Mark,
    };

    #[test]
    fn golden_bytes_of_a_bundle() {
        let command = Command {
            from: UserId::new("User2").unwrap(),
            session: 7,
            id: RequestId::new("101").unwrap(),
            sent_at: 1_700_200_000_000,
            received_at: 1_700_200_000_001,
            traceparent: None,
            request: Request::Read(Mark {
                chat_id: UserId::new("User1").unwrap(),
                message_id: None,
            }),
        };
        let text = serde_json::to_string(&command).unwrap();
        assert_eq!(
            text,
            r#"{"from":"User2","session":7,"id":"101","sent_at":1700200000000,"received_at":1700200000001,"request":{"payloadType":"read","payload":{"chatId":"User1"}}}"#
        );
        let bundle = Bundle::join("g\"1", [text.as_bytes(), text.as_bytes()].into_iter());
        let expected = Bundle { gateway: "g\"1".into(), commands: vec![command.clone(), command] };
        assert_eq!(bundle, serde_json::to_vec(&expected).unwrap());
        assert_eq!(serde_json::from_slice::<Bundle>(&bundle).unwrap(), expected);
    }

    #[test]
    fn replies_carry_frames_untouched() {
        let text = r#"[{"session":7,"id":"1\"x","frame":{"type":"response", "id":"1"}}]"#;
        let Replies(replies) = serde_json::from_str::<Replies<'_>>(text).unwrap();
        assert_eq!(replies[0].id, "1\"x");
        assert_eq!(replies[0].frame.get(), r#"{"type":"response", "id":"1"}"#);
        let frame = Response { id: Some("1".into()), timestamp: 2, answer: Answer::Delivered };
        let written = Replies(vec![Reply { session: 7, id: "1".into(), frame: &frame }]);
        let written = serde_json::to_string(&written).unwrap();
        let Replies(replies) = serde_json::from_str::<Replies<'_>>(&written).unwrap();
        assert_eq!(replies[0].frame.get(), serde_json::to_string(&frame).unwrap());
    }
}
