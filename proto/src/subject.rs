//! How every subject, stream, consumer and key is spelled, and read back. Nothing else in Herald formats a subject.
//!
//! An id becomes one token: ASCII letters, digits, `_` and `-` stand for themselves, every other byte becomes `=XX`
//! in upper-case hex. `=` is legal in subjects and in key-value keys and never stands for itself, so two ids never
//! share a token, and no id can hold a `.`, `*`, `>` or space that the broker would act upon.

use std::fmt::Write;

use crate::{Chat, DeviceId, Side, UserId};

/// The stream of clients' requests.
pub const FRAMES: &str = "FRAMES";
/// All subjects of [`FRAMES`].
pub const FRAMES_ALL: &str = "frames.*";
/// The stream of frames that can never be applied.
pub const DEADLETTER: &str = "DEADLETTER";
/// All subjects of [`DEADLETTER`].
pub const DEADLETTER_ALL: &str = "deadletter.>";
/// The key-value bucket of devices' cursors.
pub const CURSORS: &str = "CURSORS";
/// The key-value bucket of gateways' leases.
pub const LEASES: &str = "LEASES";
/// The key-value bucket of which user is online through which gateway.
pub const SESSIONS: &str = "SESSIONS";
/// The key-value bucket of the topology.
pub const TOPOLOGY: &str = "TOPOLOGY";
/// The key in [`TOPOLOGY`].
pub const TOPOLOGY_KEY: &str = "topology";
/// Where gateways ask workers for users' contacts; the body is a JSON array of user ids.
pub const CONTACTS: &str = "contacts";
/// The queue group of workers on [`CONTACTS`], and the priority group of their partition consumers.
pub const WORKERS: &str = "workers";
/// Where workers tell each other that they are alive.
pub const HEARTBEATS: &str = "workers";
/// Where answers to gateways come in. Each role has a prefix of its own, so that the broker's permissions can keep one
/// from hearing what another was answered.
pub const GATEWAY_INBOX: &str = "_INBOX_gateway";
/// Where answers to workers come in.
pub const WORKER_INBOX: &str = "_INBOX_worker";
/// Where answers to operators' commands come in.
pub const OPERATOR_INBOX: &str = "_INBOX_operator";
/// What `RePublish` makes of `events.<s>.<user>`.
pub const LIVE_FROM_EVENTS: &str = "live.{{wildcard(1)}}";

/// The key in [`TOPOLOGY`] that says up to which id an event stream's logs are void; missing if they never were.
pub fn jumped_key(stream: u16) -> String {
    format!("jumped.{stream}")
}

/// Where answers to one connection come in, which no other knows; `role` is one of the prefixes above.
pub fn inbox(role: &str, secret: u64) -> String {
    format!("{role}.{secret:016x}")
}

/// One id as one token.
pub fn token(id: &str) -> String {
    let mut token = String::with_capacity(id.len());
    push_token(&mut token, id);
    token
}

fn push_token(out: &mut String, id: &str) {
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' {
            out.push(char::from(byte));
        } else {
            // Writing to a String can't fail.
            let _ = write!(out, "={byte:02X}");
        }
    }
}

/// The id that a token spells; `None` if it is not one that [`token`] writes.
pub fn untoken(token: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first == b'=' {
            let (hex, tail) = rest.split_at_checked(2)?;
            rest = tail;
            if hex.iter().any(u8::is_ascii_lowercase) {
                return None;
            }
            bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
        } else {
            bytes.push(first);
        }
    }
    let id = String::from_utf8(bytes).ok()?;
    (self::token(&id) == token).then_some(id)
}

fn joined(prefix: &str, ids: &[&str]) -> String {
    let mut subject =
        String::with_capacity(prefix.len() + ids.iter().map(|id| id.len() + 1).sum::<usize>());
    subject.push_str(prefix);
    for id in ids {
        subject.push('.');
        push_token(&mut subject, id);
    }
    subject
}

/// Which of `count` partitions (or event streams) a hash falls into. Stable: it is part of the stored topology.
fn slot(hash: u64, count: u16) -> u16 {
    u16::try_from(hash % u64::from(count.max(1))).unwrap_or(0)
}

/// The partition that keeps a chat's frames in order.
pub fn partition(chat: &Chat, partitions: u16) -> u16 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    hasher.update(chat.member(Side::A).as_str().as_bytes());
    hasher.update(&[0]);
    hasher.update(chat.member(Side::B).as_str().as_bytes());
    slot(hasher.digest(), partitions)
}

/// The event stream that holds a user's log.
pub fn event_stream(user: &UserId, event_streams: u16) -> u16 {
    slot(xxhash_rust::xxh3::xxh3_64(user.as_str().as_bytes()), event_streams)
}

/// Where a partition's frames are published, and what its consumer filters on.
pub fn frames(partition: u16) -> String {
    format!("frames.{partition}")
}

/// The name of a partition's durable consumer.
pub fn consumer(partition: u16) -> String {
    format!("worker-{partition}")
}

/// Where a partition's dead letters go.
pub fn dead_letter(partition: u16) -> String {
    format!("deadletter.{partition}")
}

/// The name of an event stream.
pub fn events(stream: u16) -> String {
    format!("EVENTS_{stream}")
}

/// All subjects of an event stream.
pub fn events_all(stream: u16) -> String {
    format!("events.{stream}.*")
}

/// Where a user's events are published.
pub fn event(stream: u16, user: &UserId) -> String {
    joined(&format!("events.{stream}"), &[user.as_str()])
}

/// Where a user's events are heard as they come, and signals between gateways.
pub fn live(user: &UserId) -> String {
    joined("live", &[user.as_str()])
}

/// Where a gateway hears workers' replies.
pub fn reply(gateway: &str) -> String {
    joined("reply", &[gateway])
}

/// A device's key in [`CURSORS`].
pub fn cursor_key(user: &UserId, device: &DeviceId) -> String {
    format!("{}.{}", token(user.as_str()), token(device.as_str()))
}

/// A user's key in [`SESSIONS`] through that gateway.
pub fn session_key(user: &UserId, gateway: &str) -> String {
    format!("{}.{}", token(user.as_str()), token(gateway))
}

/// All of a user's keys in [`SESSIONS`].
pub fn sessions_of_user(user: &UserId) -> String {
    format!("{}.*", token(user.as_str()))
}

/// All keys in [`SESSIONS`] through that gateway.
pub fn sessions_of_gateway(gateway: &str) -> String {
    format!("*.{}", token(gateway))
}

/// The user and the gateway of a key in [`SESSIONS`].
pub fn parse_session_key(key: &str) -> Option<(UserId, String)> {
    let (user, gateway) = key.split_once('.')?;
    Some((UserId::new(untoken(user)?).ok()?, untoken(gateway)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn user(id: &str) -> UserId {
        UserId::new(id).unwrap()
    }

    #[test]
    fn golden_subjects() {
        assert_eq!(frames(3), "frames.3");
        assert_eq!(event(0, &user("User.*")), "events.0.User=2E=2A");
        assert_eq!(event(0, &user("a b")), "events.0.a=20b");
        assert_eq!(live(&user(">")), "live.=3E");
        assert_eq!(cursor_key(&user("用"), &DeviceId::default()), "=E7=94=A8.default");
        assert_eq!(reply("gw-1"), "reply.gw-1");
    }

    #[test]
    fn partitions_are_stable() {
        // These numbers are stored facts: another hash would route a chat's old and new frames apart.
        let chat = Chat::between(&user("User1"), &user("User2")).unwrap();
        assert_eq!(partition(&chat, 8), GOLDEN_PARTITION);
        assert_eq!(event_stream(&user("User1"), 16), GOLDEN_EVENT_STREAM);
    }
    const GOLDEN_PARTITION: u16 = 4;
    const GOLDEN_EVENT_STREAM: u16 = 4;

    #[test]
    fn only_what_token_writes_is_read_back() {
        for foreign in ["=", "=4", "=zz", "=41", "=2e", "a.b", "a b", "=FF"] {
            assert_eq!(untoken(foreign), None, "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn every_id_is_one_legal_token_and_comes_back(id in "\\PC{1,40}") {
            let token = token(&id);
            prop_assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-=".contains(&b)));
            prop_assert_eq!(untoken(&token), Some(id));
        }

        #[test]
        fn two_ids_never_share_a_subject(one in "\\PC{1,12}", other in "\\PC{1,12}") {
            prop_assume!(one != other);
            prop_assert_ne!(live(&user(&one)), live(&user(&other)));
        }
    }
}
