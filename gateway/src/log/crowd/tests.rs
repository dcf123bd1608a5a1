use tokio::sync::Notify;

use super::*;
use crate::metrics::Origin;

fn reader(after: u64, limit: usize) -> (Reader, oneshot::Receiver<Found>) {
    let (answer, answered) = oneshot::channel();
    let (subject, after) = ("events.0.a".to_owned(), EventId(after));
    (Reader { subject, after, limit, found: Found::default(), bytes: 0, answer }, answered)
}

fn event(sequence: u64, size: usize) -> Stored {
    Stored {
        subject: "events.0.a".into(),
        sequence,
        traceparent: None,
        origin: Origin::default(),
        is_removed: false,
        pending: 0,
        payload: vec![0; size].into(),
    }
}

fn crowd(places: &[u64]) -> (Crowd, Vec<oneshot::Receiver<Found>>) {
    let crowd = Crowd::new();
    let answered = places.iter().map(|after| {
        let (reader, answered) = reader(*after, 10);
        crowd.waiting().readers.push(reader);
        answered
    });
    let answered = answered.collect();
    (crowd, answered)
}

#[test]
fn a_reader_takes_what_comes_after_its_place_and_learns_whether_that_is_there() {
    let (mut there, _a) = reader(5, 2);
    let (mut not_there, _b) = reader(4, 10);
    for sequence in [3, 5, 7, 8, 9] {
        there.take(&event(sequence, 1));
        not_there.take(&event(sequence, SHARE / 2));
    }
    let ids = |reader: &Reader| {
        reader.found.events.iter().map(|event| event.sequence).collect::<Vec<_>>()
    };
    assert_eq!((ids(&there), there.found.is_there), (vec![7, 8], true));
    assert_eq!((there.found.more, there.found.later), (true, 3));
    assert_eq!((ids(&not_there), not_there.found.is_there), (vec![5, 7], false));
    assert_eq!((not_there.found.more, not_there.found.later), (true, 4));
}

#[test]
fn what_was_read_beyond_what_is_kept_is_not_skipped() {
    let found = || [6, 7, 9, 12].map(|sequence| event(sequence, 1)).to_vec();
    let sequences = |found: &[Stored]| found.iter().map(|event| event.sequence).collect::<Vec<_>>();
    let mut cut_off = found();
    // Of what lies from 8 on, something may be kept and something not.
    assert_eq!(cut(&mut cut_off, Some(8), 6), 8);
    assert_eq!(sequences(&cut_off), [6, 7]);
    let mut whole = found();
    assert_eq!(cut(&mut whole, None, 6), 13);
    assert_eq!(sequences(&whole), [6, 7, 9, 12]);
    assert_eq!(cut(&mut Vec::new(), None, 6), 6);
}

#[test]
fn few_readers_are_not_served_together() {
    let (crowd, _answered) = crowd(&[100; FEWEST - 1]);
    assert!(crowd.take(100, &Tail::default(), 0).0.is_empty());
    assert_eq!(crowd.waiting().readers.len(), FEWEST - 1);
}

#[test]
fn who_is_far_behind_does_not_make_the_others_read_all_that() {
    let mut places = vec![1_000_000; 20];
    places.push(7);
    let (crowd, _answered) = crowd(&places);
    assert_eq!(crowd.take(1_000_100, &Tail::default(), 0).0.len(), 20);
    assert_eq!(crowd.waiting().readers.len(), 1);
}

#[test]
fn who_comes_as_the_first_of_many_is_read_for_with_them_in_mind() {
    let (many, far) = (usize::try_from(MANY).unwrap(), Tail::default());
    let (crowd, _answered) = crowd(&[100]);
    assert!(crowd.take(100 + FAR, &far, FEWEST).0.is_empty(), "they are few");
    assert!(crowd.take(101 + FAR, &far, many).0.is_empty(), "it is too far behind");
    assert!(crowd.take(100, &far, FEWEST - 1).0.is_empty());
    assert_eq!(crowd.take(100 + FAR, &far, many).0.len(), 1);
}

#[test]
fn who_needs_only_what_is_kept_is_served_however_few_they_are_or_far_behind() {
    let (crowd, _answered) = crowd(&[7, 500_000, 900_000]);
    let mut tail = Tail::default();
    tail.restart(500_000);
    let (taken, first) = crowd.take(1_000_000, &tail, 0);
    assert_eq!(first, EventId(500_000));
    assert_eq!(taken.iter().map(|reader| reader.after.0).collect::<Vec<_>>(), [500_000, 900_000]);
    assert_eq!(crowd.waiting().readers.len(), 1);
}

#[test]
fn who_is_gone_is_not_read_for() {
    let (crowd, answered) = crowd(&[100; 20]);
    drop(answered);
    assert!(crowd.take(100, &Tail::default(), 0).0.is_empty());
    assert!(crowd.waiting().readers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_took_long_to_read_is_kept_for_those_who_come_next() {
    let (crowd, read) = (Crowd::new(), Notify::new());
    let (mut reading, is_first) = crowd.begin(crowd.tail.lock().await);
    assert!(is_first, "for some time");
    let reading = async {
        sleep(KEPT * 2).await;
        reading.tail.restart(7);
        drop(reading);
        assert!(!crowd.begin(crowd.tail.lock().await).1);
        read.notify_one();
    };
    let next = async {
        read.notified().await;
        sleep(KEPT / 2).await;
        assert_eq!(crowd.tail.lock().await.from(), Some(7));
    };
    tokio::join!(reading, crowd.cool(), next);
    assert_eq!(crowd.tail.lock().await.from(), None, "nobody has come for some time");
}

#[test]
fn who_came_first_is_read_for_first_however_far_behind_it_is() {
    let (crowd, _answered) = crowd(&[[90].as_slice(), &[100; MOST]].concat());
    let (taken, first) = crowd.take(100, &Tail::default(), 0);
    assert_eq!((taken.len(), first), (MOST, EventId(90)));
    assert_eq!(taken[0].after, EventId(90), "it has the turn: left out, it would read alone");
    assert_eq!(crowd.waiting().readers.len(), 1);
}

#[test]
fn no_crowd_is_larger_than_what_memory_is_meant_for() {
    let (crowd, _answered) = crowd(&[100; MOST + 5]);
    let (taken, first) = crowd.take(100, &Tail::default(), 0);
    assert_eq!((taken.len(), first), (MOST, EventId(100)));
    assert_eq!(crowd.waiting().readers.len(), 5);
}
