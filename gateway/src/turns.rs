//! What all clients can cause at once is done a little at a time: those who chat have their turns between.

use std::{future::poll_fn, mem, task::Poll};

use tokio::{sync::Semaphore, task::yield_now};

/// Turns for work that comes in masses.
#[derive(Debug)]
pub struct Turns {
    /// One for each that has its turn before all others have theirs.
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
        // Whoever waits next is let in by the one who goes on: without a pause all would, one after the other.
        others_first().await;
    }
}

/// Goes on once every task that is ready now has had its turn, and what has come in meanwhile was looked at.
///
/// [`yield_now`] alone lets no more than some sixty others go first: after so many tokio looks at what has come in, and
/// goes on with whoever has yielded. For tasks: what a runtime blocks on does not queue up with them.
pub async fn others_first() {
    let mut is_behind = false;
    let fall_behind = poll_fn(|context| {
        if mem::replace(&mut is_behind, true) {
            Poll::Ready(())
        } else {
            context.waker().wake_by_ref();
            Poll::Pending
        }
    });
    fall_behind.await;
    yield_now().await;
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
        // Like a session that has something to do: it has its turn after those that were ready before it.
        let (mut before, mut most) = (0, 0);
        while before < ALL {
            yield_now().await;
            let now = done.load(Ordering::Relaxed);
            (before, most) = (now, most.max(now - before));
        }
        // While the first of the next ones go on, the last of those before them do.
        assert!(most <= 2 * AT_A_TIME, "{most} at once");
    }

    #[tokio::test]
    async fn however_many_are_ready_all_of_them_go_first() {
        const READY: usize = 1000;
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..READY {
            let done = done.clone();
            tokio::spawn(async move { done.fetch_add(1, Ordering::Relaxed) });
        }
        // In a task of its own: what a runtime blocks on does not queue up with its tasks.
        tokio::spawn(others_first()).await.unwrap();
        assert_eq!(done.load(Ordering::Relaxed), READY);
    }
}
