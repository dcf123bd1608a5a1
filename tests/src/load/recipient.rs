//! The user of a pair who receives: acks each message's event, and reports it as delivered.

use std::{sync::Arc, time::Instant};

use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::{
    arrivals::Place,
    connection::{Connection, Ended},
    ledger::Arrival,
    shared::{Pair, Shared},
    stats::Span,
    wire::{self, Answered, EventType, Frame, Id, Kind},
};

/// Receives until the run is over or the session ends.
pub async fn run(shared: Arc<Shared>, pair: Arc<Pair>, mut connection: Connection) {
    let mut recipient = Recipient { shared: &shared, pair: &pair, out: Vec::new() };
    match recipient.serve(&mut connection).await {
        Ok(()) => connection.close().await,
        Err(ended) => shared.ended(&pair.recipient, &ended),
    }
}

struct Recipient<'a> {
    shared: &'a Shared,
    pair: &'a Pair,
    out: Vec<String>,
}

impl Recipient<'_> {
    async fn serve(&mut self, connection: &mut Connection) -> Result<(), Ended> {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                received = connection.receive(&mut batch) => {
                    self.take(&mut batch);
                    received?;
                }
                () = self.shared.stop.cancelled() => return Ok(()),
            }
            connection.send(&mut self.out).await?;
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
        if self.pair.settle(self.shared, now) {
            self.pair.wake.notify_one();
        }
    }

    /// `None` if nothing explains the frame.
    fn frame(&mut self, frame: &Frame<'_>, now: Instant) -> Option<()> {
        match frame.kind {
            Kind::Response => self.response(frame),
            Kind::Event => self.event(frame, now),
        }
    }

    fn response(&self, frame: &Frame<'_>) -> Option<()> {
        if let Some(failure) = &frame.error {
            self.shared.stats().error(failure.code, failure.message.as_deref().unwrap_or(""));
        }
        match frame.id.answers() {
            Some(Answered::Ack(_)) => self.pair.ledger().replied(),
            Some(Answered::Dlvrd(message_id)) => {
                let mut ledger = self.pair.ledger();
                ledger.replied();
                if frame.error.is_some() {
                    ledger.report_refused(message_id);
                    self.pair.wake.notify_one();
                }
            }
            // The id of a refused frame may be lost.
            None if frame.error.is_some() => {}
            Some(Answered::New(_)) | None => return None,
        }
        Some(())
    }

    fn event(&mut self, frame: &Frame<'_>, now: Instant) -> Option<()> {
        let Id::Number(id) = frame.id else {
            // The peer's coming and going has no id.
            self.shared.faults().resyncs += u64::from(frame.event_type == EventType::Resync);
            return Some(());
        };
        let mut ledger = self.pair.ledger();
        ledger.asked();
        self.out.push(wire::ack(id));
        if frame.event_type != EventType::New {
            return None;
        }
        let payload = &frame.payload;
        let message_id = payload.message_id?;
        let arrival = Arrival {
            key: payload.key()?,
            message_id,
            missed: payload.missed,
            intact: payload.message == Some(&self.shared.text),
        };
        // What came before was reported before.
        let Some(sent_at) = ledger.arrived(Place { id, prev: frame.prev }, arrival) else {
            return Some(());
        };
        let mut stats = self.shared.stats();
        stats.delivered(now);
        if let Some(sent_at) = sent_at {
            stats.record(Span::Event, sent_at, now);
        }
        drop(stats);
        if self.shared.with_receipts {
            ledger.asked();
            self.out.push(wire::dlvrd(message_id, &self.pair.sender));
        }
        Some(())
    }
}
