//! What each request does: one file a kind. Handlers change the working set and say what to answer; a frame that is
//! a repeat, of the client's or the broker's, is answered as usual and changes nothing.

use herald_proto::{
    Error,
    frame::{Answer, Request},
};

use crate::{frame::Frame, store, working_set::WorkingSet};

mod delete;
mod dlvrd;
mod new;
mod read;

/// Applies one frame.
///
/// # Errors
/// Only if the database holds what this program never writes; a bad request is an [`Answer::Failed`].
pub fn handle(set: &mut WorkingSet, frame: &Frame) -> Result<Answer, store::Error> {
    match &frame.command.request {
        Request::New(new) => new::handle(set, frame, new),
        Request::Dlvrd(mark) => dlvrd::handle(set, frame, mark),
        Request::Read(mark) => read::handle(set, frame, mark),
        Request::Delete(delete) => delete::handle(set, frame, delete),
    }
}

fn no_chat() -> Answer {
    Answer::Failed(Error::not_found("chatId: there is no chat with this user"))
}

fn no_message() -> Answer {
    Answer::Failed(Error::not_found("messageId: there is no such message in this chat"))
}
