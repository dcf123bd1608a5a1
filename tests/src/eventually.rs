//! Waiting on a condition instead of sleeping and hoping.

use std::time::Duration;

use anyhow::{Result, anyhow};
use tokio::time::{Instant, sleep, timeout_at};

/// The pause between two looks at the condition: short at first, then up to this.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Looks at `condition` until it is `Ok`, and gives its value.
///
/// The condition says "not yet" with an error, best one that tells what it saw (`ensure!(n == 3, "{n} events")`).
///
/// # Errors
/// If it is not `Ok` within `deadline`: names `what` was waited for and the last error.
pub async fn eventually<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(2);
    let mut last = anyhow!("the condition never came to a result");
    loop {
        match timeout_at(end, condition()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => last = error,
            Err(_) => return Err(last.context(format!("not within {deadline:?}: {what}"))),
        }
        if Instant::now() + pause >= end {
            return Err(last.context(format!("not within {deadline:?}: {what}")));
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
