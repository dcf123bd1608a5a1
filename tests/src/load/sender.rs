//! The user of a pair who writes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::{
    arrivals::Place,
    connection::{Connection, Ended},
    pace::Pace,
    shared::{Pair, Shared},
    stats::Span,
    wire::{self, Answered, EventType, Frame, Id, Kind},
};

/// How long to wait after an error that does not say how long.
const PAUSE: Duration = Duration::from_millis(100);

/// Writes at its pace until the run is over or the session ends.
pub async fn run(shared: Arc<Shared>, pair: Arc<Pair>, mut connection: Connection, pace: Pace) {
    let mut sender = Sender { shared: &shared, pair: &pair, pace, out: Vec::new() };
    match sender.serve(&mut connection).await {
        Ok(()) => connection.close().await,
        Err(ended) => shared.ended(&pair.sender, &ended),
    }
}

struct Sender<'a> {
    shared: &'a Shared,
    pair: &'a Pair,
    pace: Pace,
    out: Vec<String>,
}

impl Sender<'_> {
    async fn serve(&mut self, connection: &mut Connection) -> Result<(), Ended> {
        let mut batch = Vec::new();
        loop {
            self.write_new(Instant::now());
            connection.send(&mut self.out).await?;
            let wake = if self.shared.is_sending() { self.pace.wake(Instant::now()) } else { None };
            tokio::select! {
                received = connection.receive(&mut batch) => {
                    self.take(&mut batch);
                    received?;
                }
                () = at(wake) => {}
                () = self.pair.wake.notified() => {}
                () = self.shared.stop.cancelled() => return Ok(()),
            }
        }
    }

    fn write_new(&mut self, now: Instant) {
        let mut ledger = self.pair.ledger();
        while self.shared.is_sending()
            && let Some(due) = self.pace.due(now, ledger.open())
        {
            self.shared.take_permit();
            let key = ledger.sent(due);
            self.shared.stats().sent(due, now);
            self.out.push(wire::new(key, &self.pair.recipient, &self.shared.text));
        }
    }

    fn take(&mut self, batch: &mut Vec<Utf8Bytes>) {
        let now = Instant::now();
        for text in batch.drain(..) {
            match serde_json::from_str::<Frame<'_>>(&text) {
                Ok(frame) => {
                    if self.frame(&frame, now).is_none() {
                        self.shared.unreadable(&text, "nothing in the protocol explains it");
                    }
                }
                Err(error) => self.shared.unreadable(&text, error),
            }
        }
        self.pair.settle(self.shared, now);
    }

    /// `None` if nothing explains the frame.
    fn frame(&mut self, frame: &Frame<'_>, now: Instant) -> Option<()> {
        match frame.kind {
            Kind::Response => self.response(frame, now),
            Kind::Event => self.event(frame, now),
        }
    }

    fn response(&mut self, frame: &Frame<'_>, now: Instant) -> Option<()> {
        if let Some(failure) = &frame.error {
            self.shared.stats().error(failure.code, failure.message.as_deref().unwrap_or(""));
            self.pace.pause(now + failure.retry_after.map_or(PAUSE, Duration::from_millis));
        }
        match frame.id.answers() {
            Some(Answered::New(key)) if frame.error.is_some() => self.pair.ledger().refused(key),
            Some(Answered::New(key)) => {
                let sent_at = self.pair.ledger().answered(key, frame.payload.message_id?);
                if let Some(sent_at) = sent_at {
                    self.shared.stats().record(Span::Response, sent_at, now);
                }
            }
            Some(Answered::Ack(_)) => self.pair.ledger().replied(),
            // The id of a refused frame may be lost.
            None if frame.error.is_some() => {}
            Some(Answered::Dlvrd(_)) | None => return None,
        }
        Some(())
    }

    fn event(&mut self, frame: &Frame<'_>, now: Instant) -> Option<()> {
        let Id::Number(id) = frame.id else {
            // The peer's coming and going has no id.
            self.shared.faults().resyncs += u64::from(frame.event_type == EventType::Resync);
            return Some(());
        };
        let place = Place { id, prev: frame.prev };
        let mut ledger = self.pair.ledger();
        ledger.asked();
        self.out.push(wire::ack(id));
        let (EventType::Dlvrd, true) = (frame.event_type, self.shared.with_receipts) else {
            ledger.odd_event(place);
            return None;
        };
        let mut stats = self.shared.stats();
        ledger.received(place, frame.payload.message_id?, frame.payload.key()?, |sent_at| {
            stats.record(Span::Receipt, sent_at, now);
        });
        Some(())
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
