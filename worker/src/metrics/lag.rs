//! Asks the broker now and then how much waits in each of this worker's partitions.

use std::time::Duration;

use async_nats::jetstream::stream::Stream;
use herald_proto::subject;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{Partitions, UNKNOWN};

/// Far more often than anyone scrapes, and still nothing to the broker.
const EVERY: Duration = Duration::from_secs(2);

/// Looks until told to stop.
pub async fn watch(partitions: Partitions, frames: Stream<()>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.cancelled() => return,
        }
        for partition in partitions.owned() {
            match frames.consumer_info(subject::consumer(partition)).await {
                Ok(info) => {
                    let waiting = info.num_pending.saturating_add(info.num_ack_pending as u64);
                    partitions.set_lag(partition, i64::try_from(waiting).unwrap_or(i64::MAX));
                }
                Err(error) => {
                    partitions.set_lag(partition, UNKNOWN);
                    tracing::debug!(%error, messaging.destination.partition.id = partition, "a partition's lag can't be told");
                }
            }
        }
    }
}
