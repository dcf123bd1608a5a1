//! Newtypes for every id, each with its limits checked where it enters the system.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a string was refused as an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The id is empty.
    #[error("must not be empty")]
    Empty,
    /// The id is longer than allowed.
    #[error("must be at most {limit} {unit}")]
    TooLong {
        /// The largest length allowed.
        limit: usize,
        /// What `limit` counts: `bytes` or `characters`.
        unit: &'static str,
    },
    /// The id holds a control character (Unicode category `Cc`).
    #[error("must not hold control characters")]
    Control,
}

fn check_bytes(text: &str, limit: usize) -> Result<(), Invalid> {
    if text.is_empty() {
        Err(Invalid::Empty)
    } else if text.len() > limit {
        Err(Invalid::TooLong { limit, unit: "bytes" })
    } else if text.chars().any(char::is_control) {
        Err(Invalid::Control)
    } else {
        Ok(())
    }
}

fn check_chars(text: &str, limit: usize) -> Result<(), Invalid> {
    if text.is_empty() {
        Err(Invalid::Empty)
    } else if text.len() > limit && text.chars().count() > limit {
        Err(Invalid::TooLong { limit, unit: "characters" })
    } else if text.chars().any(char::is_control) {
        Err(Invalid::Control)
    } else {
        Ok(())
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $check:ident, $limit:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the limits and takes the text as an id.
            ///
            /// # Errors
            /// [`Invalid`] says which limit is broken.
            pub fn new(text: impl AsRef<str>) -> Result<Self, Invalid> {
                let text = text.as_ref();
                $check(text, $limit)?;
                Ok(Self(Arc::from(text)))
            }

            /// The id as the client spelled it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                Self::new(text).map_err(serde::de::Error::custom)
            }
        }
    };
}

text_id! {
    /// A user: any UTF-8 string of 1–128 bytes without control characters.
    UserId, check_bytes, 128
}

text_id! {
    /// One of a user's devices: any UTF-8 string of 1–128 bytes without control characters.
    DeviceId, check_bytes, 128
}

text_id! {
    /// The sender's own key of a message, 1–64 characters, unique per sender: what makes `new` idempotent.
    ClientMessageId, check_chars, 64
}

text_id! {
    /// A client's id of one of its open requests, 1–64 characters.
    RequestId, check_chars, 64
}

impl Default for DeviceId {
    fn default() -> Self {
        Self(Arc::from("default"))
    }
}

/// A message's number within its chat: 1, 2, 3 … without holes, in the order of acceptance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct MessageId(i64);

impl MessageId {
    /// Takes a number as a message id; `None` if it is not positive.
    pub fn new(number: i64) -> Option<Self> {
        (number > 0).then_some(Self(number))
    }

    /// The number itself, always positive.
    pub fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for MessageId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(deserializer)?;
        Self::new(number).ok_or_else(|| serde::de::Error::custom("must be 1 or more"))
    }
}

/// The id of an event in a user's log: its sequence in the `EVENTS` stream. Strictly increasing for a user.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct EventId(pub u64);

impl EventId {
    /// What `prev` says on a user's first event.
    pub const NONE: Self = Self(0);
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which of a chat's two members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The member whose id sorts first, by bytes.
    A,
    /// The member whose id sorts last, by bytes.
    B,
}

impl Side {
    /// The other member.
    pub fn peer(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// A chat is its two members, whoever wrote first: the pair is kept sorted so that both spell it alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Chat {
    a: UserId,
    b: UserId,
}

impl Chat {
    /// The chat between two users; `None` for a user with itself.
    pub fn between(one: &UserId, other: &UserId) -> Option<Self> {
        match one.cmp(other) {
            std::cmp::Ordering::Less => Some(Self { a: one.clone(), b: other.clone() }),
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Greater => Some(Self { a: other.clone(), b: one.clone() }),
        }
    }

    /// The member on that side.
    pub fn member(&self, side: Side) -> &UserId {
        match side {
            Side::A => &self.a,
            Side::B => &self.b,
        }
    }

    /// The side a member is on; `None` for anyone else.
    pub fn side(&self, user: &UserId) -> Option<Side> {
        if *user == self.a {
            Some(Side::A)
        } else if *user == self.b {
            Some(Side::B)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_ids_keep_their_limits() {
        assert!(UserId::new("用户 > * .").is_ok());
        assert!(UserId::new("x".repeat(128)).is_ok());
        assert_eq!(UserId::new(""), Err(Invalid::Empty));
        assert_eq!(
            UserId::new("x".repeat(129)),
            Err(Invalid::TooLong { limit: 128, unit: "bytes" })
        );
        assert_eq!(UserId::new("a\nb"), Err(Invalid::Control));
    }

    #[test]
    fn client_message_ids_count_characters() {
        assert!(ClientMessageId::new("é".repeat(64)).is_ok());
        assert!(ClientMessageId::new("é".repeat(65)).is_err());
    }

    #[test]
    fn both_members_spell_a_chat_alike() {
        let (x, y) = (UserId::new("x").unwrap(), UserId::new("y").unwrap());
        assert_eq!(Chat::between(&x, &y), Chat::between(&y, &x));
        assert_eq!(Chat::between(&x, &x), None);
    }
}
