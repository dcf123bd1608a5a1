//! What a NATS server says to a client, as far as a link needs it (NATS' client protocol, "Client Protocol" in its
//! manual). Pure, and without a copy.

use serde::Deserialize;

/// One thing a server says.
#[derive(Debug, PartialEq)]
pub enum Op<'a> {
    /// Who the server is, and what it asks for.
    Info(Box<Info>),
    /// It wants to hear a pong.
    Ping,
    /// It has done everything that it was told before the ping.
    Pong,
    /// Something was well.
    Ok,
    /// Something was not.
    Refused(&'a str),
    /// A message for a subscription.
    Message(Message<'a>),
}

/// A message, as it lies in the connection's buffer.
#[derive(Debug, PartialEq)]
pub struct Message<'a> {
    /// The subscription.
    pub sid: u64,
    /// The subject it came on.
    pub subject: &'a str,
    /// Where an answer is expected; empty if nowhere.
    pub reply: &'a str,
    /// Its headers, as they are sent; empty if it has none.
    pub headers: &'a str,
    /// What it says.
    pub payload: &'a [u8],
}

/// What a server tells about itself.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Info {
    /// Whether it wants TLS.
    pub tls_required: bool,
    /// What to sign with an nkey.
    pub nonce: Option<String>,
    /// The largest message that it takes, in bytes.
    pub max_payload: usize,
    /// Where its cluster's servers are, as `host:port`.
    pub connect_urls: Vec<String>,
}

/// A server does not speak NATS' protocol.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("the server does not speak NATS' protocol")]
pub struct Malformed;

/// The longest line a server may send, in bytes: the addresses of a large cluster are in one.
const MAX_LINE: usize = 256 * 1024;
/// The largest message that NATS can be set up to take, in bytes.
const MAX_PAYLOAD: usize = 64 * 1024 * 1024;

/// Reads what comes first in `bytes`, and how many bytes it takes; `None` if it is not there as a whole.
///
/// # Errors
/// [`Malformed`].
pub fn parse(bytes: &[u8]) -> Result<Option<(Op<'_>, usize)>, Malformed> {
    let Some(end) = bytes.iter().take(MAX_LINE).position(|byte| *byte == b'\n') else {
        return if bytes.len() < MAX_LINE { Ok(None) } else { Err(Malformed) };
    };
    let (line, rest) = bytes.split_at_checked(end + 1).ok_or(Malformed)?;
    let line = std::str::from_utf8(line).map_err(|_| Malformed)?.trim_end();
    let (verb, arguments) = line.split_once(' ').unwrap_or((line, ""));
    let op = match verb {
        "MSG" => return message(arguments, false, rest, end + 1),
        "HMSG" => return message(arguments, true, rest, end + 1),
        "PING" => Op::Ping,
        "PONG" => Op::Pong,
        "+OK" => Op::Ok,
        "-ERR" => Op::Refused(arguments),
        "INFO" => Op::Info(serde_json::from_str(arguments).map_err(|_| Malformed)?),
        _ => return Err(Malformed),
    };
    Ok(Some((op, end + 1)))
}

/// `MSG subject sid [reply] size` or `HMSG subject sid [reply] size-of-headers size`; then the bytes and a line's end.
fn message<'a>(
    arguments: &'a str,
    has_headers: bool,
    rest: &'a [u8],
    line: usize,
) -> Result<Option<(Op<'a>, usize)>, Malformed> {
    let number = |text: Option<&str>| {
        text.and_then(|text| text.parse::<usize>().ok()).filter(|n| *n <= MAX_PAYLOAD)
    };
    let (subject, numbers) = arguments.split_once(' ').ok_or(Malformed)?;
    let (sid, numbers) = numbers.split_once(' ').ok_or(Malformed)?;
    let sid = sid.parse().map_err(|_| Malformed)?;
    let mut sizes = numbers.rsplit(' ');
    let size = number(sizes.next()).ok_or(Malformed)?;
    let head = if has_headers { number(sizes.next()).ok_or(Malformed)? } else { 0 };
    let reply = sizes.next().unwrap_or_default();
    let Some((all, after)) = rest.split_at_checked(size) else { return Ok(None) };
    let Some(end) = after.get(..2) else { return Ok(None) };
    let (headers, payload) = all.split_at_checked(head).ok_or(Malformed)?;
    let headers = std::str::from_utf8(headers).map_err(|_| Malformed)?;
    if end != b"\r\n" {
        return Err(Malformed);
    }
    Ok(Some((Op::Message(Message { sid, subject, reply, headers, payload }), line + size + 2)))
}

/// What a message without content is there for, if it says so in its headers: a code like HTTP's, and a description.
pub fn status(headers: &str) -> Option<(&str, &str)> {
    let (_version, status) = headers.lines().next()?.split_once(' ')?;
    Some(status.split_once(' ').unwrap_or((status, "")))
}

/// A message's headers: each one's name and value.
pub fn fields(headers: &str) -> impl Iterator<Item = (&str, &str)> {
    // The first line is the version.
    let mut rest = split(headers, b'\n').map_or("", |(_version, rest)| rest);
    std::iter::from_fn(move || {
        loop {
            let (line, after) = split(rest, b'\n')?;
            rest = after;
            if let Some((name, value)) = split(line, b':') {
                return Some((name, value.trim_ascii()));
            }
        }
    })
}

/// What is before and after the first such character of ASCII. As `split_once`, which is made for long texts, and takes
/// several times as long for a header's few characters.
fn split(text: &str, at: u8) -> Option<(&str, &str)> {
    let at = text.bytes().position(|byte| byte == at)?;
    Some((text.get(..at)?, text.get(at + 1..)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: &str = "INFO {\"server_id\":\"A\",\"tls_required\":true,\"max_payload\":9,\"connect_urls\":[\"a:1\"]} \r\n\
        +OK\r\nPING\r\nPONG\r\n-ERR 'Permissions Violation'\r\nMSG live.a 7 2\r\nhi\r\n\
        HMSG live.b 8 reply 37 39\r\nNATS/1.0\r\nNats-Sequence: 12\r\nA: b\r\n\r\nhi\r\nMSG live.c 9 r 0\r\n\r\n";

    fn all(mut bytes: &[u8]) -> Result<Vec<String>, Malformed> {
        let mut ops = Vec::new();
        while let Some((op, used)) = parse(bytes)? {
            ops.push(format!("{op:?}"));
            bytes = &bytes[used..];
        }
        Ok(ops)
    }

    #[test]
    fn everything_a_server_says_is_understood() {
        let ops = all(ALL.as_bytes()).unwrap();
        assert_eq!(ops.len(), 8, "{ops:#?}");
        assert_eq!(
            ops[0],
            "Info(Info { tls_required: true, nonce: None, max_payload: 9, connect_urls: [\"a:1\"] })"
        );
        assert_eq!(ops[4], "Refused(\"'Permissions Violation'\")");
        let text = |op: &str| op.replace("Message(Message ", "");
        assert_eq!(
            text(&ops[5]),
            "{ sid: 7, subject: \"live.a\", reply: \"\", headers: \"\", payload: [104, 105] })"
        );
        let start = "{ sid: 8, subject: \"live.b\", reply: \"reply\", headers: \"NATS/1.0";
        assert!(text(&ops[6]).starts_with(start), "{}", ops[6]);
        assert_eq!(
            text(&ops[7]),
            "{ sid: 9, subject: \"live.c\", reply: \"r\", headers: \"\", payload: [] })"
        );
    }

    #[test]
    fn headers_are_names_and_values_and_the_version_is_none() {
        let headers = "NATS/1.0\r\nNats-Sequence-X: 1\r\nNats-Sequence:12\r\nA: b:c \r\n\r\n";
        let all: Vec<_> = fields(headers).collect();
        assert_eq!(all, [("Nats-Sequence-X", "1"), ("Nats-Sequence", "12"), ("A", "b:c")]);
        assert_eq!(fields("").count(), 0);
    }

    #[test]
    fn a_status_is_a_code_and_what_it_means() {
        assert_eq!(status("NATS/1.0 204 EOB\r\nA: b\r\n\r\n"), Some(("204", "EOB")));
        assert_eq!(
            status("NATS/1.0 404 Message Not Found\r\n"),
            Some(("404", "Message Not Found"))
        );
        assert_eq!(status("NATS/1.0 503\r\n\r\n"), Some(("503", "")));
        assert_eq!(status("NATS/1.0\r\nA: b c\r\n\r\n"), None);
        assert_eq!(status(""), None);
    }

    #[test]
    fn what_no_server_says_is_refused() {
        for bytes in [
            "HTTP/1.1 200 OK\r\n",
            "MSG a 1 x\r\n",
            "MSG a\r\n",
            "HMSG a 1 9 4\r\nabcd\r\n",
            "MSG a 1 1\r\nabc",
            "MSG a 1 99999999999\r\n",
            "INFO {\r\n",
        ] {
            assert_eq!(all(bytes.as_bytes()), Err(Malformed), "{bytes}");
        }
    }

    proptest! {
        #[test]
        fn a_part_is_waited_for_and_never_misread(cut in 0..ALL.len()) {
            let whole = all(ALL.as_bytes()).unwrap();
            let part = all(&ALL.as_bytes()[..cut]).unwrap();
            prop_assert_eq!(&whole[..part.len()], &part[..]);
        }

        #[test]
        fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0..ALL.len()) {
            let _ = all(&bytes);
            let mut mixed = ALL.as_bytes().to_vec();
            mixed.splice(at..at, bytes);
            let _ = all(&mixed);
        }
    }
}
