//! Wakes the senders of an open loop when their messages are due. The runtime's timers count in milliseconds and round
//! up: at low rates most of what looked like the service's latency would be the generator's.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::shared::{Pair, Shared};

/// How long it sleeps at most before it looks whether the run is over.
const LOOK: Duration = Duration::from_millis(100);

/// Starts a thread that wakes one pair after the other, `rate` a second, from `start` on, until the run is over.
///
/// # Errors
/// If the system has no thread to give.
pub fn start(start: Instant, rate: f64, shared: Arc<Shared>, pairs: Vec<Arc<Pair>>) -> Result<()> {
    let beat = move || {
        for (tick, pair) in (0_u32..).zip(pairs.iter().cycle()) {
            let due = start + Duration::from_secs_f64(f64::from(tick) / rate);
            while !shared.stop.is_cancelled()
                && let Some(left) = due.checked_duration_since(Instant::now())
            {
                thread::sleep(left.min(LOOK));
            }
            if shared.stop.is_cancelled() {
                return;
            }
            pair.wake.notify_one();
        }
    };
    let thread = thread::Builder::new().name("metronome".into()).spawn(beat);
    thread.map(drop).context("a thread that wakes senders")
}
