use std::time::Duration;

use super::*;

/// A pair whose two users get the events 1, 2, 3 … each.
struct Pair {
    ledger: Ledger,
    start: Instant,
    to_sender: u64,
    to_recipient: u64,
}

impl Pair {
    fn new(wants_receipts: bool) -> Self {
        Self {
            ledger: Ledger::new(wants_receipts),
            start: Instant::now(),
            to_sender: 0,
            to_recipient: 0,
        }
    }

    fn send(&mut self, messages: u64) {
        for key in 1..=messages {
            assert_eq!(self.ledger.sent(self.start + Duration::from_secs(key)), key);
        }
    }

    fn arrive(&mut self, key: u64, message_id: u64) -> Option<Option<Instant>> {
        self.to_recipient += 1;
        let place = Place { id: self.to_recipient, prev: Some(self.to_recipient - 1) };
        self.ledger
            .arrived(place, Arrival { key, message_id, missed: Some(message_id), intact: true })
    }

    /// The seconds at which the messages were sent that the receipt covers.
    fn receive(&mut self, up_to: u64, key: u64) -> Vec<u64> {
        self.to_sender += 1;
        let place = Place { id: self.to_sender, prev: Some(self.to_sender - 1) };
        let mut seconds = Vec::new();
        let start = self.start;
        self.ledger.received(place, up_to, key, |at| seconds.push((at - start).as_secs()));
        seconds
    }

    fn second(&self, at: Option<Instant>) -> u64 {
        (at.expect("sent") - self.start).as_secs()
    }
}

#[test]
fn a_cycle_is_complete_with_its_receipt() {
    let mut pair = Pair::new(true);
    pair.send(1);
    let at = pair.ledger.answered(1, 1);
    assert_eq!(pair.second(at), 1);
    let at = pair.arrive(1, 1).expect("new");
    assert_eq!(pair.second(at), 1);
    assert_eq!((pair.ledger.open(), pair.ledger.take_completed()), (1, 0));
    assert_eq!(pair.receive(1, 1), [1]);
    assert_eq!((pair.ledger.open(), pair.ledger.take_completed()), (0, 1));
    assert_eq!(pair.ledger.take_completed(), 0, "each is told once");
    assert_eq!(pair.ledger.close(), Faults::default());
}

#[test]
fn without_receipts_answer_and_event_are_enough_in_either_order() {
    let mut pair = Pair::new(false);
    pair.send(2);
    pair.ledger.answered(1, 1);
    pair.arrive(1, 1);
    pair.arrive(2, 2);
    assert_eq!(pair.ledger.open(), 1);
    pair.ledger.answered(2, 2);
    assert_eq!((pair.ledger.open(), pair.ledger.take_completed()), (0, 2));
    assert_eq!(pair.ledger.close(), Faults::default());
}

#[test]
fn one_receipt_covers_all_up_to_its_message_and_none_after() {
    let mut pair = Pair::new(true);
    pair.send(4);
    for key in 1..=4 {
        pair.arrive(key, key);
        pair.ledger.answered(key, key);
    }
    assert_eq!(pair.receive(3, 3), [1, 2, 3]);
    assert_eq!(pair.ledger.take_completed(), 3);
    assert_eq!(pair.ledger.close(), Faults { lost_receipts: 1, ..Faults::default() });
}

#[test]
fn what_never_came_is_lost_by_how_far_it_got() {
    let mut pair = Pair::new(true);
    pair.send(3);
    pair.ledger.answered(1, 1);
    pair.ledger.answered(2, 2);
    pair.arrive(1, 1);
    let faults = pair.ledger.close();
    assert_eq!(
        faults,
        Faults { lost_receipts: 1, lost_events: 1, unanswered: 1, ..Faults::default() }
    );
    assert!(!faults.is_clean());
}

#[test]
fn a_refused_message_is_not_lost_and_may_arrive_all_the_same() {
    let mut pair = Pair::new(true);
    pair.send(2);
    pair.ledger.refused(1);
    pair.ledger.refused(2);
    assert_eq!((pair.ledger.open(), pair.ledger.take_completed()), (0, 0));
    assert_eq!(pair.arrive(1, 1), Some(None));
    assert_eq!(
        pair.ledger.faults,
        Faults { refused: 2, refused_but_stored: 1, ..Faults::default() }
    );
    assert!(pair.ledger.faults.is_clean());
    pair.arrive(1, 2);
    assert_eq!(pair.ledger.close().duplicate_messages, 1, "but only once");
}

#[test]
fn a_message_under_two_events_is_a_duplicate_also_when_it_is_complete() {
    let mut pair = Pair::new(true);
    pair.send(1);
    pair.ledger.answered(1, 1);
    pair.arrive(1, 1);
    pair.arrive(1, 1);
    assert_eq!(pair.ledger.faults.duplicate_messages, 1);
    pair.receive(1, 1);
    pair.arrive(1, 1);
    assert_eq!(pair.ledger.close().duplicate_messages, 2);
}

#[test]
fn the_same_event_again_is_only_counted() {
    let mut pair = Pair::new(true);
    pair.send(1);
    pair.ledger.answered(1, 1);
    pair.arrive(1, 1);
    pair.to_recipient -= 1;
    assert_eq!(pair.arrive(1, 1), None);
    pair.receive(1, 1);
    pair.to_sender -= 1;
    assert!(pair.receive(1, 1).is_empty());
    assert_eq!(pair.ledger.close(), Faults { repeated_events: 2, ..Faults::default() });
}

#[test]
fn message_ids_must_follow_each_other() {
    let mut pair = Pair::new(false);
    pair.send(3);
    for key in [1, 3, 2] {
        pair.ledger.answered(key, key);
        pair.arrive(key, key);
    }
    assert_eq!(pair.ledger.close(), Faults { disordered_messages: 2, ..Faults::default() });
}

#[test]
fn response_event_and_receipt_must_agree() {
    let mut pair = Pair::new(true);
    pair.send(2);
    pair.ledger.answered(1, 1);
    pair.ledger.answered(2, 3);
    pair.arrive(1, 1);
    pair.arrive(2, 2);
    assert_eq!(
        pair.ledger.faults.mismatches, 1,
        "one id for the sender, another for the recipient"
    );
    pair.receive(1, 2);
    assert_eq!(pair.ledger.close().mismatches, 2, "the receipt names another key");
}

#[test]
fn receipts_only_move_forward() {
    let mut pair = Pair::new(true);
    pair.send(2);
    for key in [1, 2] {
        pair.ledger.answered(key, key);
        pair.arrive(key, key);
    }
    pair.receive(2, 2);
    assert!(pair.receive(1, 1).is_empty());
    assert_eq!(pair.ledger.close(), Faults { duplicate_receipts: 1, ..Faults::default() });
}

#[test]
fn text_and_count_are_checked() {
    let mut ledger = Ledger::new(false);
    ledger.sent(Instant::now());
    let arrival = Arrival { key: 1, message_id: 1, missed: Some(2), intact: false };
    ledger.arrived(Place { id: 1, prev: Some(0) }, arrival);
    ledger.answered(1, 1);
    assert_eq!(ledger.close(), Faults { altered: 1, wrong_counts: 1, ..Faults::default() });
}

#[test]
fn a_second_answer_is_a_stray() {
    let mut pair = Pair::new(true);
    pair.send(1);
    pair.ledger.answered(1, 1);
    assert_eq!(pair.ledger.answered(1, 1), None);
    pair.ledger.refused(1);
    assert_eq!(pair.ledger.faults.stray_responses, 2);
    assert_eq!(pair.ledger.open(), 1, "it is still to arrive");
}

#[test]
fn a_report_that_was_refused_needs_no_receipt() {
    let mut pair = Pair::new(true);
    pair.send(1);
    pair.ledger.answered(1, 1);
    pair.arrive(1, 1);
    pair.ledger.report_refused(1);
    assert_eq!((pair.ledger.open(), pair.ledger.take_completed()), (0, 0));
    assert_eq!(pair.ledger.close(), Faults { refused: 1, ..Faults::default() });
}

#[test]
fn every_ack_and_report_is_answered_once() {
    let mut ledger = Ledger::new(true);
    ledger.asked();
    assert!(!ledger.is_settled());
    ledger.replied();
    assert!(ledger.is_settled());
    ledger.replied();
    assert_eq!(ledger.close(), Faults { stray_responses: 1, ..Faults::default() });

    let mut ledger = Ledger::new(true);
    ledger.asked();
    assert_eq!(ledger.close(), Faults { unanswered: 1, ..Faults::default() });
}

#[test]
fn a_refused_report_leaves_the_answer_to_wait_for() {
    let mut pair = Pair::new(true);
    pair.send(1);
    pair.arrive(1, 1);
    pair.ledger.report_refused(1);
    assert_eq!(pair.ledger.open(), 1);
    pair.ledger.answered(1, 1);
    assert_eq!(pair.ledger.open(), 0);
    assert_eq!(pair.ledger.close(), Faults::default());
}
