//! What the database holds at the end.

use super::{Chat, Key, User};

/// All chats and messages.
#[derive(Debug, Default)]
pub struct Stored {
    /// The chats.
    pub chats: Vec<StoredChat>,
    /// The messages.
    pub messages: Vec<StoredMessage>,
}

/// A chat's row.
#[derive(Debug, Clone, Copy)]
pub struct StoredChat {
    /// Which chat.
    pub chat: Chat,
    /// The id of its last message.
    pub last: u32,
    /// What the member with the lower number has.
    pub low: StoredMember,
    /// What the member with the higher number has.
    pub high: StoredMember,
}

/// A member's counters.
#[derive(Debug, Clone, Copy, Default)]
pub struct StoredMember {
    /// Up to which message it has read.
    pub read: u32,
    /// Up to which message it has received.
    pub delivered: u32,
    /// How many messages it has not read.
    pub missed: u32,
}

/// A message's row.
#[derive(Debug, Clone, Copy)]
pub struct StoredMessage {
    /// In which chat.
    pub chat: Chat,
    /// Its id there.
    pub message: u32,
    /// Who has sent it.
    pub sender: User,
    /// Under which key.
    pub key: Key,
    /// Whether it was taken back.
    pub is_deleted: bool,
}

impl StoredChat {
    /// A member's counters.
    pub fn member(&self, user: User) -> StoredMember {
        if user == self.chat.low { self.low } else { self.high }
    }
}
