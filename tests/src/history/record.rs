//! What a device writes down: small, for a long run has millions of them.

use herald_proto::ErrorCode;

use super::User;

/// Milliseconds since the run began: 49 days fit.
pub type Millis = u32;

/// A message's number, under which its sender sends it as often as it must: its `clientMessageId`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u32);

/// Something that a device has done or seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// When.
    pub at: Millis,
    /// What.
    pub what: What,
}

/// What a device can do or see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A session has begun.
    Opened,
    /// The session is over, whoever has ended it.
    Ended,
    /// A request was sent, for the first time or again: then under the same number.
    Sent {
        /// The request's number, unique among all requests of all devices.
        number: u32,
        /// What is asked.
        request: Request,
    },
    /// A request was answered.
    Answered {
        /// The request's number.
        number: u32,
        /// How.
        answer: Answer,
    },
    /// An event has come.
    Got {
        /// Its id.
        id: u64,
        /// The id of the user's event before it, as it says.
        prev: u64,
        /// What it tells.
        event: Event,
    },
    /// The ack of an event was sent.
    Acked(u64),
    /// The log no longer reaches back: what comes next may be further on.
    Resync,
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// A message to `peer`.
    New {
        /// To whom.
        peer: User,
        /// Its key.
        key: Key,
    },
    /// Messages of `peer` were received, up to and including `up_to`, or all so far.
    Dlvrd {
        /// Whose messages.
        peer: User,
        /// Up to which.
        up_to: Option<u32>,
    },
    /// Messages of `peer` were read.
    Read {
        /// Whose messages.
        peer: User,
        /// Up to which.
        up_to: Option<u32>,
    },
    /// A message of one's own is taken back.
    Delete {
        /// Who has got it.
        peer: User,
        /// Its id in the chat.
        message: u32,
    },
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A message is stored.
    Stored {
        /// The id it got.
        message: u32,
        /// The key it was sent under.
        key: Key,
    },
    /// A mark has moved, or was there already.
    Read {
        /// How many messages are left unread.
        missed: u32,
    },
    /// Done, with nothing to tell.
    Done,
    /// Not done, and why not.
    Refused(ErrorCode),
}

/// An event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A message has come from `peer`.
    New {
        /// From whom.
        peer: User,
        /// Its key.
        key: Key,
        /// Its id in the chat.
        message: u32,
        /// How many messages are unread.
        missed: u32,
        /// Whether its text is the one that was sent.
        is_intact: bool,
    },
    /// `peer` has received messages.
    Dlvrd(About),
    /// `peer` has read messages.
    Read(About),
    /// `peer` has taken a message back.
    Delete(About),
}

/// The message that an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct About {
    /// The other one in the chat.
    pub peer: User,
    /// The message's id.
    pub message: u32,
    /// Its key.
    pub key: Key,
}

impl Request {
    /// The other one in the chat.
    pub fn peer(self) -> User {
        match self {
            Self::New { peer, .. }
            | Self::Dlvrd { peer, .. }
            | Self::Read { peer, .. }
            | Self::Delete { peer, .. } => peer,
        }
    }
}

impl Answer {
    /// Whether the client has to ask again.
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Refused(ErrorCode::Unavailable | ErrorCode::RateLimited))
    }
}

impl Event {
    /// The other one in the chat.
    pub fn peer(self) -> User {
        match self {
            Self::New { peer, .. } => peer,
            Self::Dlvrd(about) | Self::Read(about) | Self::Delete(about) => about.peer,
        }
    }
}
