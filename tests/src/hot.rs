//! Samples of the pure code that every message passes, for the benchmarks of its time and of its allocations.

use std::{sync::Arc, time::Instant};

use anyhow::{Context as _, Result};
use clap::Parser as _;
use herald_gateway::{
    config::Config,
    inbox::Fetched,
    log::Place,
    metrics::Origin,
    session::{Output, State},
};
use herald_proto::{
    ClientMessageId, EventId, MessageId, UserId,
    frame::{Answer, ClientFrame, Event, EventBody, Response},
    payload::{Arrived, Stored},
    wire::Command,
};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::load::wire;

/// A time in milliseconds since the Unix epoch.
pub const CLOCK: i64 = 1_700_000_000_000;
/// A user of `load`.
pub const SENDER: &str = "load-0123abcd-17-a";
/// Its peer.
pub const RECIPIENT: &str = "load-0123abcd-17-b";
/// The text of the message: what a peer measures as "100 bytes".
const TEXT: [u8; 100] = [b'x'; 100];
/// The worker's answer to [`new`], as the gateway gets it.
pub const REPLY: &str = r#"{"type":"response","timestamp":1700000000000,"id":"n7","payload":{"messageId":7,"clientMessageId":"7"}}"#;

fn text() -> String {
    String::from_utf8_lossy(&TEXT).into_owned()
}

/// A `new` of 100 bytes as a client sends it, under the id `n7`.
pub fn new() -> String {
    wire::new(7, RECIPIENT, &text())
}

/// The answer to it.
///
/// # Errors
/// Never: all ids are legal.
pub fn stored() -> Result<Response> {
    let message_id = MessageId::new(7).context("a message id")?;
    let client_message_id = ClientMessageId::new("7")?;
    let answer = Answer::Stored(Stored { message_id, client_message_id });
    Ok(Response { id: Some("n7".into()), timestamp: CLOCK, answer })
}

/// The event that it causes.
///
/// # Errors
/// Never: all ids are legal.
pub fn event() -> Result<Event> {
    let arrived = Arrived {
        chat_id: UserId::new(SENDER)?,
        message_id: MessageId::new(7).context("a message id")?,
        client_message_id: ClientMessageId::new("7")?,
        message: Some(text()),
        attachments: vec![],
        missed: 7,
    };
    Ok(Event::new(CLOCK, EventBody::New(arrived)))
}

/// It as it travels to a worker.
///
/// # Errors
/// Never: it is a request.
pub fn command() -> Result<Command> {
    let frame = ClientFrame::parse(&new()).map_err(|refusal| refusal.error).ok();
    let Some(ClientFrame::Request { id, timestamp, request, .. }) = frame else {
        anyhow::bail!("not a request")
    };
    let from = UserId::new(SENDER)?;
    Ok(Command {
        from,
        session: 17,
        id,
        sent_at: timestamp,
        received_at: CLOCK,
        traceparent: None,
        request,
    })
}

/// A session without limits that has read its log and found nothing.
#[derive(Debug)]
pub struct Session {
    /// Its rules.
    pub state: State,
    /// What has to happen.
    pub out: Vec<Output>,
    now: Instant,
    last: u64,
}

impl Session {
    /// Begins one.
    ///
    /// # Errors
    /// Never: the flags are legal.
    pub fn begin() -> Result<Self> {
        let flags =
            ["herald-gateway", "--insecure-auth", "--rate=4000000000", "--burst=4000000000"];
        let limits = Arc::new(Config::try_parse_from(flags)?.limits);
        let now = Instant::now();
        let mut state = State::new(
            UserId::new(SENDER)?,
            limits,
            Arc::default(),
            Place::after(EventId(0)),
            None,
            now,
        );
        let mut out = Vec::new();
        state.start(&mut out);
        let nothing =
            Fetched { events: vec![], traces: vec![], more: false, is_there: true, resync: None };
        state.fetched(nothing, CLOCK, now, &mut out);
        out.clear();
        Ok(Self { state, out, now, last: 0 })
    }

    /// The client has sent a text.
    pub fn text(&mut self, text: &str) {
        self.state.text(text, CLOCK, self.now, &mut self.out);
    }

    /// The worker has answered a request.
    pub fn reply(&mut self, id: &str, frame: Utf8Bytes) {
        self.state.reply(id, frame, self.now, &mut self.out);
    }

    /// The user's next event has come; returns its id.
    pub fn live(&mut self, body: &[u8]) -> u64 {
        let prev = EventId(self.last);
        self.last += 1;
        let origin = Origin { at: CLOCK, trace: None };
        self.state.live(EventId(self.last), prev, body, origin, self.now, &mut self.out);
        self.last
    }
}
