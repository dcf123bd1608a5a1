//! What may be wrong with the service's answers, counted.

use std::ops::AddAssign;

use serde::Serialize;

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident: $label:literal,)*) => {
        /// How often each thing that must not happen has happened, and a few that may.
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
        pub struct Faults {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl AddAssign for Faults {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }
        }

        impl Faults {
            /// Each count and what it says, for people.
            pub fn rows(&self) -> Vec<(&'static str, u64)> {
                vec![$(($label, self.$name)),*]
            }
        }
    };
}

faults! {
    /// Messages that were answered and whose `new` event never came.
    lost_events: "lost: answered, event never came",
    /// Messages whose `dlvrd` event never came, though the recipient has reported them.
    lost_receipts: "lost: receipt never came",
    /// Requests that were never answered.
    unanswered: "never answered",
    /// Messages that were answered and are not in the database.
    unstored: "lost: answered, not in the database",
    /// Messages that came again under another event id or message id.
    duplicate_messages: "duplicate: message under two events",
    /// Receipts that covered nothing new.
    duplicate_receipts: "duplicate: receipt of nothing new",
    /// Responses that nothing waited for.
    stray_responses: "duplicate: response nobody waits for",
    /// Message ids that did not follow their chat's last one.
    disordered_messages: "disorder: message id does not follow",
    /// Event ids that did not increase, though they were not seen before.
    disordered_events: "disorder: event id does not increase",
    /// Events whose `prev` was not the last event's id.
    prev_breaks: "disorder: prev is not the last id",
    /// Events that contradict a response or an earlier event.
    mismatches: "wrong: event contradicts what was known",
    /// Texts that were not the ones sent.
    altered: "wrong: text was altered",
    /// Counts `missed` that were wrong.
    wrong_counts: "wrong: missed",
    /// Frames that can't be read, or that nothing in the protocol explains.
    odd_frames: "wrong: frame can't be explained",
    /// `resync` events.
    resyncs: "resync",
    /// Sessions that ended before the end.
    ended_sessions: "sessions ended early",
    /// Events that came again under the same id: allowed.
    repeated_events: "allowed: event came again",
    /// Messages that were answered with an error, or whose report was: allowed, their client asks again.
    refused: "allowed: message answered with an error",
    /// Messages that were answered with an error and came all the same: allowed if it was `unavailable`.
    refused_but_stored: "allowed: refused, stored all the same",
}

impl Faults {
    /// Whether nothing happened that must not.
    pub fn is_clean(&self) -> bool {
        Self { repeated_events: 0, refused: 0, refused_but_stored: 0, ..*self } == Self::default()
    }
}
