//! The pure code that every message passes: `cargo bench -p herald-tests --bench hot`; `-- NAME` for some of it.
#![allow(clippy::unwrap_used)]

use std::{hint::black_box, time::Duration};

use criterion::Criterion;
use herald_proto::{
    Chat, EventId, RequestId, Side, UserId,
    frame::{ClientFrame, to_text, with_id},
    subject,
    wire::{Bundle, Replies},
};
use herald_tests::{
    hot::{self, REPLY, SENDER, Session},
    load::wire,
};
use herald_worker::unread::Ledger;
use tokio_tungstenite::tungstenite::Utf8Bytes;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    frames(&mut criterion);
    bundles(&mut criterion);
    subjects(&mut criterion);
    session(&mut criterion);
    unread(&mut criterion);
    criterion.final_summary();
}

fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame");
    let (new, dlvrd, ack) = (hot::new(), wire::dlvrd(125, SENDER), wire::ack(1_234_567));
    for (name, text) in [("parse new", new), ("parse dlvrd", dlvrd), ("parse ack", ack)] {
        group.bench_function(name, |b| b.iter(|| ClientFrame::parse(black_box(&text)).unwrap()));
    }
    group.bench_function("request id", |b| b.iter(|| RequestId::new(black_box("n7")).unwrap()));
    let stored = hot::stored().unwrap();
    group.bench_function("write response", |b| b.iter(|| to_text(black_box(&stored)).unwrap()));
    let event = hot::event().unwrap();
    group.bench_function("write event", |b| b.iter(|| to_text(black_box(&event)).unwrap()));
    let text = to_text(&event).unwrap();
    group.bench_function("put id into event", |b| {
        b.iter(|| with_id(black_box(&text), EventId(123_456), EventId(123_400)).unwrap());
    });
    group.finish();
}

fn bundles(criterion: &mut Criterion) {
    const COMMANDS: usize = 16;
    let mut group = criterion.benchmark_group("wire");
    let command = hot::command().unwrap();
    group.bench_function("write command", |b| {
        b.iter(|| serde_json::to_vec(black_box(&command)).unwrap());
    });
    let json = serde_json::to_vec(&command).unwrap();
    let join = || Bundle::join("gateway-1", std::iter::repeat_n(json.as_slice(), COMMANDS));
    group.bench_function("join 16 commands", |b| b.iter(join));
    let bundle = join();
    group.bench_function("parse 16 commands", |b| {
        b.iter(|| serde_json::from_slice::<Bundle>(black_box(&bundle)).unwrap());
    });
    let reply = format!(r#"{{"session":17,"id":"n7","frame":{REPLY}}}"#);
    let replies = format!("[{}]", vec![reply; COMMANDS].join(","));
    group.bench_function("parse 16 replies", |b| {
        b.iter(|| serde_json::from_str::<Replies<'_>>(black_box(&replies)).unwrap().0.len());
    });
    group.finish();
}

fn subjects(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("subject");
    let (plain, odd) = (UserId::new(SENDER).unwrap(), UserId::new("用户.* 17>").unwrap());
    let chat = Chat::between(&plain, &odd).unwrap();
    group.bench_function("live, plain id", |b| b.iter(|| subject::live(black_box(&plain))));
    group.bench_function("live, odd id", |b| b.iter(|| subject::live(black_box(&odd))));
    let token = subject::token(odd.as_str());
    group.bench_function("untoken, odd id", |b| b.iter(|| subject::untoken(black_box(&token))));
    group.bench_function("event", |b| b.iter(|| subject::event(3, black_box(&plain))));
    group.bench_function("partition", |b| b.iter(|| subject::partition(black_box(&chat), 8)));
    group.finish();
}

fn session(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("session");
    let (new, reply) = (hot::new(), Utf8Bytes::from_static(REPLY));
    group.bench_function("new, answer", |b| {
        let mut session = Session::begin().unwrap();
        b.iter(|| {
            session.text(black_box(&new));
            session.reply("n7", reply.clone());
            assert_eq!(session.out.len(), 2, "published and answered");
            session.out.clear();
        });
    });
    let body = to_text(&hot::event().unwrap()).unwrap();
    group.bench_function("event, ack", |b| {
        let mut session = Session::begin().unwrap();
        b.iter(|| {
            let id = session.live(black_box(body.as_bytes()));
            session.text(&wire::ack(id));
            assert_eq!(session.out.len(), 2, "sent and answered");
            session.out.clear();
        });
    });
    group.bench_function("next tick", |b| {
        let mut session = Session::begin().unwrap();
        for _ in 0..64 {
            session.live(body.as_bytes());
        }
        b.iter(|| black_box(&session.state).next_tick());
    });
    group.finish();
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
