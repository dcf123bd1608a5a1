//! What all clients can cause at once is done a little at a time: those who chat have their turns between.

use std::time::Duration;

use tokio::{
    sync::Semaphore,
    task::yield_now,
    time::{Instant, sleep},
};

/// Turns for work that comes in masses.
#[derive(Debug)]
pub struct Turns {
    /// Turns that are not taken.
    free: Semaphore,
}

impl Turns {
    /// Turns of which so many are taken before everybody else has theirs.
    pub fn new(at_a_time: usize) -> Self {
        Self { free: Semaphore::new(at_a_time) }
    }

    /// Waits for a turn: those who came first go first.
    pub async fn next(&self) {
        let _turn = self.free.acquire().await;
        // Kept meanwhile: given back at once, it would let all who wait through, one after the other.
        yield_now().await;
    }
}

/// Rests of somebody who gives work to many, as long as the work: the whole machine's others have that time.
#[derive(Debug)]
pub struct Rests {
    began_at: Instant,
}

/// The longest rest. A program that was held up has not worked.
const LONGEST: Duration = Duration::from_millis(20);

impl Rests {
    /// Work begins.
    pub fn begin() -> Self {
        Self { began_at: Instant::now() }
    }

    /// Lets those who were given work do it, and rests for as long as all of it took since the last rest.
    pub async fn rest(&mut self) {
        yield_now().await;
        // What their clients say at once is work, too.
        yield_now().await;
        sleep(self.began_at.elapsed().min(LONGEST)).await;
        *self = Self::begin();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::time::advance;

    use super::*;

    #[tokio::test]
    async fn others_have_their_turn_while_all_come_at_once() {
        const AT_A_TIME: usize = 8;
        const ALL: usize = AT_A_TIME * 10;
        let (turns, done) = (Arc::new(Turns::new(AT_A_TIME)), Arc::new(AtomicUsize::new(0)));
        for _ in 0..ALL {
            let (turns, done) = (turns.clone(), done.clone());
            tokio::spawn(async move {
                turns.next().await;
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        // It has its turn once a pass, as a session has that something comes in for.
        let (mut before, mut most) = (0, 0);
        while before < ALL {
            yield_now().await;
            let now = done.load(Ordering::Relaxed);
            (before, most) = (now, most.max(now - before));
        }
        // While the first of the next ones go on, the last of those before them do.
        assert!(most <= 2 * AT_A_TIME, "{most} at once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rest_is_as_long_as_the_work_before_it_and_no_longer_than_the_longest() {
        let mut rests = Rests::begin();
        for (work, rest) in [(3, 3), (7, 7), (10_000, 20)] {
            let (work, rest) = (Duration::from_millis(work), Duration::from_millis(rest));
            let began_at = Instant::now();
            advance(work).await;
            rests.rest().await;
            assert_eq!(began_at.elapsed(), work + rest);
        }
    }
}
