//! What of a session is traced. It looks on: the session's rules know nothing of it, and while nothing is traced it is
//! a pointer to nothing.

use std::{borrow::Cow, time::SystemTime};

use herald_proto::{
    EventId, RequestId,
    frame::ClientFrame,
    telemetry::{Span, Traceparent},
};
use serde::Deserialize;

use super::Output;
use crate::spans::{self, Source};

/// The traces of a session.
#[derive(Debug, Default)]
pub struct Traces(Option<Box<Open>>);

/// What has begun.
#[derive(Debug, Default)]
struct Open {
    /// Requests without an answer yet.
    requests: Vec<(RequestId, Span)>,
    /// Events without an ack yet.
    events: Vec<Event>,
    /// What ends with the next write.
    ending: Vec<Span>,
}

#[derive(Debug)]
struct Event {
    id: EventId,
    parent: Traceparent,
    source: Source,
    heard_at: SystemTime,
    /// The first time it was sent.
    first: Option<Traceparent>,
    attempts: i64,
}

/// Events of one session that are looked after: past it they are still delivered, but not traced.
const MAX_EVENTS: usize = 256;

/// A response, as far as it says how a request ended.
#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow)]
    error: Option<Failure<'a>>,
}

#[derive(Deserialize)]
struct Failure<'a> {
    #[serde(borrow)]
    code: Cow<'a, str>,
}

impl Traces {
    /// A request has begun.
    pub fn request(&mut self, id: &RequestId, span: Span) {
        if span.is_some() {
            self.0.get_or_insert_default().requests.push((id.clone(), span));
        }
    }

    /// The session will have an event to deliver that is part of a trace.
    pub fn heard(&mut self, id: EventId, parent: Traceparent, source: Source) {
        let events = &mut self.0.get_or_insert_default().events;
        // Live and in the log, it is the same event.
        if events.len() < MAX_EVENTS && events.iter().all(|event| event.id != id) {
            let heard_at = SystemTime::now();
            events.push(Event { id, parent, source, heard_at, first: None, attempts: 0 });
        }
    }

    /// The client has sent a text.
    pub fn received(&mut self, text: &str) {
        let Some(open) = &mut self.0 else { return };
        if !open.events.is_empty() && text.contains("\"ack\"") {
            open.ack(text);
        }
    }

    /// A frame is about to be written.
    pub fn sending(&mut self, text: &str) {
        let Some(open) = &mut self.0 else { return };
        if let Some(id) = event_id(text) {
            open.deliver(id);
        }
    }

    /// The response to a request is about to be written.
    pub fn answering(&mut self, id: &RequestId, text: &str) {
        if let Some(open) = &mut self.0 {
            open.answer(id, text);
        }
    }

    /// What was about to be written is, or can't be.
    pub fn written(&mut self, is_written: bool) {
        let Some(open) = &mut self.0 else { return };
        for mut span in open.ending.drain(..) {
            if !is_written {
                span.fail("not_written");
            }
        }
        if open.requests.is_empty() && open.events.is_empty() {
            self.0 = None;
        }
    }

    /// Keeps errors of requests that are not traced and were answered because their time was up.
    pub fn overdue(&self, out: &[Output]) {
        let open = self.0.as_ref().map_or(&[][..], |open| &open.requests);
        for output in out {
            if let Output::Answer(id, _) = output
                && open.iter().all(|(traced, _)| traced != id)
            {
                spans::keep_error("timeout");
            }
        }
    }
}

impl Open {
    fn ack(&mut self, text: &str) {
        let Ok(ClientFrame::Ack(id)) = ClientFrame::parse(text) else { return };
        let Some(index) = self.events.iter().position(|event| event.id == id) else { return };
        // An ack of what was not sent acks nothing.
        if let Some(delivery) = self.events.get(index).and_then(|event| event.first) {
            let event = self.events.swap_remove(index);
            self.ending.push(spans::ack(delivery, id, event.attempts));
        }
    }

    fn deliver(&mut self, id: EventId) {
        // Events go in the order of their ids: one before it that was not sent by now was known to the session already.
        self.events.retain(|event| event.id >= id || event.first.is_some());
        let Some(event) = self.events.iter_mut().find(|event| event.id == id) else { return };
        event.attempts += 1;
        let since = if event.attempts == 1 { event.heard_at } else { SystemTime::now() };
        let attempt = (event.attempts, event.first);
        let span = spans::deliver(event.parent, id, event.source, attempt, since);
        event.first = event.first.or(span.traceparent());
        self.ending.push(span);
    }

    fn answer(&mut self, id: &RequestId, text: &str) {
        let Some(index) = self.requests.iter().position(|(traced, _)| traced == id) else { return };
        let (_, mut span) = self.requests.swap_remove(index);
        let response = serde_json::from_str::<Response<'_>>(text).ok();
        match response.and_then(|response| response.error) {
            // The service's own failure; every other one is the client's, and a server span stays unset for those.
            Some(failure) if failure.code == "unavailable" => span.fail("unavailable"),
            Some(failure) => span.set("error.type", failure.code.into_owned()),
            None => {}
        }
        self.ending.push(span);
    }
}

/// The id of an event's frame, as [`herald_proto::frame::with_id`] puts it first.
fn event_id(text: &str) -> Option<EventId> {
    let digits = text.strip_prefix("{\"id\":")?;
    let end = digits.find(|c: char| !c.is_ascii_digit())?;
    digits.get(..end)?.parse().ok().map(EventId)
}

#[cfg(test)]
mod tests {
    use herald_proto::{
        Error,
        frame::{self, Answer, to_text, with_id},
    };

    use super::*;

    #[test]
    fn frames_are_told_apart_by_how_they_are_written() {
        let event = with_id(r#"{"type":"event","timestamp":1}"#, EventId(71), EventId(3)).unwrap();
        assert_eq!(event_id(&event), Some(EventId(71)));
        let answer = Answer::Failed(Error::unavailable("later", 1));
        let text = to_text(&frame::Response { id: Some("a\"b".into()), timestamp: 1, answer });
        let text = text.unwrap();
        assert_eq!(event_id(&text), None);
        let response: Response<'_> = serde_json::from_str(&text).unwrap();
        assert_eq!(response.error.unwrap().code, "unavailable");
    }

    #[test]
    fn only_its_own_answer_ends_a_request() {
        let (id, span) = (RequestId::new("7").unwrap(), Span::none());
        let mut open = Open { requests: vec![(id.clone(), span)], ..Open::default() };
        open.answer(&RequestId::new("8").unwrap(), "{}");
        assert_eq!(open.requests.len(), 1);
        let mut traces = Traces(Some(Box::new(open)));
        // The answer to the ack of event 7.
        traces.sending(r#"{"type":"response","timestamp":1,"id":"7"}"#);
        assert_eq!(traces.0.as_ref().unwrap().requests.len(), 1);
        traces.answering(&id, r#"{"type":"response","timestamp":1,"id":"7","payload":{}}"#);
        traces.written(true);
        assert!(traces.0.is_none());
    }

    #[test]
    fn a_session_without_traces_holds_nothing() {
        let mut traces = Traces::default();
        traces.request(&RequestId::new("1").unwrap(), Span::none());
        traces.sending(r#"{"id":1,"prev":0}"#);
        traces.received(r#"{"type":"ack","id":1}"#);
        assert!(traces.0.is_none());
        assert_eq!(size_of::<Traces>(), size_of::<usize>());
    }

    #[test]
    fn what_is_looked_after_is_bounded_and_gone_when_it_is_acked() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap();
        let mut traces = Traces::default();
        for id in 0..2 * MAX_EVENTS as u64 {
            traces.heard(EventId(id), parent, Source::Live);
            traces.heard(EventId(id), parent, Source::Log);
        }
        let open = traces.0.as_mut().unwrap();
        assert_eq!(open.events.len(), MAX_EVENTS);
        open.events.truncate(1);
        traces.received(r#"{"type":"ack","id":0}"#);
        assert_eq!(traces.0.as_ref().unwrap().events.len(), 1, "it was not sent yet");
        traces.0.as_mut().unwrap().events[0].first = Some(parent);
        traces.received(r#"{"type":"ack","id":0}"#);
        traces.written(true);
        assert!(traces.0.is_none());
    }

    #[test]
    fn an_event_that_the_session_had_already_is_forgotten_with_the_next_one() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap();
        let mut traces = Traces::default();
        traces.heard(EventId(7), parent, Source::Live);
        traces.sending(r#"{"id":8,"prev":7}"#);
        traces.written(true);
        assert!(traces.0.is_none());
    }
}
