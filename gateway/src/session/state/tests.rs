//! The session's rules, without a socket and with time passed in.

use std::time::{Duration, Instant};

use clap::Parser;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::config::Config;

const CLOCK: i64 = 1_700_000_000_000;

fn limits(flags: &[&str]) -> Limits {
    let flags = ["herald-gateway", "--insecure-auth"].iter().chain(flags);
    Config::try_parse_from(flags).unwrap().limits
}

struct Test {
    state: State,
    now: Instant,
    out: Vec<Output>,
}

impl Test {
    /// A session that has read its log and found nothing after event 10.
    fn new(flags: &[&str]) -> Self {
        let now = Instant::now();
        let user = UserId::new("me").unwrap();
        let state = State::new(
            user,
            Arc::new(limits(flags)),
            Arc::default(),
            Place::after(EventId(10)),
            None,
            now,
        );
        let mut test = Self { state, now, out: Vec::new() };
        test.state.start(&mut test.out);
        assert!(matches!(test.out.as_slice(), [Output::Fetch { after: EventId(10), .. }]));
        test.out.clear();
        test.fetched(&[], false);
        assert_eq!(test.take(), []);
        test
    }

    fn take(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.out)
    }

    fn text(&mut self, frame: &Value) {
        self.state.text(&frame.to_string(), CLOCK, self.now, &mut self.out);
    }

    fn live(&mut self, id: u64, prev: u64) {
        let body = format!("{{\"n\":{id}}}");
        self.state.live(
            EventId(id),
            EventId(prev),
            body.as_bytes(),
            Origin::default(),
            self.now,
            &mut self.out,
        );
    }

    fn fetched(&mut self, ids: &[u64], more: bool) {
        let event = |id: &u64| (EventId(*id), format!("{{\"n\":{id}}}").into(), Origin::default());
        let fetched = Fetched {
            events: ids.iter().map(event).collect(),
            more,
            is_there: true,
            ..Fetched::default()
        };
        self.state.fetched(fetched, CLOCK, self.now, &mut self.out);
    }

    fn ack(&mut self, id: u64) {
        self.text(&json!({"type": "ack", "id": id}));
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.state.tick(CLOCK, self.now, &mut self.out);
    }

    fn request(&mut self, id: &str) {
        self.text(&json!({"type": "request", "id": id, "timestamp": 1, "payloadType": "read",
            "payload": {"chatId": "you"}}));
    }

    /// The frames sent since the last look.
    fn sent(&mut self) -> Vec<Value> {
        let sent = self.take().into_iter().filter_map(|output| match output {
            Output::Send(frame) | Output::Answer(_, frame) => {
                Some(serde_json::from_str(&frame).unwrap())
            }
            _ => None,
        });
        sent.collect()
    }
}

fn closes(outputs: &[Output]) -> Option<CloseCode> {
    outputs.iter().find_map(|output| match output {
        Output::Close(code, _) => Some(*code),
        _ => None,
    })
}

#[test]
fn a_new_device_reads_no_log_before_something_is_missing() {
    let begin = |begins_after: u64| {
        let place = Place { cursor: EventId(10), begins_after: Some(EventId(begins_after)) };
        let user = UserId::new("me").unwrap();
        let now = Instant::now();
        let state = State::new(user, Arc::new(limits(&[])), Arc::default(), place, None, now);
        let mut test = Test { state, now, out: Vec::new() };
        test.state.start(&mut test.out);
        assert_eq!(test.take(), []);
        test
    };
    // The user's last event is where the device begins.
    let mut test = begin(10);
    test.live(12, 10);
    assert_eq!(test.sent(), [json!({"id": 12, "prev": 10, "n": 12})]);
    let mut test = begin(10);
    test.live(12, 11);
    assert!(matches!(test.take().as_slice(), [Output::Fetch { after: EventId(10), .. }]));
    // The user had none: the device begins where the stream was.
    let mut test = begin(0);
    test.live(12, 0);
    assert_eq!(test.sent(), [json!({"id": 12, "prev": 0, "n": 12})]);
}

#[test]
fn a_gap_in_the_live_events_is_read_from_the_log() {
    let mut test = Test::new(&[]);
    test.live(12, 10);
    assert_eq!(test.sent(), [json!({"id": 12, "prev": 10, "n": 12})]);
    test.live(20, 15);
    assert!(matches!(test.take().as_slice(), [Output::Fetch { after: EventId(12), .. }]));
    // What comes while the log is read is not sent out of its order.
    test.live(21, 20);
    assert_eq!(test.take(), []);
    test.fetched(&[15, 20], false);
    let out = test.take();
    assert!(
        matches!(out.last(), Some(Output::Fetch { after: EventId(20), .. })),
        "21 is known of: {out:?}"
    );
    test.fetched(&[21], false);
    assert_eq!(test.sent(), [json!({"id": 21, "prev": 20, "n": 21})]);
    test.live(22, 21);
    assert_eq!(test.sent(), [json!({"id": 22, "prev": 21, "n": 22})]);
}

#[test]
fn an_event_that_was_sent_is_not_sent_again_before_its_time() {
    let mut test = Test::new(&[]);
    test.live(12, 10);
    test.live(12, 10);
    test.live(9, 8);
    assert_eq!(test.sent().len(), 1);
}

#[test]
fn a_full_window_waits_for_acks_and_then_reads_the_log() {
    let mut test = Test::new(&["--window", "4"]);
    for id in 11..=16 {
        test.live(id, id - 1);
    }
    let sent: Vec<_> = test.sent().iter().map(|event| event["id"].as_u64()).collect();
    assert_eq!(sent, [Some(11), Some(12), Some(13), Some(14)]);
    test.ack(11);
    assert!(
        !test.take().iter().any(|output| matches!(output, Output::Fetch { .. })),
        "not for one"
    );
    test.ack(12);
    let out = test.take();
    assert!(
        matches!(out.last(), Some(Output::Fetch { after: EventId(14), limit: 2, .. })),
        "{out:?}"
    );
}

#[test]
fn a_sweep_finds_what_was_lost_on_the_way() {
    let mut test = Test::new(&[]);
    test.state.tail(EventId(10), &mut test.out);
    assert_eq!(test.take(), []);
    test.state.tail(EventId(13), &mut test.out);
    assert!(matches!(test.take().as_slice(), [Output::Fetch { after: EventId(10), .. }]));
}

#[test]
fn a_log_that_can_not_be_read_is_read_again() {
    let mut test = Test::new(&[]);
    test.live(20, 15);
    test.take();
    test.state.not_fetched(test.now);
    let due = test.now + Duration::from_secs(1);
    assert_eq!(test.state.next_tick(), due);
    test.now += Duration::from_millis(500);
    test.live(21, 20);
    test.request("a chatty client");
    assert!(matches!(test.take().as_slice(), [Output::Publish { .. }]), "not before its time");
    assert_eq!(test.state.next_tick(), due, "nor later");
    test.pass(Duration::from_millis(500));
    assert!(matches!(test.take().as_slice(), [Output::Fetch { after: EventId(10), .. }]));
}

#[test]
fn a_replica_that_lags_is_not_asked_in_a_hurry() {
    let mut test = Test::new(&[]);
    test.live(20, 15);
    test.take();
    test.fetched(&[], false);
    assert_eq!(test.take(), [], "not at once");
    test.pass(Duration::from_millis(50));
    assert!(matches!(test.take().as_slice(), [Output::Fetch { after: EventId(10), .. }]));
}

#[test]
fn a_resync_forgets_what_was_unacked_and_goes_on_from_where_the_log_begins() {
    let mut test = Test::new(&[]);
    test.live(12, 10);
    test.live(30, 25);
    test.take();
    let events = vec![(EventId(30), r#"{"n":30}"#.into(), Origin::default())];
    let fetched = Fetched { events, resync: Some(EventId(29)), ..Fetched::default() };
    test.state.fetched(fetched, CLOCK, test.now, &mut test.out);
    let out = test.take();
    assert!(out.contains(&Output::StoreCursor(EventId(29))), "{out:?}");
    test.out = out;
    let sent = test.sent();
    assert_eq!((&sent[0]["eventType"], &sent[1]["id"]), (&json!("resync"), &json!(30)));
    assert_eq!(sent.len(), 2);
    test.pass(Duration::from_secs(20));
    assert_eq!(test.sent(), [json!({"id": 30, "prev": 0, "n": 30})], "12 is not sent again");
}

#[test]
fn the_cursor_is_stored_some_time_after_it_moved_and_only_then() {
    let mut test = Test::new(&["--cursor-interval", "5s"]);
    test.live(11, 10);
    test.live(12, 11);
    test.ack(12);
    test.pass(Duration::from_secs(6));
    assert!(
        !test.take().iter().any(|output| matches!(output, Output::StoreCursor(_))),
        "11 is open"
    );
    test.ack(11);
    test.take();
    test.pass(Duration::from_secs(5));
    assert!(test.take().contains(&Output::StoreCursor(EventId(12))));
    test.state.store_cursor(&mut test.out);
    assert_eq!(test.take(), []);
}

#[test]
fn a_request_is_answered_once_in_time_or_told_that_it_was_not() {
    let mut test = Test::new(&["--request-timeout", "10s"]);
    test.request("a");
    assert!(matches!(test.take().as_slice(), [Output::Publish { .. }]));
    test.state.reply("a", "{}".into(), test.now, &mut test.out);
    assert_eq!(test.sent(), [json!({})]);
    test.state.reply("a", "{}".into(), test.now, &mut test.out);
    assert_eq!(test.take(), [], "a second answer");
    test.request("b");
    test.take();
    test.pass(Duration::from_secs(10));
    assert_eq!(test.sent()[0]["error"]["code"], "unavailable");
    test.state.reply("b", "{}".into(), test.now, &mut test.out);
    assert_eq!(test.take(), [], "too late");
}

#[test]
fn a_silent_client_is_pinged_once_and_then_closed() {
    let mut test = Test::new(&["--ping-interval", "25s", "--idle-timeout", "60s"]);
    test.pass(Duration::from_secs(25));
    assert_eq!(test.take(), [Output::Ping]);
    test.pass(Duration::from_secs(10));
    assert_eq!(test.take(), []);
    test.state.heard(test.now);
    test.pass(Duration::from_secs(24));
    assert_eq!(test.take(), []);
    test.pass(Duration::from_secs(36));
    assert_eq!(closes(&test.take()), Some(CloseCode::Idle));
}

#[test]
fn a_draining_gateway_finishes_open_requests_and_takes_no_new_ones() {
    let mut test = Test::new(&[]);
    test.request("a");
    test.take();
    test.state.drain(&mut test.out);
    assert_eq!(test.take(), []);
    test.request("b");
    assert_eq!(test.sent()[0]["error"]["code"], "unavailable");
    test.state.reply("a", "{}".into(), test.now, &mut test.out);
    assert_eq!(closes(&test.take()), Some(CloseCode::ServiceRestart));
    let mut idle = Test::new(&[]);
    idle.state.drain(&mut idle.out);
    assert_eq!(closes(&idle.take()), Some(CloseCode::ServiceRestart));
}

#[test]
fn typing_is_limited_by_chat_and_second() {
    let mut test = Test::new(&[]);
    let typing = |peer: &str| json!({"type": "event", "timestamp": 1, "payloadType": "typing", "payload": {"chatId": peer}});
    for peer in ["a", "a", "b", "me"] {
        test.text(&typing(peer));
    }
    let peers = |out: Vec<Output>| -> Vec<String> {
        out.into_iter()
            .map(|output| match output {
                Output::Typing(peer) => peer.to_string(),
                other => panic!("{other:?}"),
            })
            .collect()
    };
    assert_eq!(peers(test.take()), ["a", "b"]);
    test.now += Duration::from_secs(1);
    test.text(&typing("a"));
    assert_eq!(peers(test.take()), ["a"]);
}

#[derive(Debug, Clone)]
enum Step {
    Live { skip: u64 },
    Ack(usize),
    Fetched(usize),
    FetchFails,
    Pass(u64),
    Text(String),
    Tail,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3_u64).prop_map(|skip| Step::Live { skip }),
        6 => (0..12_usize).prop_map(Step::Ack),
        4 => (1..9_usize).prop_map(Step::Fetched),
        1 => Just(Step::FetchFails),
        2 => (0..20_u64).prop_map(Step::Pass),
        1 => ".{0,40}".prop_map(Step::Text),
        1 => Just(Step::Tail),
    ]
}

proptest! {
    /// Whatever comes in whatever order: every event of the log is sent, in order, with the right `prev`, and no more
    /// than the window is unacked.
    #[test]
    fn every_event_is_sent_in_order_whatever_happens(steps in prop::collection::vec(step(), 0..200)) {
        let mut test = Test::new(&["--window", "5"]);
        let (mut log, mut first_sent) = (vec![10_u64], vec![10_u64]);
        let mut fetching = None;
        let mut acked = std::collections::HashSet::new();
        let drained = [Step::Tail, Step::Pass(1)].into_iter().chain(
            (0..400).flat_map(|n| [Step::Fetched(5), Step::Ack(n), Step::Pass(1)]));
        for step in steps.into_iter().chain(drained) {
            match step {
                Step::Live { skip } => {
                    // Up to two events reach the log without being heard live.
                    for n in 0..=skip {
                        let (prev, id) = (*log.last().unwrap(), log.last().unwrap() + 1 + n % 2);
                        log.push(id);
                        if n == skip {
                            test.live(id, prev);
                        }
                    }
                }
                Step::Ack(n) => {
                    if let Some(id) = first_sent.get(n + 1) {
                        acked.insert(*id);
                        test.ack(*id);
                    }
                }
                Step::Fetched(most) => if let Some((after, limit)) = fetching.take() {
                    let found: Vec<u64> = log.iter().copied().filter(|id| *id > after).collect();
                    let some = &found[..found.len().min(most).min(limit)];
                    test.fetched(some, found.len() > some.len());
                },
                Step::FetchFails => if fetching.take().is_some() { test.state.not_fetched(test.now) },
                Step::Pass(seconds) => test.pass(Duration::from_secs(seconds.min(14))),
                Step::Text(text) => test.state.text(&text, CLOCK, test.now, &mut test.out),
                Step::Tail => { let last = *log.last().unwrap(); test.state.tail(EventId(last), &mut test.out) }
            }
            test.state.heard(test.now);
            for output in test.take() {
                match output {
                    Output::Fetch { after, limit, .. } => {
                        prop_assert!(fetching.is_none(), "one read at a time");
                        prop_assert!(limit > 0);
                        fetching = Some((after.0, limit));
                    }
                    Output::Send(frame) => {
                        let frame: Value = serde_json::from_str(&frame).unwrap();
                        let (Some(id), Some(prev)) = (frame["id"].as_u64(), frame["prev"].as_u64()) else { continue };
                        if first_sent.last().is_some_and(|last| id > *last) {
                            prop_assert_eq!(prev, *first_sent.last().unwrap(), "prev is unbroken");
                            first_sent.push(id);
                        } else {
                            prop_assert!(!acked.contains(&id), "sent again though acked");
                        }
                    }
                    _ => {}
                }
            }
            prop_assert!(first_sent.len() - 1 - acked.len() <= 5, "the window is bounded");
        }
        prop_assert_eq!(first_sent, log);
    }
}

#[test]
fn acks_of_what_was_sent_are_never_limited_and_others_are_refused_under_their_id() {
    let mut test = Test::new(&["--rate", "1", "--burst", "1"]);
    test.live(11, 10);
    test.request("a");
    test.take();
    assert_eq!(test.state.listens_at(), test.now, "what is taken holds nothing up");
    test.ack(99);
    assert!(test.state.listens_at() > test.now, "a flood is slowed down");
    let sent = test.sent();
    assert_eq!((&sent[0]["id"], &sent[0]["error"]["code"]), (&json!("99"), &json!("rate_limited")));
    test.ack(11);
    assert_eq!(test.sent(), [json!({"type": "response", "timestamp": CLOCK, "id": "11"})]);
}

#[test]
fn a_read_goes_on_only_where_another_has_left_something() {
    let goes_on = |test: &mut Test| match test.take().as_slice() {
        [.., Output::Fetch { goes_on, .. }] => *goes_on,
        other => panic!("{other:?}"),
    };
    let mut test = Test::new(&[]);
    test.live(13, 12);
    assert!(!goes_on(&mut test), "it has missed something");
    test.fetched(&[12], true);
    assert!(goes_on(&mut test), "there is more");
    test.fetched(&[13], false);
    test.take();
    test.live(16, 15);
    assert!(!goes_on(&mut test), "it has missed something else");
}
