//! How a run went, for people.

use std::fmt::{self, Display, Formatter};

use herald_proto::{UserId, subject};

use super::Outcome;
use crate::history::{Chat, Millis};

/// The partition of a chat of the fleet.
pub fn partition(chat: Chat, partitions: u16) -> u16 {
    let user = |name: String| UserId::new(name).ok();
    let chat = user(chat.low.name()).zip(user(chat.high.name()));
    let chat = chat.and_then(|(low, high)| herald_proto::Chat::between(&low, &high));
    chat.map_or(0, |chat| subject::partition(&chat, partitions))
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut times = self.failovers.clone();
        times.sort_unstable();
        let seconds = |millis: Option<&Millis>| f64::from(millis.copied().unwrap_or(0)) / 1000.0;
        let (median, max) = (seconds(times.get(times.len() / 2)), seconds(times.last()));
        writeln!(
            f,
            "  {:<48}{:>10}   p50 {median:.2} s, max {max:.2} s",
            "failovers: worker killed to all answering",
            times.len()
        )?;
        self.verdict.fmt(f)
    }
}
