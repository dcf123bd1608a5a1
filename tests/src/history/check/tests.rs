use herald_proto::ErrorCode;

use super::*;
use crate::history::{
    Answer, Chat, Event, Key, Log, Record, Request, Rule, Stored, User, What,
    record::About,
    stored::{StoredChat, StoredMember, StoredMessage},
};

const ANN: User = User(1);
const BOB: User = User(2);
/// Ann's device, and Bob's two.
const PHONE: usize = 0;
const BOBS: usize = 1;
const TABLET: usize = 2;

/// Writes a history down, a millisecond a record.
struct Writer {
    now: u32,
    history: History,
}

impl Writer {
    fn write(&mut self, device: usize, what: What) {
        self.now += 1;
        self.history.devices[device].records.push(Record { at: self.now, what });
    }

    fn sent(&mut self, device: usize, number: u32, request: Request) {
        self.write(device, What::Sent { number, request });
    }

    fn answered(&mut self, device: usize, number: u32, answer: Answer) {
        self.write(device, What::Answered { number, answer });
    }

    fn asks(&mut self, device: usize, number: u32, request: Request, answer: Answer) {
        self.sent(device, number, request);
        self.answered(device, number, answer);
    }

    fn got(&mut self, device: usize, id: u64, prev: u64, event: Event) {
        self.write(device, What::Got { id, prev, event });
    }

    fn takes(&mut self, device: usize, id: u64, prev: u64, event: Event) {
        self.got(device, id, prev, event);
        self.write(device, What::Acked(id));
    }
}

fn new(peer: User, key: u32) -> Request {
    Request::New { peer, key: Key(key) }
}

fn stored(message: u32, key: u32) -> Answer {
    Answer::Stored { message, key: Key(key) }
}

fn come(peer: User, key: u32, message: u32, missed: u32) -> Event {
    Event::New { peer, key: Key(key), message, missed, is_intact: true }
}

fn about(peer: User, key: u32, message: u32) -> About {
    About { peer, message, key: Key(key) }
}

/// Three messages, one of them deleted, all read; Bob's tablet leaves before it has acked, and comes back.
fn good() -> History {
    let devices = [ANN, BOB, BOB].map(|user| Log { user, records: vec![] }).into();
    let mut w = Writer { now: 0, history: History { devices, ..History::default() } };
    (PHONE..=TABLET).for_each(|device| w.write(device, What::Opened));
    w.sent(PHONE, 1, new(BOB, 1));
    w.answered(PHONE, 1, Answer::Refused(ErrorCode::Unavailable));
    w.asks(PHONE, 1, new(BOB, 1), stored(1, 1));
    w.takes(BOBS, 10, 0, come(ANN, 1, 1, 1));
    w.takes(TABLET, 10, 0, come(ANN, 1, 1, 1));
    w.asks(BOBS, 2, Request::Dlvrd { peer: ANN, up_to: Some(1) }, Answer::Done);
    w.takes(PHONE, 11, 0, Event::Dlvrd(about(BOB, 1, 1)));
    w.asks(BOBS, 3, new(ANN, 3), stored(2, 3));
    w.takes(PHONE, 12, 11, come(BOB, 3, 2, 1));
    w.asks(PHONE, 4, new(BOB, 4), stored(3, 4));
    w.takes(BOBS, 13, 10, come(ANN, 4, 3, 2));
    w.got(TABLET, 13, 10, come(ANN, 4, 3, 2));
    w.write(TABLET, What::Ended);
    w.write(TABLET, What::Opened);
    w.takes(TABLET, 13, 10, come(ANN, 4, 3, 2));
    w.asks(TABLET, 5, Request::Read { peer: ANN, up_to: Some(3) }, Answer::Read { missed: 0 });
    w.takes(PHONE, 14, 12, Event::Read(about(BOB, 4, 3)));
    w.asks(PHONE, 6, Request::Delete { peer: BOB, message: 1 }, Answer::Done);
    w.takes(BOBS, 15, 13, Event::Delete(about(ANN, 1, 1)));
    w.takes(TABLET, 15, 13, Event::Delete(about(ANN, 1, 1)));
    w.history.stored = Some(database());
    w.history
}

fn database() -> Stored {
    let chat = Chat::of(ANN, BOB);
    let row = |sender, key, message, is_deleted| StoredMessage {
        chat,
        message,
        sender,
        key: Key(key),
        is_deleted,
    };
    let low = StoredMember { read: 0, delivered: 0, missed: 1 };
    let high = StoredMember { read: 3, delivered: 3, missed: 0 };
    Stored {
        chats: vec![StoredChat { chat, last: 3, low, high }],
        messages: vec![row(ANN, 1, 1, true), row(BOB, 3, 2, false), row(ANN, 4, 3, false)],
    }
}

/// The good history with one thing spoilt must break that rule.
fn refuses(rule: Rule, spoil: impl FnOnce(&mut History)) {
    let mut history = good();
    spoil(&mut history);
    let verdict = check(&history);
    assert!(verdict.count(rule) > 0, "{rule:?} should be broken:\n{verdict}");
}

/// The records of a device, to be spoilt.
fn records(history: &mut History, device: usize) -> &mut Vec<Record> {
    &mut history.devices[device].records
}

fn drop_records(history: &mut History, device: usize, unwanted: impl Fn(What) -> bool) {
    records(history, device).retain(|record| !unwanted(record.what));
}

/// Changes each record of a device that `change` knows.
fn change(history: &mut History, device: usize, change: impl Fn(&mut What)) {
    records(history, device).iter_mut().for_each(|record| change(&mut record.what));
}

fn is_event(what: What, wanted: u64) -> bool {
    matches!(what, What::Got { id, .. } | What::Acked(id) if id == wanted)
}

fn change_event(history: &mut History, wanted: u64, change_it: impl Fn(&mut Event)) {
    for device in PHONE..=TABLET {
        change(history, device, |what| {
            if let What::Got { id, event, .. } = what
                && *id == wanted
            {
                change_it(event);
            }
        });
    }
}

#[test]
fn a_good_history_is_let_pass_and_counted() {
    let verdict = check(&good());
    assert!(verdict.is_clean(), "{verdict}");
    let tally = verdict.tally;
    assert_eq!((tally.messages, tally.answered, tally.asked_again), (3, 6, 1));
    assert_eq!((tally.sessions, tally.events, tally.came_again, tally.duplicates), (4, 9, 1, 0));
}

#[test]
fn a_message_that_came_to_nobody_is_lost() {
    refuses(Rule::Kept, |history| {
        for device in [BOBS, TABLET] {
            drop_records(history, device, |what| is_event(what, 13) || is_event(what, 15));
        }
        history.stored = None;
    });
}

#[test]
fn a_message_that_came_to_one_device_of_two_is_lost() {
    refuses(Rule::Kept, |history| {
        drop_records(history, TABLET, |what| is_event(what, 15));
    });
}

#[test]
fn a_mark_that_nobody_heard_of_is_lost() {
    refuses(Rule::Kept, |history| drop_records(history, PHONE, |what| is_event(what, 14)));
}

#[test]
fn a_deletion_that_nobody_heard_of_is_lost() {
    refuses(Rule::Kept, |history| {
        [BOBS, TABLET]
            .iter()
            .for_each(|device| drop_records(history, *device, |what| is_event(what, 15)));
    });
}

#[test]
fn a_stored_message_whose_sender_knows_nothing_must_have_come_too() {
    refuses(Rule::Kept, |history| {
        let chat = Chat::of(ANN, BOB);
        let row = StoredMessage { chat, message: 4, sender: BOB, key: Key(9), is_deleted: false };
        history.stored.as_mut().unwrap().messages.push(row);
    });
}

#[test]
fn a_message_that_is_not_in_the_database_is_lost() {
    refuses(Rule::Stored, |history| {
        history.stored.as_mut().unwrap().messages.remove(1);
    });
}

#[test]
fn a_request_without_an_answer_is_refused() {
    refuses(Rule::Answered, |history| {
        drop_records(history, TABLET, |what| matches!(what, What::Answered { number: 5, .. }));
    });
}

#[test]
fn a_key_with_two_ids_is_a_double_effect() {
    refuses(Rule::OneEffect, |history| {
        let answer = What::Answered { number: 4, answer: stored(4, 4) };
        records(history, PHONE).push(Record { at: 99, what: answer });
    });
}

#[test]
fn a_message_with_two_events_is_a_double_effect() {
    refuses(Rule::OneEffect, |history| {
        for device in [BOBS, TABLET] {
            let event = come(ANN, 4, 3, 1);
            records(history, device)
                .push(Record { at: 99, what: What::Got { id: 16, prev: 15, event } });
        }
    });
}

#[test]
fn a_mark_with_two_events_is_a_double_effect() {
    refuses(Rule::OneEffect, |history| {
        let event = Event::Read(about(BOB, 4, 3));
        let what = What::Got { id: 16, prev: 14, event };
        records(history, PHONE).push(Record { at: 99, what });
    });
}

#[test]
fn a_second_row_is_a_double_effect() {
    refuses(Rule::OneEffect, |history| {
        let stored = history.stored.as_mut().unwrap();
        stored.messages.push(stored.messages[0]);
    });
}

#[test]
fn an_id_that_no_message_has_is_a_hole() {
    refuses(Rule::NoHoles, |history| {
        change_event(history, 13, |event| {
            if let Event::New { message, .. } = event {
                *message = 4;
            }
        });
    });
    refuses(Rule::NoHoles, |history| {
        history.stored.as_mut().unwrap().chats[0].last = 4;
    });
}

#[test]
fn messages_that_come_in_another_order_than_their_ids_are_disordered() {
    refuses(Rule::ChatOrder, |history| {
        // Ann's two messages with their ids exchanged.
        for (id, now) in [(10, 3), (13, 1)] {
            change_event(history, id, |event| {
                if let Event::New { message, .. } = event {
                    *message = now;
                }
            });
        }
    });
}

#[test]
fn a_message_sent_after_anothers_answer_and_accepted_before_it_is_disordered() {
    refuses(Rule::ChatOrder, |history| {
        for record in records(history, PHONE) {
            if let What::Answered { answer: Answer::Stored { message, .. }, .. } = &mut record.what
            {
                *message = 4 - *message;
            }
        }
    });
}

#[test]
fn two_messages_of_one_session_accepted_in_the_other_order_are_disordered() {
    refuses(Rule::ChatOrder, |history| {
        let mut later = vec![
            What::Sent { number: 7, request: new(BOB, 7) },
            What::Sent { number: 8, request: new(BOB, 8) },
            What::Answered { number: 7, answer: stored(5, 7) },
            What::Answered { number: 8, answer: stored(4, 8) },
        ];
        let later = later.drain(..).map(|what| Record { at: 99, what });
        records(history, PHONE).extend(later);
    });
}

#[test]
fn a_count_that_a_recount_does_not_give_is_wrong() {
    refuses(Rule::Counts, |history| {
        change_event(history, 13, |event| {
            if let Event::New { missed, .. } = event {
                *missed = 1;
            }
        });
    });
    refuses(Rule::Counts, |history| {
        change(history, TABLET, |what| {
            if let What::Answered { answer: Answer::Read { missed }, .. } = what {
                *missed = 1;
            }
        });
    });
    refuses(Rule::Counts, |history| {
        history.stored.as_mut().unwrap().chats[0].high.missed = 1;
    });
}

#[test]
fn a_mark_that_moves_back_is_refused() {
    refuses(Rule::Marks, |history| {
        let event = Event::Dlvrd(about(BOB, 1, 1));
        let what = What::Got { id: 16, prev: 14, event };
        records(history, PHONE).push(Record { at: 99, what });
    });
    refuses(Rule::Marks, |history| {
        let stored = history.stored.as_mut().unwrap();
        stored.chats[0].high.delivered = 1;
    });
}

#[test]
fn what_was_not_acked_must_come_to_the_next_session_first_of_all() {
    refuses(Rule::Again, |history| {
        let records = records(history, TABLET);
        let opened = records.iter().rposition(|record| record.what == What::Opened).unwrap();
        // Neither the event nor its ack in the second session.
        records.drain(opened + 1..opened + 3);
    });
    refuses(Rule::Again, |history| {
        let records = records(history, TABLET);
        let opened = records.iter().rposition(|record| record.what == What::Opened).unwrap();
        let event = records.remove(opened + 1);
        records.push(event);
    });
}

#[test]
fn an_event_that_was_never_acked_is_not_finished() {
    refuses(Rule::Again, |history| {
        drop_records(history, PHONE, |what| what == What::Acked(14));
    });
}

#[test]
fn an_unseen_event_with_a_lower_id_is_refused() {
    refuses(Rule::IdOrder, |history| {
        let records = records(history, PHONE);
        let at = |id| records.iter().position(|record| is_event(record.what, id)).unwrap();
        let (first, second) = (at(11), at(12));
        records.swap(first, second);
    });
}

#[test]
fn an_event_that_does_not_name_the_one_before_it_is_refused() {
    for (device, first) in [(PHONE, 12), (PHONE, 11)] {
        refuses(Rule::Prev, |history| {
            change(history, device, |what| {
                if let What::Got { id, prev, .. } = what
                    && *id == first
                {
                    *prev = 9;
                }
            });
        });
    }
}

#[test]
fn after_a_resync_the_next_event_may_be_further_on() {
    let mut history = good();
    let phone = records(&mut history, PHONE);
    phone.push(Record { at: 99, what: What::Resync });
    let event = come(BOB, 9, 4, 2);
    phone.push(Record { at: 99, what: What::Got { id: 20, prev: 0, event } });
    phone.push(Record { at: 99, what: What::Acked(20) });
    history.stored = None;
    assert!(check(&history).count(Rule::LogsLast) > 0, "no log was lost");
    history.may_lose_logs = true;
    let verdict = check(&history);
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!(verdict.tally.resyncs, 1);
}

#[test]
fn copies_of_an_event_that_differ_are_a_contradiction() {
    refuses(Rule::Consistent, |history| {
        change(history, TABLET, |what| {
            if let What::Got { event: Event::New { is_intact, .. }, .. } = what {
                *is_intact = false;
            }
        });
    });
}

#[test]
fn what_is_told_of_another_message_than_was_sent_is_a_contradiction() {
    refuses(Rule::Consistent, |history| {
        change_event(history, 11, |event| *event = Event::Dlvrd(about(BOB, 2, 1)));
    });
    refuses(Rule::Consistent, |history| {
        history.stored.as_mut().unwrap().messages[0].is_deleted = false;
    });
}

#[test]
fn a_message_sent_again_long_after_its_answer_is_in_order_all_the_same() {
    let mut history = good();
    for what in [
        What::Sent { number: 7, request: new(BOB, 1) },
        What::Answered { number: 7, answer: stored(1, 1) },
    ] {
        records(&mut history, PHONE).push(Record { at: 99, what });
    }
    let verdict = check(&history);
    assert!(verdict.is_clean(), "{verdict}");
}
