//! `dlvrd`: move the received mark and tell the sender.

use herald_proto::{
    MessageId,
    frame::{Answer, EventBody},
    payload::{Delivered, Mark},
};

use super::{no_chat, no_message};
use crate::{frame::Frame, store, working_set::WorkingSet};

pub(super) fn handle(
    set: &mut WorkingSet,
    frame: &Frame,
    mark: &Mark,
) -> Result<Answer, store::Error> {
    let (now, peer) = (set.now, frame.side.peer());
    let Some(chat) = set.chat(&frame.chat) else { return Ok(no_chat()) };
    let up_to = match mark.message_id {
        Some(id) if id.get() > chat.ledger.last => return Ok(no_message()),
        Some(id) => id.get(),
        None if frame.replay => return Ok(Answer::Delivered),
        None => chat.ledger.member(peer).last_sent,
    };
    let moved = chat.ledger.deliver(frame.side, up_to);
    let told = match moved.and_then(|span| chat.newest(peer, span)) {
        Some(newest) => {
            chat.message(newest)?.and_then(|found| Some((MessageId::new(newest)?, found.key)))
        }
        None => None,
    };
    if let Some((message_id, client_message_id)) = told {
        let chat_id = frame.command.from.clone();
        let delivered = Delivered { chat_id, message_id, client_message_id, timestamp: now };
        set.tell_peer(frame, EventBody::Dlvrd(delivered))?;
    }
    Ok(Answer::Delivered)
}
