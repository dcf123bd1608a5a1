//! What a reader has to acknowledge.

use std::time::Duration;

use async_nats::jetstream;

use crate::{error::Error, failpoint};

/// Deliveries that are settled and not yet acknowledged. One acknowledgement stands for all before it, and nobody waits
/// for it: it only tells the broker from where on another worker would have to look.
pub(super) struct Settled {
    pub(super) last: Option<jetstream::Message>,
    pub(super) messages: usize,
    /// When they have to be acknowledged.
    pub(super) due: tokio::time::Instant,
}

/// How long an acknowledgement may wait for more to acknowledge.
const ACK_INTERVAL: Duration = Duration::from_millis(50);

impl Default for Settled {
    fn default() -> Self {
        Self { last: None, messages: 0, due: tokio::time::Instant::now() }
    }
}

impl Settled {
    pub(super) fn add(&mut self, mut delivered: Vec<jetstream::Message>) {
        if self.last.is_none() {
            self.due = tokio::time::Instant::now() + ACK_INTERVAL;
        }
        self.messages += delivered.len();
        self.last = delivered.pop();
    }

    pub(super) async fn acknowledge(&mut self) -> Result<(), Error> {
        self.messages = 0;
        if let Some(last) = self.last.take() {
            last.ack().await.map_err(Error::broker("acknowledge frames"))?;
            failpoint::step("after-ack");
        }
        Ok(())
    }
}
