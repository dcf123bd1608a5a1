//! What gateways and workers tell each other over the broker. Not seen by clients.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{DeviceId, RequestId, UserId, frame::Request};

/// A client's request on its way to a worker: the body of a message in `FRAMES`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// The authenticated sender.
    pub from: UserId,
    /// The gateway that holds the request.
    pub gateway: String,
    /// The session there.
    pub session: u64,
    /// The client's id of the request.
    pub id: RequestId,
    /// The sender's own clock, in milliseconds since the Unix epoch.
    pub sent_at: i64,
    /// What is asked.
    #[serde(flatten)]
    pub request: Request,
}

/// One worker's answers to one gateway, as many as a batch gave: the body of a message on `reply.<gateway>`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Replies<'a>(#[serde(borrow)] pub Vec<Reply<'a>>);

/// The answer to one [`Command`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Reply<'a> {
    /// The session that asked.
    pub session: u64,
    /// The client's id of the request.
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    /// The response frame, ready to be sent.
    #[serde(borrow)]
    pub frame: Cow<'a, RawValue>,
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

/// Whom a user shares a chat with: the answer to a request on `contacts`, newest chats first, bounded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Contacts(pub Vec<UserId>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::Mark;

    #[test]
    fn golden_bytes_of_a_command() {
        let command = Command {
            from: UserId::new("User2").unwrap(),
            gateway: "g1".into(),
            session: 7,
            id: RequestId::new("101").unwrap(),
            sent_at: 1_700_200_000_000,
            request: Request::Read(Mark {
                chat_id: UserId::new("User1").unwrap(),
                message_id: None,
            }),
        };
        let text = serde_json::to_string(&command).unwrap();
        assert_eq!(
            text,
            r#"{"from":"User2","gateway":"g1","session":7,"id":"101","sent_at":1700200000000,"payloadType":"read","payload":{"chatId":"User1"}}"#
        );
        assert_eq!(serde_json::from_str::<Command>(&text).unwrap(), command);
    }

    #[test]
    fn replies_carry_frames_untouched() {
        let text = r#"[{"session":7,"id":"1\"x","frame":{"type":"response", "id":"1"}}]"#;
        let Replies(replies) = serde_json::from_str(text).unwrap();
        assert_eq!(replies[0].id, "1\"x");
        assert_eq!(replies[0].frame.get(), r#"{"type":"response", "id":"1"}"#);
    }
}
