//! The payloads of requests, responses and events, field for field as clients see them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{ClientMessageId, MessageId, UserId};

/// A file, image or other thing sent with a message. The bytes themselves live at `url`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// What it is, for example `image`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The sender's id of it.
    pub id: String,
    /// Its file name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    /// Where it can be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// `mimetype`, `width` and `height` in pixels, `size` in bytes; may hold more, which is kept.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub meta: Map<String, Value>,
}

/// `new`: send a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct New {
    /// To whom.
    pub chat_id: UserId,
    /// The sender's key of the message: sending it again is safe.
    pub client_message_id: ClientMessageId,
    /// The text; may be absent when there are attachments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The attachments; may be absent when there is a text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
}

/// `dlvrd` and `read`: everything of the peer's up to and including `message_id` was received, or read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mark {
    /// Whose messages.
    pub chat_id: UserId,
    /// Up to which; none means all so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<MessageId>,
}

/// `delete`: take a message of one's own back, for everyone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delete {
    /// The peer in whose chat the message is.
    pub chat_id: UserId,
    /// Which message.
    pub message_id: MessageId,
    /// Its key, checked when given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_message_id: Option<ClientMessageId>,
}

/// `typing`, both ways: `chat_id` is the other party as seen by whoever holds the frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Typing {
    /// The other party.
    pub chat_id: UserId,
}

/// The response to `new`: the message is stored under this id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    /// Its number in the chat.
    pub message_id: MessageId,
    /// The key it was sent under.
    pub client_message_id: ClientMessageId,
}

/// The response to `read`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReadUpTo {
    /// The chat that was read.
    pub chat_id: UserId,
    /// Up to which message; absent when the peer has never written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<MessageId>,
    /// That message's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_message_id: Option<ClientMessageId>,
    /// How many of the peer's messages in this chat are still unread and not deleted.
    pub missed: i64,
}

/// The event `new`: a message has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Arrived {
    /// Who wrote it.
    pub chat_id: UserId,
    /// Its number in the chat.
    pub message_id: MessageId,
    /// The key the sender gave it.
    pub client_message_id: ClientMessageId,
    /// The text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The attachments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
    /// How many of the sender's messages the recipient has not read, this one included.
    pub missed: i64,
}

/// The event `dlvrd`: the peer's device has everything up to this message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delivered {
    /// Who received.
    pub chat_id: UserId,
    /// The last of the receiver-of-this-event's messages covered.
    pub message_id: MessageId,
    /// That message's key.
    pub client_message_id: ClientMessageId,
    /// When, in milliseconds since the Unix epoch, by the service's clock.
    pub timestamp: i64,
}

/// The events `read` and `delete`: the peer has read up to this message, or deleted it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct About {
    /// Who did it.
    pub chat_id: UserId,
    /// The message concerned.
    pub message_id: MessageId,
    /// Its key.
    pub client_message_id: ClientMessageId,
}

/// The events `online` and `offline`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Presence {
    /// Whose state changed.
    pub user_id: UserId,
}
