use super::*;

fn message<'a>(headers: &'a str, payload: &'a [u8]) -> Message<'a> {
    Message { sid: 1, subject: "inbox.1", reply: "", headers, payload }
}

fn part(sequence: u64, before: u64, more: &str) -> String {
    format!(
        "NATS/1.0\r\nNats-Subject: events.0.a\r\nNats-Sequence: {sequence}\r\nNats-Num-Pending: 3\r\n\
         Nats-Last-Sequence: {before}\r\n{more}\r\n"
    )
}

fn answer() -> Answer {
    Answer { form: Form::Batch, bytes: 0, found: Vec::new(), whole: oneshot::channel().0 }
}

#[test]
fn an_answer_is_taken_up_to_its_end() {
    let mut answer = answer();
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let more = format!("Nats-Msg-Id: 17f-7-2001-18bdbd12a01\r\ntraceparent: {traceparent}\r\n");
    assert!(!answer.take(&message(&part(5, 0, &more), b"one")).unwrap());
    assert!(!answer.take(&message(&part(8, 5, "KV-Operation: DEL\r\n"), b"")).unwrap());
    let end = "NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\nNats-Last-Sequence: 8\r\n\r\n";
    assert!(answer.take(&message(end, b"")).unwrap());
    let [one, two] = &answer.found[..] else { panic!("{:?}", answer.found) };
    assert_eq!((one.sequence, &*one.subject, &one.payload[..]), (5, "events.0.a", &b"one"[..]));
    assert_eq!((one.pending, one.origin.at, one.is_removed), (3, 1_700_200_000_001, false));
    assert_eq!(one.traceparent.map(|parent| parent.to_string()).as_deref(), Some(traceparent));
    assert!((two.sequence, two.is_removed) == (8, true) && two.traceparent.is_none());
}

#[test]
fn a_message_alone_is_the_whole_answer() {
    let headers = "NATS/1.0\r\nNats-Subject: events.0.a\r\nNats-Sequence: 5\r\n\r\n";
    let mut alone = Answer { form: Form::One, ..answer() };
    assert!(alone.take(&message(headers, b"one")).unwrap());
    assert_eq!(alone.found.iter().map(|found| found.sequence).collect::<Vec<_>>(), [5]);
    let nothing = message("NATS/1.0 404 Message Not Found\r\n\r\n", b"");
    assert!(Answer { form: Form::One, ..answer() }.take(&nothing).unwrap());
}

#[test]
fn a_part_that_was_lost_is_noticed() {
    let mut lost = answer();
    assert!(!lost.take(&message(&part(5, 0, ""), b"")).unwrap());
    assert!(lost.take(&message(&part(9, 8, ""), b"")).is_err());
    let mut lost = answer();
    let end = "NATS/1.0 204 EOB\r\nNats-Last-Sequence: 8\r\n\r\n";
    assert!(lost.take(&message(end, b"")).is_err());
}

fn delivered<'a>(reply: &'a str, payload: &'a [u8]) -> Message<'a> {
    let headers = "NATS/1.0\r\nNats-Msg-Id: 17f-7-2001-18bdbd12a01\r\n\r\n";
    Message { sid: 1, subject: "events.0.a", reply, headers, payload }
}

fn delivery(reads: &Reads, next: u64, most: usize) -> oneshot::Receiver<Whole> {
    let (whole, answered) = oneshot::channel();
    let form = Form::Delivered { consumer: "scan-1".into(), next, most };
    reads.asked().add(Answer { form, bytes: 0, found: Vec::new(), whole });
    answered
}

fn sequences(answered: &mut oneshot::Receiver<Whole>) -> Option<Vec<u64>> {
    let found = answered.try_recv().ok()?.ok()?;
    Some(found.iter().map(|found| found.sequence).collect())
}

#[test]
fn what_a_consumer_delivers_is_taken_up_to_what_was_asked_for_or_its_end() {
    let reads = Reads::new();
    let mut full = delivery(&reads, 1, 2);
    reads.receive(&delivered("$JS.ACK.EVENTS_0.scan-1.1.20.1.9.7", b"one"));
    assert!(full.try_recv().is_err(), "there is more to come");
    reads.receive(&delivered("$JS.ACK.EVENTS_0.scan-2.1.21.2.9.6", b"another's"));
    reads.receive(&delivered("$JS.ACK.EVENTS_0.scan-1.1.24.2.9.6", b"two"));
    let found = full.try_recv().unwrap().unwrap();
    let [one, two] = &found[..] else { panic!("{found:?}") };
    assert_eq!((one.sequence, &*one.subject, &one.payload[..]), (20, "events.0.a", &b"one"[..]));
    assert_eq!((two.sequence, two.pending, two.origin.at), (24, 6, 1_700_200_000_001));

    let mut last = delivery(&reads, 3, 9);
    reads.receive(&delivered("$JS.ACK.EVENTS_0.scan-1.1.30.3.9.0", b""));
    assert_eq!(sequences(&mut last).as_deref(), Some(&[30][..]), "nothing is left");
    assert!(reads.asked().deliveries.is_empty());
}

#[test]
fn what_is_said_at_the_end_of_what_was_delivered_is_understood() {
    let reads = Reads::new();
    let say = |headers: &str| {
        let inbox = format!("{}.{}", reads.inbox, reads.asked().last);
        reads.receive(&Message { sid: 1, subject: &inbox, reply: "", headers, payload: b"" });
    };
    let too_large = "NATS/1.0 409 Message Size Exceeds MaxBytes\r\n\r\n";
    for (end, is_end_of_none) in [
        ("NATS/1.0 404 No Messages\r\n\r\n", true),
        (too_large, false),
        ("NATS/1.0 409 Consumer Deleted\r\n\r\n", false),
    ] {
        let mut none = delivery(&reads, 1, 9);
        say(end);
        assert_eq!(sequences(&mut none).is_some(), is_end_of_none, "{end}");
    }
    let mut one = delivery(&reads, 1, 9);
    reads.receive(&delivered("$JS.ACK.EVENTS_0.scan-1.1.20.1.9.7", b""));
    say(too_large);
    assert_eq!(sequences(&mut one).as_deref(), Some(&[20][..]), "as much as may be read at once");
}

#[test]
fn a_part_of_what_is_delivered_that_was_lost_is_noticed() {
    let reads = Reads::new();
    let mut lost = delivery(&reads, 3, 9);
    reads.receive(&delivered("$JS.ACK.EVENTS_0.scan-1.1.24.4.9.6", b""));
    assert!(lost.try_recv().unwrap().is_err());
}

#[test]
fn nothing_found_is_no_error_and_anything_else_is() {
    let nothing = message("NATS/1.0 404 Message Not Found\r\n\r\n", b"");
    assert!(answer().take(&nothing).unwrap());
    for headers in
        ["NATS/1.0 503\r\n\r\n", "NATS/1.0 408 Bad Request\r\n\r\n", "NATS/1.0\r\n\r\n", ""]
    {
        assert!(answer().take(&message(headers, b"")).is_err(), "{headers}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_connection_nobody_waits_for_long() {
    let (reads, begin) = (Reads::new(), tokio::time::Instant::now());
    let error = reads.get("EVENTS_0", &DirectGet::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "NATS has not confirmed in time what it was told");
    assert!(begin.elapsed() <= PATIENCE, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn whoever_waits_is_told_that_the_connection_is_lost() {
    let reads = Reads::new();
    let (whole, answered) = oneshot::channel();
    let answer = Answer { whole, ..answer() };
    reads.asked().answers.insert(7, answer);
    reads.lost();
    assert!(answered.await.is_err());
}

#[test]
fn where_a_delivered_message_comes_from_is_read_whatever_the_brokers_age() {
    let delivery = Delivery { consumer: "scan-1", sequence: 20, number: 7, pending: 3 };
    for reply in [
        "$JS.ACK.EVENTS_0.scan-1.1.20.7.1796025718167416328.3",
        "$JS.ACK._.hash.EVENTS_0.scan-1.1.20.7.1796025718167416328.3",
        "$JS.ACK.hub.hash.EVENTS_0.scan-1.1.20.7.1796025718167416328.3.random",
    ] {
        assert_eq!(Delivery::parse(reply).as_ref(), Some(&delivery), "{reply}");
    }
    for reply in
        ["", "_INBOX_gateway.1.7", "$JS.ACK.EVENTS_0.scan-1.1.20.7.9", "$JS.ACK.a.b.1.x.7.9.3"]
    {
        assert_eq!(Delivery::parse(reply), None, "{reply}");
    }
}

#[test]
fn as_much_as_may_be_read_at_once_is_an_end_of_which_nothing_is_said() {
    let reads = Reads::new();
    let mut full = delivery(&reads, 1, 9);
    let half = vec![b'x'; MAX_BYTES / 2];
    reads.receive(&delivered("$JS.ACK.EVENTS_0.scan-1.1.20.1.9.7", &half));
    assert!(full.try_recv().is_err());
    reads.receive(&delivered("$JS.ACK.EVENTS_0.scan-1.1.21.2.9.6", &half));
    assert_eq!(sequences(&mut full).as_deref(), Some(&[20, 21][..]));
}
