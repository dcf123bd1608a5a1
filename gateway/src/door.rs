//! How fast clients come in, and how fast a gateway that drains sends them elsewhere. After an outage, and while gateways
//! are rolled, many come at once, and to begin a session costs far more than to keep it.

use std::{
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use crate::{config::Limits, error::Error, session::bucket::Bucket, turns::Turns};

/// The door.
#[derive(Debug)]
pub struct Door {
    coming_in: Mutex<Bucket>,
    /// One for each session that may begin at the same time.
    beginning: Semaphore,
    /// For those who shake hands. Nobody waits behind those who do something else: a handshake has not much time.
    pub handshakes: Turns,
    /// For sessions that begin.
    pub begins: Turns,
    /// For sessions whose clients are gone.
    pub ends: Turns,
    reconnect_rate: u32,
    /// Over how long those inside are asked to come back, once the gateway drains.
    spread: OnceLock<Duration>,
}

/// How many sessions may begin at the same time. Enough to keep the broker busy, and to ask it for many of them together;
/// a thousand would only keep those who chat waiting.
const BEGINNING: usize = 64;
/// How many shake hands and how many begin before others have their turn.
const AT_A_TIME: usize = 8;
/// How many end: nobody waits for it.
const ENDS_AT_A_TIME: usize = 2;
/// How long a session may wait for its turn to begin.
const PATIENCE: Duration = Duration::from_secs(30);
/// The least time over which clients are asked to come back.
const SPREAD: Duration = Duration::from_secs(5);

impl Door {
    /// A door that nobody has passed yet.
    pub fn new(limits: &Limits, now: Instant) -> Self {
        let coming_in = Mutex::new(Bucket::new(limits.accept_rate, limits.accept_rate, now));
        Self {
            coming_in,
            beginning: Semaphore::new(BEGINNING),
            handshakes: Turns::new(AT_A_TIME),
            begins: Turns::new(AT_A_TIME),
            ends: Turns::new(ENDS_AT_A_TIME),
            reconnect_rate: limits.reconnect_rate,
            spread: OnceLock::new(),
        }
    }

    /// Lets a client in.
    ///
    /// # Errors
    /// If too many come at once: the reason of the close frame, with the time after which to come again.
    pub fn enter(&self, now: Instant) -> Result<(), String> {
        // A bucket is changed as a whole, whoever panicked while holding the lock.
        let mut coming_in = self.coming_in.lock().unwrap_or_else(PoisonError::into_inner);
        coming_in.take(now).map_err(|wait| hint(Duration::from_millis(wait), SPREAD))
    }

    /// Waits until a session may begin: those who came first go first.
    ///
    /// # Errors
    /// If it takes long: those before it wait for a broker that does not answer.
    pub async fn turn_to_begin(&self) -> Result<SemaphorePermit<'_>, Error> {
        match timeout(PATIENCE, self.beginning.acquire()).await {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(Error::Silent("begin sessions")),
        }
    }

    /// Over how long the clients of this gateway are asked to come back: long enough that they don't come faster than
    /// `--reconnect-rate`. Decided when it is first asked, by how many sessions there are then.
    pub fn spread(&self, sessions: usize) -> Duration {
        *self.spread.get_or_init(|| {
            let seconds =
                sessions.div_ceil(usize::try_from(self.reconnect_rate).unwrap_or(1).max(1));
            SPREAD.max(Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX)))
        })
    }

    /// The reason of a draining gateway's close frame: when to come back, another time for each client.
    pub fn come_back(&self, sessions: usize) -> String {
        hint(Duration::ZERO, self.spread(sessions))
    }
}

fn hint(at_least: Duration, spread: Duration) -> String {
    let after = (at_least + spread.mul_f64(fastrand::f64())).as_millis();
    format!("{{\"retryAfter\":{after}}}")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::Config;

    fn door(flags: &[&str], now: Instant) -> Door {
        let flags = [&["herald-gateway", "--insecure-auth"], flags].concat();
        Door::new(&Config::try_parse_from(flags).unwrap().limits, now)
    }

    #[test]
    fn who_comes_too_fast_is_told_when_to_come_again() {
        let start = Instant::now();
        let door = door(&["--accept-rate", "10"], start);
        assert!((0..10).all(|_| door.enter(start).is_ok()));
        let reason: serde_json::Value =
            serde_json::from_str(&door.enter(start).unwrap_err()).unwrap();
        let after = reason["retryAfter"].as_u64().unwrap();
        assert!((100..=5101).contains(&after), "{after}");
        assert!(door.enter(start + Duration::from_millis(100)).is_ok());
        assert!(door.enter(start + Duration::from_millis(150)).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_long_for_a_turn_to_begin_is_told() {
        let door = door(&[], Instant::now());
        let mut turns = Vec::new();
        for _ in 0..BEGINNING {
            turns.push(door.turn_to_begin().await.unwrap());
        }
        let late = timeout(PATIENCE * 2, door.turn_to_begin()).await.expect("it is told");
        assert!(late.is_err());
        turns.pop();
        assert!(door.turn_to_begin().await.is_ok());
    }

    #[test]
    fn the_more_have_to_go_the_longer_they_are_spread() {
        let few = door(&["--reconnect-rate", "1000"], Instant::now());
        assert_eq!(few.spread(4000), Duration::from_secs(5));
        let many = door(&["--reconnect-rate", "1000"], Instant::now());
        assert_eq!(many.spread(50_000), Duration::from_secs(50));
        // Those that close last must not all be told to come at once.
        assert_eq!(many.spread(1), Duration::from_secs(50));
    }
}
