//! What the connections to the broker tell about themselves.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use async_nats::{Client, connection};

use super::{Kind, Registry};

/// What a connection without `async-nats` has carried.
#[derive(Debug, Default)]
pub struct Traffic {
    received: Count,
    sent: Count,
}

#[derive(Debug, Default)]
struct Count {
    messages: AtomicU64,
    bytes: AtomicU64,
}

/// Registers a connection, and what `others` carry.
#[expect(clippy::cast_precision_loss, reason = "Prometheus' numbers are f64")]
pub fn register(registry: &mut Registry, client: &Client, others: &[Arc<Traffic>]) {
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
    let (statistics, all) = (client.statistics(), others.to_vec());
    registry.read_each(
        "herald_nats_messages",
        "Messages that all connections to NATS have carried.",
        Kind::Counter,
        move |sample| {
            let sum = |own, of: fn(&Traffic) -> &AtomicU64| sum(own, &all, of);
            let received =
                sum(statistics.in_messages.load(Relaxed), |other| &other.received.messages);
            let sent = sum(statistics.out_messages.load(Relaxed), |other| &other.sent.messages);
            sample(vec![("direction", "in".into())], received);
            sample(vec![("direction", "out".into())], sent);
        },
    );
    let (statistics, all) = (client.statistics(), others.to_vec());
    registry.read_each(
        "herald_nats_transferred_bytes",
        "Bytes that all connections to NATS have carried.",
        Kind::Counter,
        move |sample| {
            let sum = |own, of: fn(&Traffic) -> &AtomicU64| sum(own, &all, of);
            let received = sum(statistics.in_bytes.load(Relaxed), |other| &other.received.bytes);
            let sent = sum(statistics.out_bytes.load(Relaxed), |other| &other.sent.bytes);
            sample(vec![("direction", "in".into())], received);
            sample(vec![("direction", "out".into())], sent);
        },
    );
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus' numbers are f64")]
fn sum(own: u64, others: &[Arc<Traffic>], of: fn(&Traffic) -> &AtomicU64) -> f64 {
    others.iter().fold(own, |sum, other| sum + of(other).load(Relaxed)) as f64
}

impl Traffic {
    /// So many messages have come, and so many bytes.
    pub fn received(&self, messages: usize, bytes: usize) {
        self.received.add(messages, bytes);
    }

    /// So many messages have gone, and so many bytes.
    pub fn sent(&self, messages: usize, bytes: usize) {
        self.sent.add(messages, bytes);
    }
}

impl Count {
    fn add(&self, messages: usize, bytes: usize) {
        self.messages.fetch_add(messages as u64, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }
}
