//! What one device has seen of its event log, pure: which events came again, out of order, or with a hole before them.

use std::collections::VecDeque;

use super::faults::Faults;

/// How many ids are remembered. One that is older counts as seen.
const REMEMBERED: usize = 1024;

/// An event's place in its user's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its id.
    pub id: u64,
    /// The id of the event before it, 0 for the first; `None` if the frame does not say.
    pub prev: Option<u64>,
}

/// The events that one device of a new user has seen.
#[derive(Debug, Default)]
pub struct Arrivals {
    last: u64,
    recent: VecDeque<u64>,
}

impl Arrivals {
    /// Takes the next event; returns whether it is new. One that was seen already is to be acked and otherwise ignored.
    pub fn take(&mut self, place: Place, faults: &mut Faults) -> bool {
        if place.id > self.last {
            if place.prev != Some(self.last) {
                faults.prev_breaks += 1;
            }
            self.last = place.id;
            self.remember(place.id);
            return true;
        }
        let too_old = self.recent.len() == REMEMBERED
            && self.recent.front().is_some_and(|oldest| place.id < *oldest);
        if too_old || self.recent.contains(&place.id) {
            faults.repeated_events += 1;
            return false;
        }
        faults.disordered_events += 1;
        self.remember(place.id);
        true
    }

    fn remember(&mut self, id: u64) {
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        let at = self.recent.partition_point(|known| *known < id);
        self.recent.insert(at, id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(places: &[(u64, u64)]) -> (Vec<bool>, Faults) {
        let (mut arrivals, mut faults) = (Arrivals::default(), Faults::default());
        let new = places
            .iter()
            .map(|(id, prev)| arrivals.take(Place { id: *id, prev: Some(*prev) }, &mut faults))
            .collect();
        (new, faults)
    }

    #[test]
    fn a_whole_chain_is_clean() {
        let (new, faults) = taken(&[(5, 0), (9, 5), (10, 9)]);
        assert_eq!((new, faults), (vec![true; 3], Faults::default()));
    }

    #[test]
    fn an_event_that_comes_again_is_not_new_and_no_failure() {
        let (new, faults) = taken(&[(5, 0), (9, 5), (5, 0), (9, 5)]);
        assert_eq!(new, [true, true, false, false]);
        assert_eq!(faults, Faults { repeated_events: 2, ..Faults::default() });
        assert!(faults.is_clean());
    }

    #[test]
    fn a_hole_in_the_chain_is_seen_and_so_is_what_fills_it_too_late() {
        let (new, faults) = taken(&[(5, 0), (10, 9), (9, 5)]);
        assert_eq!(new, [true; 3]);
        assert_eq!(faults, Faults { prev_breaks: 1, disordered_events: 1, ..Faults::default() });
        assert!(!faults.is_clean());
    }

    #[test]
    fn the_first_event_of_a_new_user_has_none_before_it() {
        assert_eq!(taken(&[(5, 4)]).1.prev_breaks, 1);
        let (mut arrivals, mut faults) = (Arrivals::default(), Faults::default());
        arrivals.take(Place { id: 5, prev: None }, &mut faults);
        assert_eq!(faults.prev_breaks, 1);
    }

    #[test]
    fn what_is_older_than_memory_counts_as_seen() {
        let places: Vec<(u64, u64)> = (1..=2000).map(|id| (id, id - 1)).chain([(3, 2)]).collect();
        assert_eq!(taken(&places).1, Faults { repeated_events: 1, ..Faults::default() });
    }
}
