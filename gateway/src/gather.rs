//! Look-ups made together: who comes while the broker is asked waits, and then all who wait are asked for at once. One
//! that comes alone is asked for at once, by itself.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{
    Semaphore,
    oneshot::{self, error::RecvError},
};

use crate::error::Error;

/// Who looks up something of one kind.
pub struct Gather<K, V> {
    what: &'static str,
    waiting: Mutex<VecDeque<Asker<K, V>>>,
    turns: Semaphore,
    /// The most looked up at once.
    most: usize,
}

struct Asker<K, V> {
    key: K,
    answer: oneshot::Sender<Result<V, Arc<Error>>>,
}

/// How often the broker may be asked at the same time: with one, a slow answer would hold everybody up.
const AT_ONCE: usize = 2;

impl<K: Clone, V> Gather<K, V> {
    /// Nobody waits; `what` names the look-up in errors, `most` is the most looked up at once.
    pub fn new(what: &'static str, most: usize) -> Self {
        Self { what, waiting: Mutex::default(), turns: Semaphore::new(AT_ONCE), most }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Asker<K, V>>> {
        // Every change is whole, whoever panicked while holding the lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks `key` up, alone or with those who wait. `look_up` is given their keys, and returns the value of each in
    /// their order; it may leave out the last of them, which are asked for again.
    ///
    /// # Errors
    /// What `look_up` fails with, for all it was called for.
    pub async fn ask<F>(&self, key: K, look_up: impl Fn(Vec<K>) -> F) -> Result<V, Error>
    where
        F: Future<Output = Result<Vec<V>, Error>>,
    {
        let (answer, mut answered) = oneshot::channel();
        self.waiting().push_back(Asker { key, answer });
        loop {
            let turn = tokio::select! {
                biased;
                answer = &mut answered => return self.unwrap(answer),
                turn = self.turns.acquire() => turn,
            };
            let mut askers = self.take();
            if askers.is_empty() {
                drop(turn);
                return self.unwrap(answered.await);
            }
            while !askers.is_empty() {
                let found = look_up(askers.iter().map(|asker| asker.key.clone()).collect()).await;
                self.hand_out(&mut askers, found);
            }
        }
    }

    /// Those who wait, as many as can be looked up at once.
    fn take(&self) -> VecDeque<Asker<K, V>> {
        let mut waiting = self.waiting();
        waiting.retain(|asker| !asker.answer.is_closed());
        let count = waiting.len().min(self.most);
        waiting.drain(..count).collect()
    }

    /// Answers those for whom something was found, or all of them if the look-up has failed.
    fn hand_out(&self, askers: &mut VecDeque<Asker<K, V>>, found: Result<Vec<V>, Error>) {
        let error = match found {
            Ok(values) if !values.is_empty() => {
                for (asker, value) in askers.drain(..values.len().min(askers.len())).zip(values) {
                    // One that is gone needs no answer.
                    let _ = asker.answer.send(Ok(value));
                }
                return;
            }
            Ok(_) => Error::Unreadable(self.what),
            Err(error) => error,
        };
        let error = Arc::new(error);
        for asker in askers.drain(..) {
            let _ = asker.answer.send(Err(error.clone()));
        }
    }

    /// No answer comes if whoever asked for others too was given up.
    fn unwrap(&self, answer: Result<Result<V, Arc<Error>>, RecvError>) -> Result<V, Error> {
        answer.map_err(|_| Error::Silent(self.what))?.map_err(Error::Shared)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;

    use super::*;

    async fn twice(keys: Vec<u32>) -> Result<Vec<u32>, Error> {
        tokio::task::yield_now().await;
        Ok(keys.into_iter().map(|key| key * 2).collect())
    }

    #[tokio::test]
    async fn everyone_gets_its_own_and_many_are_asked_for_at_once() {
        let (gather, calls) = (Gather::new("a test", 16), AtomicUsize::new(0));
        let look_up = |keys: Vec<u32>| {
            calls.fetch_add(1, Ordering::Relaxed);
            assert!(keys.len() <= 16);
            twice(keys)
        };
        let found = join_all((0..100).map(|key| gather.ask(key, look_up))).await;
        let found: Vec<u32> = found.into_iter().map(Result::unwrap).collect();
        assert_eq!(found, (0..100).map(|key| key * 2).collect::<Vec<_>>());
        let calls = calls.into_inner();
        assert!((7..20).contains(&calls), "{calls}");
    }

    #[tokio::test]
    async fn who_is_left_out_is_asked_for_again() {
        let gather = Gather::new("a test", 16);
        let some = async |keys: Vec<u32>| twice(keys).await.map(|found| found[..1].to_vec());
        let found = join_all((0..10).map(|key| gather.ask(key, some))).await;
        let found: Vec<u32> = found.into_iter().map(Result::unwrap).collect();
        assert_eq!(found, (0..10).map(|key| key * 2).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_failure_is_told_to_all_it_was_for_and_to_nobody_else() {
        let gather = Gather::new("a test", 16);
        let fails = async |keys: Vec<u32>| {
            let found = twice(keys.clone()).await?;
            if keys.contains(&3) { Err(Error::Full) } else { Ok(found) }
        };
        let found = join_all((0..40).map(|key| gather.ask(key, fails))).await;
        let failed = found.iter().filter(|found| matches!(found, Err(Error::Shared(_)))).count();
        assert!(found[3].is_err());
        assert!((1..=16).contains(&failed), "{failed}");
    }

    #[tokio::test]
    async fn who_asks_for_others_and_goes_leaves_nobody_waiting() {
        let gather = Gather::new("a test", 16);
        let mut first = Box::pin(gather.ask(1, |_| std::future::pending()));
        let mut second = Box::pin(gather.ask(2, |_| std::future::pending()));
        assert!(
            futures::poll!(&mut first).is_pending() && futures::poll!(&mut second).is_pending()
        );
        let mut third = Box::pin(gather.ask(3, twice));
        assert!(futures::poll!(&mut third).is_pending());
        drop(first);
        assert_eq!(third.await.unwrap(), 6);
    }
}
