//! What the connection to the broker tells about itself.

use std::sync::atomic::Ordering::Relaxed;

use async_nats::{Client, connection};

use super::{Kind, Registry};

/// Registers a connection.
#[expect(clippy::cast_precision_loss, reason = "Prometheus' numbers are f64")]
pub fn register(registry: &mut Registry, client: &Client) {
    let asked = client.clone();
    registry.read(
        "herald_nats_connected",
        "Whether there is a connection to NATS now.",
        Kind::Gauge,
        move || {
            let is_connected = asked.connection_state() == connection::State::Connected;
            f64::from(u8::from(is_connected))
        },
    );
    let statistics = client.statistics();
    registry.read(
        "herald_nats_connects",
        "Times that a connection to NATS was made, the first one included.",
        Kind::Counter,
        move || statistics.connects.load(Relaxed) as f64,
    );
    let statistics = client.statistics();
    registry.read_each(
        "herald_nats_messages",
        "Messages that this connection to NATS has carried. A gateway's requests, events and reads of logs go over others.",
        Kind::Counter,
        move |sample| {
            let (received, sent) = (&statistics.in_messages, &statistics.out_messages);
            sample(vec![("direction", "in".into())], received.load(Relaxed) as f64);
            sample(vec![("direction", "out".into())], sent.load(Relaxed) as f64);
        },
    );
    let statistics = client.statistics();
    registry.read_each(
        "herald_nats_transferred_bytes",
        "Bytes that this connection to NATS has carried. A gateway's requests, events and reads of logs go over others.",
        Kind::Counter,
        move |sample| {
            let (received, sent) = (&statistics.in_bytes, &statistics.out_bytes);
            sample(vec![("direction", "in".into())], received.load(Relaxed) as f64);
            sample(vec![("direction", "out".into())], sent.load(Relaxed) as f64);
        },
    );
}
