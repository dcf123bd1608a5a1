//! What all clients can cause at once is done a little at a time: those who chat have their turns between.

use tokio::{sync::Semaphore, task::yield_now};

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

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

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
}
