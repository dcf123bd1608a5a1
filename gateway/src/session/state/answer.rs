//! Answers that a session gives by itself.

use herald_proto::{
    Error, RequestId,
    frame::{Answer, ClientFrame, Refusal, Response, to_text},
};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::session::Output;

/// Answers what is no open request.
pub(super) fn answer(id: Option<String>, clock: i64, answer: Answer, out: &mut Vec<Output>) {
    out.extend(response(id, clock, answer).map(Output::Send));
}

/// Ends an open request with an error.
pub(super) fn fail(id: RequestId, clock: i64, error: Error, out: &mut Vec<Output>) {
    let response = response(Some(text_of(&id)), clock, Answer::Failed(error));
    out.extend(response.map(|frame| Output::Answer(id, frame)));
}

pub(super) fn response(id: Option<String>, clock: i64, answer: Answer) -> Option<Utf8Bytes> {
    let text = to_text(&Response { id, timestamp: clock, answer });
    text.map(Utf8Bytes::from)
        .inspect_err(|error| tracing::error!(%error, "a response can't be written"))
        .ok()
}

pub(super) fn too_large(limit: usize) -> Answer {
    Answer::Failed(Error::too_large(limit))
}

/// Events are never answered.
pub(super) fn is_event(frame: &Result<ClientFrame, Refusal>) -> bool {
    use ClientFrame::{Offline, Typing, UnknownEvent};
    matches!(frame, Ok(Typing(_) | Offline | UnknownEvent))
}

/// The id under which a frame is answered, if it can be read.
pub(super) fn id_of(frame: &Result<ClientFrame, Refusal>) -> Option<String> {
    match frame {
        Ok(ClientFrame::Request { id, .. }) => Some(text_of(id)),
        Ok(ClientFrame::Ack(id)) => Some(id.to_string()),
        Ok(_) => None,
        Err(refusal) => refusal.id.as_ref().map(text_of),
    }
}

pub(super) fn text_of(id: &RequestId) -> String {
    id.as_str().to_owned()
}
