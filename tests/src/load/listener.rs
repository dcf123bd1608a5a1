//! A further device of who receives: gets every event as well, acks it, and says nothing.

use std::{sync::Arc, time::Instant};

use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::{
    arrivals::{Arrivals, Place},
    connection::{Connection, Ended},
    shared::{Pair, Shared},
    wire::{self, EventType, Frame, Id, Kind},
};

/// Receives until the run is over or the session ends.
pub async fn run(shared: Arc<Shared>, pair: Arc<Pair>, mut connection: Connection) {
    let arrivals = Arrivals::default();
    let mut listener = Listener { shared: &shared, pair: &pair, arrivals, out: Vec::new() };
    match listener.serve(&mut connection).await {
        Ok(()) => connection.close().await,
        Err(ended) => shared.ended(&pair.recipient, &ended),
    }
}

struct Listener<'a> {
    shared: &'a Shared,
    pair: &'a Pair,
    arrivals: Arrivals,
    out: Vec<String>,
}

impl Listener<'_> {
    async fn serve(&mut self, connection: &mut Connection) -> Result<(), Ended> {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                received = connection.receive(&mut batch) => {
                    let now = Instant::now();
                    batch.drain(..).for_each(|text| self.take(&text, now));
                    received?;
                }
                () = self.shared.stop.cancelled() => return Ok(()),
            }
            connection.send(&mut self.out).await?;
        }
    }

    fn take(&mut self, text: &Utf8Bytes, now: Instant) {
        let frame: Frame<'_> = match serde_json::from_str(text) {
            Ok(frame) => frame,
            Err(error) => return self.shared.unreadable(text, error),
        };
        match (frame.kind, frame.id) {
            (Kind::Event, Id::Number(id)) => {
                self.out.push(wire::ack(id));
                let place = Place { id, prev: frame.prev };
                let is_new = self.arrivals.take(place, &mut self.shared.faults());
                if is_new && frame.event_type == EventType::New {
                    self.pair.heard();
                    self.shared.stats().delivered(now);
                }
            }
            (Kind::Event, _) => {
                self.shared.faults().resyncs += u64::from(frame.event_type == EventType::Resync);
            }
            (Kind::Response, _) => {}
        }
    }
}
