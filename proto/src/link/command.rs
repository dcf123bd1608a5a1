//! What a client tells a NATS server (NATS' client protocol), written to memory. Subjects and headers are the caller's
//! own: no line ends in them.

use std::{fmt::Display, io::Write};

/// The first line of headers.
const VERSION: &str = "NATS/1.0\r\n";
const END: &str = "\r\n";

/// Subscribes under a number.
pub fn subscribe(commands: &mut Vec<u8>, sid: u64, subject: &str) {
    // Writing to memory can't fail: here and below.
    let _ = write!(commands, "SUB {subject} {sid}\r\n");
}

/// Ends a subscription.
pub fn unsubscribe(commands: &mut Vec<u8>, sid: u64) {
    let _ = write!(commands, "UNSUB {sid}\r\n");
}

/// Publishes a message.
pub fn publish(commands: &mut Vec<u8>, subject: &str, body: &[u8]) {
    let _ = write!(commands, "PUB {subject} {}\r\n", body.len());
    commands.extend(body);
    commands.extend(END.as_bytes());
}

/// Publishes a message that is answered on `reply`.
pub fn request(commands: &mut Vec<u8>, subject: &str, reply: impl Display, body: &[u8]) {
    let _ = write!(commands, "PUB {subject} {reply} {}\r\n", body.len());
    commands.extend(body);
    commands.extend(END.as_bytes());
}

/// Publishes a message with headers, each a name and a value, that is answered on `reply`.
pub fn request_with_headers<'a>(
    commands: &mut Vec<u8>,
    subject: &str,
    reply: impl Display,
    headers: impl Iterator<Item = (&'a str, &'a str)> + Clone,
    body: &[u8],
) {
    let fields = headers.clone().map(|(name, value)| name.len() + 2 + value.len() + END.len());
    let head = VERSION.len() + fields.sum::<usize>() + END.len();
    let _ = write!(commands, "HPUB {subject} {reply} {head} {}\r\n{VERSION}", head + body.len());
    for (name, value) in headers {
        for part in [name, ": ", value, END] {
            commands.extend(part.as_bytes());
        }
    }
    commands.extend(END.as_bytes());
    commands.extend(body);
    commands.extend(END.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_spelled_as_the_protocol_has_them() {
        let mut commands = Vec::new();
        subscribe(&mut commands, 7, "live.a");
        unsubscribe(&mut commands, 7);
        publish(&mut commands, "a.b", b"hello");
        request(&mut commands, "a.b", format_args!("r.{}", 1), b"");
        let headers = [("A", "b"), ("Cd", "e f")].into_iter();
        request_with_headers(&mut commands, "c", "r", headers, b"hi");
        assert_eq!(
            String::from_utf8(commands).unwrap(),
            "SUB live.a 7\r\nUNSUB 7\r\nPUB a.b 5\r\nhello\r\nPUB a.b r.1 0\r\n\r\n\
            HPUB c r 27 29\r\nNATS/1.0\r\nA: b\r\nCd: e f\r\n\r\nhi\r\n"
        );
    }
}
