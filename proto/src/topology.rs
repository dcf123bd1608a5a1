//! The numbers that gateways and workers must agree on. Workers write them once to the broker; everyone reads them.

use serde::{Deserialize, Serialize};

use crate::{Chat, UserId, subject};

/// How the work and the logs are divided. Changing it needs a drain: it decides where a chat's frames go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Number of partitions of `FRAMES`.
    pub partitions: u16,
    /// Number of event streams.
    pub event_streams: u16,
}

impl std::fmt::Display for Topology {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} partitions and {} event streams", self.partitions, self.event_streams)
    }
}

impl Topology {
    /// The partition that keeps a chat's frames in order.
    pub fn partition(&self, chat: &Chat) -> u16 {
        subject::partition(chat, self.partitions)
    }

    /// The event stream with a user's log.
    pub fn event_stream(&self, user: &UserId) -> u16 {
        subject::event_stream(user, self.event_streams)
    }

    /// Where a user's events are published.
    pub fn event_subject(&self, user: &UserId) -> String {
        subject::event(self.event_stream(user), user)
    }
}
