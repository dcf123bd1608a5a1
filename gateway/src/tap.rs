//! What goes over the tap, a gateway's connection of its own: requests and their confirmations, replies, live events.

use std::sync::Arc;

use herald_proto::link::{Receive, protocol::Message};

use crate::{
    publisher::{CONFIRMATIONS, Publisher},
    registry::Registry,
};

/// Who takes what comes over the tap.
pub struct Tap {
    /// Takes replies and live events.
    pub registry: Registry,
    /// Takes confirmations, and sends requests.
    pub publisher: Arc<Publisher>,
}

impl Receive for Tap {
    fn subscribe(&self, commands: &mut Vec<u8>) {
        self.publisher.subscribe(commands);
        self.registry.subscribe(commands);
    }

    fn due(&self, commands: &mut Vec<u8>) -> usize {
        self.publisher.due(commands)
    }

    fn receive(&self, message: &Message<'_>) {
        match message.sid {
            CONFIRMATIONS => self.publisher.receive(message),
            _ => self.registry.receive(message),
        }
    }

    fn quiet(&self) {
        self.publisher.quiet();
    }

    fn lost(&self) {
        self.publisher.lost();
        self.registry.lost();
    }
}
