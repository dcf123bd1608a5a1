//! Header names on the broker, and what they say.

use std::fmt::Write;

/// The W3C trace context of what caused the message.
pub const TRACEPARENT: &str = "traceparent";
/// A message's id, by which JetStream drops copies.
pub const MESSAGE_ID: &str = "Nats-Msg-Id";
/// On a dead letter: why the frame can't be applied.
pub const REASON: &str = "Herald-Reason";
/// On a dead letter: the subject the frame came on.
pub const ORIGIN: &str = "Herald-Origin";

/// The length of most message ids of events, in bytes.
const USUAL: usize = 48;

/// The message id of an event, by which JetStream drops copies: an event comes from one place in one partition of
/// `FRAMES`. It ends in when the frame behind it came to its gateway (milliseconds since the Unix epoch): so whoever
/// delivers the event can tell how long it took, without a header more on each.
pub fn event_id(epoch: i64, partition: u16, place: i64, received_at: i64) -> String {
    let mut id = String::with_capacity(USUAL);
    // A string takes all that is written to it.
    let _ = write!(id, "{epoch:x}-{partition}-{place:x}-{received_at:x}");
    id
}

/// When the frame behind an event came to its gateway, by the event's message id.
pub fn received_at(event_id: &str) -> Option<i64> {
    let (_place, received_at) = event_id.rsplit_once('-')?;
    // Ids of earlier versions end in the place.
    let is_whole = event_id.bytes().filter(|byte| *byte == b'-').count() == 3;
    i64::from_str_radix(received_at, 16).ok().filter(|at| is_whole && *at > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_events_message_id_tells_when_its_frame_came() {
        let id = event_id(0x17f, 7, 0x2001, 1_700_200_000_001);
        assert_eq!(id, "17f-7-2001-18bdbd12a01");
        assert_eq!(received_at(&id), Some(1_700_200_000_001));
        assert_eq!(received_at(&event_id(1, 7, 2, 0)), None, "an older gateway's frame");
        assert_eq!(received_at("17f-7-2001"), None, "an older worker's event");
        assert_eq!(received_at("x"), None);
    }
}
