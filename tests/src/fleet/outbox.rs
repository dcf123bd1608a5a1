//! A device's requests that are not answered, pure: which are to be sent, and when.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::history::{Answer, Request};

/// A request that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    /// To be sent from then on.
    Due(Instant),
    /// Sent then, in the session that is under way.
    Asked(Instant),
}

/// Requests by number, which is also their order.
#[derive(Debug, Default)]
pub struct Outbox {
    open: BTreeMap<u32, (Request, Open)>,
}

impl Outbox {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// A new request, to be sent at once.
    pub fn add(&mut self, number: u32, request: Request, now: Instant) {
        self.open.insert(number, (request, Open::Due(now)));
    }

    /// The requests that are to be sent now, in order; they count as sent.
    pub fn take_due(&mut self, now: Instant) -> Vec<(u32, Request)> {
        let mut due = Vec::new();
        for (number, (request, open)) in &mut self.open {
            if matches!(open, Open::Due(at) if *at <= now) {
                *open = Open::Asked(now);
                due.push((*number, *request));
            }
        }
        due
    }

    /// A request was answered; one that has to be sent again is, after `pause`. Returns what was asked, if it waited.
    pub fn answered(
        &mut self,
        number: u32,
        answer: Answer,
        pause: Duration,
        now: Instant,
    ) -> Option<Request> {
        let (request, open) = self.open.get_mut(&number)?;
        let request = *request;
        if answer.is_transient() {
            *open = Open::Due(now + pause);
        } else {
            self.open.remove(&number);
        }
        Some(request)
    }

    /// The session has ended: what was not answered is to be sent again in the next one.
    pub fn lost(&mut self, now: Instant) {
        for (_, open) in self.open.values_mut() {
            *open = Open::Due(now);
        }
    }

    /// When there is something to be sent.
    pub fn next_due(&self) -> Option<Instant> {
        let due = self.open.values().filter_map(|(_, open)| match open {
            Open::Due(at) => Some(*at),
            Open::Asked(_) => None,
        });
        due.min()
    }

    /// Since when the oldest request waits for its answer in this session.
    pub fn oldest_asked(&self) -> Option<Instant> {
        let asked = self.open.values().filter_map(|(_, open)| match open {
            Open::Asked(at) => Some(*at),
            Open::Due(_) => None,
        });
        asked.min()
    }
}

#[cfg(test)]
mod tests {
    use herald_proto::ErrorCode;

    use super::*;
    use crate::history::{Key, User};

    fn new(key: u32) -> Request {
        Request::New { peer: User(1), key: Key(key) }
    }

    #[test]
    fn what_is_not_answered_is_sent_again_in_order_and_what_is_answered_is_not() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let mut outbox = Outbox::default();
        (1..=3).for_each(|number| outbox.add(number, new(number), now));
        assert_eq!(outbox.take_due(now).len(), 3);
        assert!(outbox.take_due(now).is_empty());
        let stored = Answer::Stored { message: 1, key: Key(2) };
        assert_eq!(outbox.answered(2, stored, second, now), Some(new(2)));
        assert_eq!(outbox.answered(2, stored, second, now), None);
        let refused = Answer::Refused(ErrorCode::Unavailable);
        assert_eq!(outbox.answered(3, refused, second, now), Some(new(3)));
        assert_eq!((outbox.next_due(), outbox.oldest_asked()), (Some(now + second), Some(now)));
        outbox.lost(now);
        assert_eq!(outbox.take_due(now), [(1, new(1)), (3, new(3))]);
    }
}
