//! Whatever comes in, in whatever order and at whatever time, even what no client, log or worker of ours would send: no
//! panic, nothing grows without bound, no request is forgotten, and time never stands still.

use std::time::{Duration, Instant};

use clap::Parser;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::config::Config;

const WINDOW: usize = 6;
const OPEN: usize = 5;

/// Something that comes to a session.
#[derive(Debug, Clone)]
enum Input {
    Request(u8, &'static str),
    Ack(u64),
    Typing(u8),
    Text(String),
    Huge(usize),
    Binary,
    Pong,
    Reply(u8),
    NotPublished(u8),
    Live(u64, u64),
    Tail(u64),
    Fetched { ids: Vec<u64>, more: bool, resync: Option<u64> },
    FetchFails,
    Pass(u64),
    Drain,
}

fn input() -> impl Strategy<Value = Input> {
    let id = 0..60_u64;
    let kind = prop::sample::select(&["new", "read", "dlvrd", "delete", "nonsense"][..]);
    prop_oneof![
        6 => (0..9_u8, kind).prop_map(|(id, kind)| Input::Request(id, kind)),
        6 => id.clone().prop_map(Input::Ack),
        2 => (0..60_u8).prop_map(Input::Typing),
        2 => ".{0,40}".prop_map(Input::Text),
        1 => (0..5000_usize).prop_map(Input::Huge),
        1 => Just(Input::Binary),
        1 => Just(Input::Pong),
        4 => (0..9_u8).prop_map(Input::Reply),
        1 => (0..9_u8).prop_map(Input::NotPublished),
        6 => (id.clone(), id.clone()).prop_map(|(id, prev)| Input::Live(id, prev)),
        2 => id.clone().prop_map(Input::Tail),
        6 => (prop::collection::vec(id.clone(), 0..12), any::<bool>(), prop::option::weighted(0.1, id))
            .prop_map(|(ids, more, resync)| Input::Fetched { ids, more, resync }),
        1 => Just(Input::FetchFails),
        4 => prop_oneof![0..500_u64, 0..20_000_u64, 0..10_000_000_u64].prop_map(Input::Pass),
        1 => Just(Input::Drain),
    ]
}

/// What a session has done so far, told by its outputs alone.
#[derive(Default)]
struct Seen {
    published: usize,
    finished: usize,
    /// Events sent since the log was last lost, in order, and whether each was acked.
    sent: Vec<(u64, bool)>,
    cursor: u64,
    stored: u64,
    fetching: Option<usize>,
    closed: bool,
}

const REPLY: &str = r#"{"reply":1}"#;

impl Seen {
    fn outputs(&mut self, out: Vec<Output>, is_resync: bool) -> Result<(), TestCaseError> {
        if is_resync {
            self.sent.clear();
        }
        for output in out {
            prop_assert!(!self.closed, "nothing comes after the end: {output:?}");
            match output {
                Output::Publish { .. } => self.published += 1,
                Output::Fetch { limit, .. } => {
                    prop_assert!((1..=WINDOW).contains(&limit), "{limit}");
                    prop_assert_eq!(self.fetching.replace(limit), None, "one read at a time");
                }
                Output::StoreCursor(cursor) => {
                    prop_assert!(cursor.0 > self.stored, "cursors only move forward");
                    self.stored = cursor.0;
                }
                Output::Close(..) => self.closed = true,
                Output::Answer(_, frame) if frame == REPLY => self.finished += 1,
                Output::Send(frame) | Output::Answer(_, frame) => {
                    self.frame(&serde_json::from_str(&frame).unwrap())?
                }
                Output::Ping | Output::Typing(_) | Output::Offline => {}
            }
        }
        self.advance();
        prop_assert!(self.sent.len() <= WINDOW, "the window is bounded: {:?}", self.sent);
        Ok(())
    }

    fn frame(&mut self, frame: &Value) -> Result<(), TestCaseError> {
        let message = frame["error"]["message"].as_str().unwrap_or_default();
        if message.contains("not answered in time") || message.contains("can't take the request") {
            self.finished += 1;
        }
        let Some(id) = frame["id"].as_u64() else { return Ok(()) };
        match self.sent.iter().find(|(sent, _)| *sent == id) {
            Some((_, is_acked)) => prop_assert!(!is_acked, "{id} is sent again though acked"),
            None => {
                let last = self.sent.last().map_or(self.cursor, |(last, _)| *last);
                prop_assert!(id > last, "{id} is sent after {last}");
                self.sent.push((id, false));
            }
        }
        Ok(())
    }

    fn acked(&mut self, id: u64) {
        if let Some((_, is_acked)) = self.sent.iter_mut().find(|(sent, _)| *sent == id) {
            *is_acked = true;
        }
    }

    fn advance(&mut self) {
        let acked = self.sent.iter().take_while(|(_, is_acked)| *is_acked).count();
        if let Some((last, _)) = self.sent.drain(..acked).next_back() {
            self.cursor = last;
        }
    }
}

fn session(now: Instant) -> State {
    let flags = ["herald-gateway", "--insecure-auth", "--window", "6", "--max-open-requests", "5"]
        .into_iter()
        .chain(["--max-frame-bytes", "1000", "--rate", "50", "--burst", "100"]);
    let limits = Config::try_parse_from(flags).unwrap().limits;
    let expires_at = Some(now + Duration::from_secs(5 * 3600));
    State::new(
        UserId::new("me").unwrap(),
        Arc::new(limits),
        Arc::default(),
        Place::after(EventId(3)),
        expires_at,
        now,
    )
}

fn apply(
    state: &mut State,
    seen: &mut Seen,
    input: &Input,
    now: &mut Instant,
) -> Result<(), TestCaseError> {
    let (clock, mut out) = (0, Vec::new());
    let mut is_resync = false;
    match input {
        Input::Request(id, kind) => {
            let frame = json!({"type": "request", "id": format!("r{id}"), "timestamp": 1, "payloadType": kind,
                "payload": {"chatId": "you", "messageId": 1, "clientMessageId": "k", "message": "hi"}});
            state.text(&frame.to_string(), clock, *now, &mut out);
        }
        Input::Ack(id) => {
            // An ack of what was sent is never limited.
            seen.acked(*id);
            state.text(&json!({"type": "ack", "id": id}).to_string(), clock, *now, &mut out);
        }
        Input::Typing(peers) => {
            for peer in 0..*peers {
                let frame = json!({"type": "event", "timestamp": 1, "payloadType": "typing",
                    "payload": {"chatId": peer.to_string()}});
                state.text(&frame.to_string(), clock, *now, &mut out);
            }
        }
        Input::Text(text) => state.text(text, clock, *now, &mut out),
        Input::Huge(length) => state.text(&"[".repeat(*length), clock, *now, &mut out),
        Input::Binary => state.binary(clock, *now, &mut out),
        Input::Pong => state.heard(*now),
        Input::Reply(id) => state.reply(&format!("r{id}"), REPLY.into(), *now, &mut out),
        Input::NotPublished(id) => {
            state.not_published(&RequestId::new(format!("r{id}")).unwrap(), clock, &mut out);
        }
        Input::Live(id, prev) => {
            state.live(
                EventId(*id),
                EventId(*prev),
                b"{\"a\":1}",
                Origin::default(),
                *now,
                &mut out,
            );
        }
        Input::Tail(id) => state.tail(EventId(*id), &mut out),
        Input::Fetched { ids, more, resync } => {
            let Some(limit) = seen.fetching.take() else { return Ok(()) };
            let body = |id: &u64| (EventId(*id), "{\"a\":1}".into(), Origin::default());
            let events = ids.iter().take(limit).map(body).collect();
            is_resync = resync.is_some();
            if let Some(place) = resync {
                seen.cursor = *place;
            }
            let is_there = resync.is_none();
            let resync = resync.map(EventId);
            let fetched = Fetched { events, more: *more, is_there, resync, ..Fetched::default() };
            state.fetched(fetched, clock, *now, &mut out);
        }
        Input::FetchFails => {
            if seen.fetching.take().is_some() {
                state.not_fetched(*now);
            }
        }
        Input::Pass(millis) => {
            *now += Duration::from_millis(*millis);
            state.tick(clock, *now, &mut out);
            let is_over = out.iter().any(|output| matches!(output, Output::Close(..)));
            prop_assert!(is_over || state.next_tick() > *now, "time stands still");
        }
        Input::Drain => state.drain(&mut out),
    }
    let most = WINDOW * 2 + OPEN + TYPING_CHATS + 4;
    prop_assert!(out.len() <= most, "{} outputs at once, by {input:?}", out.len());
    seen.outputs(out, is_resync)?;
    prop_assert_eq!(
        seen.published - seen.finished,
        state.open.len(),
        "every request is finished once"
    );
    prop_assert!(state.open.len() <= OPEN && state.typing.len() <= TYPING_CHATS);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 4, ..ProptestConfig::default() })]

    /// `PROPTEST_CASES` makes it look longer.
    #[test]
    fn no_input_at_no_time_breaks_a_session(inputs in prop::collection::vec(input(), 0..150)) {
        let mut now = Instant::now();
        let mut state = session(now);
        let mut seen = Seen { cursor: 3, stored: 3, ..Seen::default() };
        let mut out = Vec::new();
        state.start(&mut out);
        seen.outputs(out, false)?;
        for input in inputs {
            apply(&mut state, &mut seen, &input, &mut now)?;
            if seen.closed {
                break;
            }
        }
    }
}
