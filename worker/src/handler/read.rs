//! `read`: move the read mark, count what is still missed, and tell the sender.

use herald_proto::{
    MessageId,
    frame::{Answer, EventBody},
    payload::{About, Mark, ReadUpTo},
};

use super::{no_chat, no_message};
use crate::{frame::Frame, store, working_set::WorkingSet};

pub(super) fn handle(
    set: &mut WorkingSet,
    frame: &Frame,
    mark: &Mark,
) -> Result<Answer, store::Error> {
    let peer = frame.side.peer();
    let Some(chat) = set.chat(&frame.chat) else { return Ok(no_chat()) };
    let up_to = match mark.message_id {
        Some(id) if id.get() > chat.ledger.last => return Ok(no_message()),
        Some(id) => id.get(),
        None => chat.ledger.member(peer).last_sent,
    };
    // A replayed "all so far" must not read what came after it.
    let moved = if frame.replay { None } else { chat.read(frame.side, up_to)? };
    let told = match moved.and_then(|span| chat.newest(peer, span)) {
        Some(newest) => {
            chat.message(newest)?.and_then(|found| Some((MessageId::new(newest)?, found.key)))
        }
        None => None,
    };
    let answer = ReadUpTo {
        chat_id: frame.chat.member(peer).clone(),
        message_id: MessageId::new(up_to),
        client_message_id: chat.message(up_to)?.map(|found| found.key),
        missed: chat.ledger.member(frame.side).missed,
    };
    if let Some((message_id, client_message_id)) = told {
        let chat_id = frame.command.from.clone();
        set.tell_peer(frame, EventBody::Read(About { chat_id, message_id, client_message_id }))?;
    }
    Ok(Answer::Read(answer))
}
