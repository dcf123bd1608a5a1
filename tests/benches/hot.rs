//! The pure code that every message passes: `cargo bench -p herald-tests --bench hot`; `-- NAME` for some of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;
use criterion::{BatchSize, Criterion};
use herald_gateway::{
    config::Config,
    inbox::Fetched,
    session::{Output, State},
};
use herald_proto::{
    Chat, ClientMessageId, EventId, MessageId, RequestId, Side, UserId,
    frame::{Answer, ClientFrame, Event, EventBody, Response, to_text, with_id},
    payload::{Arrived, Stored},
    subject,
    wire::{Bundle, Command, Replies},
};
use herald_tests::load::wire;
use herald_worker::unread::Ledger;

const CLOCK: i64 = 1_700_000_000_000;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    frames(&mut criterion);
    wire_of_ours(&mut criterion);
    subjects(&mut criterion);
    session(&mut criterion);
    unread(&mut criterion);
    criterion.final_summary();
}

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

/// A `new` with a text of 100 bytes, as `load` sends it.
fn new_text() -> String {
    wire::new(7, "load-0123abcd-17-b", &"x".repeat(100))
}

fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame");
    let texts = [
        ("new", new_text()),
        ("dlvrd", wire::dlvrd(125, "load-0123abcd-17-a")),
        ("ack", wire::ack(1_234_567)),
    ];
    for (name, text) in &texts {
        group.bench_function(format!("parse {name}"), |b| {
            b.iter(|| ClientFrame::parse(black_box(text)).unwrap());
        });
    }
    let stored = Response {
        id: Some("n7".into()),
        timestamp: CLOCK,
        answer: Answer::Stored(Stored {
            message_id: MessageId::new(7).unwrap(),
            client_message_id: ClientMessageId::new("7").unwrap(),
        }),
    };
    group.bench_function("write response", |b| b.iter(|| to_text(black_box(&stored)).unwrap()));
    let event = Event::new(
        CLOCK,
        EventBody::New(Arrived {
            chat_id: user("load-0123abcd-17-a"),
            message_id: MessageId::new(7).unwrap(),
            client_message_id: ClientMessageId::new("7").unwrap(),
            message: Some("x".repeat(100)),
            attachments: vec![],
            missed: 7,
        }),
    );
    group.bench_function("write event", |b| b.iter(|| to_text(black_box(&event)).unwrap()));
    let text = to_text(&event).unwrap();
    group.bench_function("put id into event", |b| {
        b.iter(|| with_id(black_box(&text), EventId(123_456), EventId(123_400)).unwrap());
    });
    group.finish();
}

fn wire_of_ours(criterion: &mut Criterion) {
    const COMMANDS: usize = 16;
    let ClientFrame::Request { id, timestamp, request } = ClientFrame::parse(&new_text()).unwrap()
    else {
        panic!("not a request")
    };
    let (from, sent_at) = (user("load-0123abcd-17-a"), timestamp);
    let command = Command { from, session: 17, id, sent_at, traceparent: None, request };
    let mut group = criterion.benchmark_group("wire");
    group.bench_function("write command", |b| {
        b.iter(|| serde_json::to_vec(black_box(&command)).unwrap());
    });
    let json = serde_json::to_vec(&command).unwrap();
    let bundle = || Bundle::join("gateway-1", std::iter::repeat_n(json.as_slice(), COMMANDS));
    group.bench_function("join 16 commands", |b| b.iter(|| black_box(bundle())));
    let bundle = bundle();
    group.bench_function("parse 16 commands", |b| {
        b.iter(|| serde_json::from_slice::<Bundle>(black_box(&bundle)).unwrap());
    });
    let reply = r#"{"session":17,"id":"n7","frame":{"type":"response","timestamp":1700000000000,"id":"n7","payload":{"messageId":7,"clientMessageId":"7"}}}"#;
    let replies = format!("[{}]", [reply; COMMANDS].join(","));
    group.bench_function("parse 16 replies", |b| {
        b.iter(|| serde_json::from_str::<Replies<'_>>(black_box(&replies)).unwrap().0.len());
    });
    group.finish();
}

fn subjects(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("subject");
    let (plain, odd) = (user("load-0123abcd-17-a"), user("用户.* 17>"));
    let chat = Chat::between(&plain, &odd).unwrap();
    group.bench_function("live of a plain id", |b| b.iter(|| subject::live(black_box(&plain))));
    group.bench_function("live of an odd id", |b| b.iter(|| subject::live(black_box(&odd))));
    let token = subject::token(odd.as_str());
    group.bench_function("read a token back", |b| b.iter(|| subject::untoken(black_box(&token))));
    group.bench_function("event", |b| b.iter(|| subject::event(3, black_box(&plain))));
    group.bench_function("partition", |b| b.iter(|| subject::partition(black_box(&chat), 8)));
    group.finish();
}

/// A session that has read its log and found nothing.
struct Client {
    state: State,
    now: Instant,
    out: Vec<Output>,
}

impl Client {
    fn new() -> Self {
        let flags =
            ["herald-gateway", "--insecure-auth", "--rate=4000000000", "--burst=4000000000"];
        let limits = Arc::new(Config::try_parse_from(flags).unwrap().limits);
        let now = Instant::now();
        let mut state = State::new(user("load-0123abcd-17-a"), limits, EventId(0), None, now);
        let mut out = Vec::new();
        state.start(&mut out);
        let nothing = Fetched { events: vec![], more: false, is_there: true, resync: None };
        state.fetched(nothing, CLOCK, now, &mut out);
        out.clear();
        Self { state, now, out }
    }

    fn text(&mut self, text: &str) {
        self.state.text(text, CLOCK, self.now, &mut self.out);
    }
}

fn session(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("session");
    let new = new_text();
    let reply: tokio_tungstenite::tungstenite::Utf8Bytes =
        r#"{"type":"response","timestamp":1700000000000,"id":"n7","payload":{"messageId":7,"clientMessageId":"7"}}"#.into();
    group.bench_function("new and its answer", |b| {
        let mut client = Client::new();
        b.iter(|| {
            client.text(black_box(&new));
            client.state.reply("n7", reply.clone(), &mut client.out);
            assert_eq!(client.out.len(), 2, "published and answered");
            client.out.clear();
        });
    });
    let body = br#"{"type":"event","timestamp":1700000000000,"eventType":"new","payload":{"chatId":"load-0123abcd-17-b","messageId":7,"clientMessageId":"7","message":"hello","missed":7}}"#;
    group.bench_function("event and its ack", |b| {
        let mut client = Client::new();
        let mut id = 0;
        b.iter(|| {
            let prev = id;
            id += 1;
            client.state.live(
                EventId(id),
                EventId(prev),
                black_box(body),
                client.now,
                &mut client.out,
            );
            client.text(&wire::ack(id));
            assert_eq!(client.out.len(), 2, "sent and answered");
            client.out.clear();
        });
    });
    group.bench_function("when to tick next, 64 unacked", |b| {
        let mut client = Client::new();
        for id in 1..=64 {
            client.state.live(EventId(id), EventId(id - 1), body, client.now, &mut client.out);
        }
        b.iter(|| black_box(&client.state).next_tick());
    });
    group.bench_function("begin", |b| {
        b.iter_batched(|| (), |()| Client::new(), BatchSize::SmallInput)
    });
    group.finish();
    // A request id is parsed from each frame.
    criterion.bench_function("id/request id", |b| b.iter(|| RequestId::new(black_box("n7"))));
}

fn unread(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("unread");
    group.bench_function("accept, deliver, read", |b| {
        let mut ledger = Ledger::default();
        b.iter(|| {
            let id = ledger.accept(black_box(Side::A));
            ledger.deliver(Side::B, id).unwrap();
            ledger.read(Side::B, id, |_| 0).unwrap()
        });
    });
    group.finish();
}
