//! `delete`: take a message of one's own back, for everyone.

use herald_proto::{
    Error,
    frame::{Answer, EventBody},
    payload::{About, Delete},
};

use super::{no_chat, no_message};
use crate::{frame::Frame, store, working_set::WorkingSet};

pub(super) fn handle(
    set: &mut WorkingSet,
    frame: &Frame,
    delete: &Delete,
) -> Result<Answer, store::Error> {
    let Some(chat) = set.chat(&frame.chat) else { return Ok(no_chat()) };
    let id = delete.message_id;
    let Some(found) = chat.message(id.get())? else { return Ok(no_message()) };
    if found.from != frame.side {
        return Ok(Answer::Failed(Error::forbidden(
            "messageId: only its sender can delete a message",
        )));
    }
    if delete.client_message_id.as_ref().is_some_and(|key| *key != found.key) {
        return Ok(Answer::Failed(Error::conflict("clientMessageId: the message has another one")));
    }
    if !found.deleted && !frame.replay {
        chat.delete(frame.side, id.get());
        let about = About {
            chat_id: frame.command.from.clone(),
            message_id: id,
            client_message_id: found.key,
        };
        set.tell_peer(frame, EventBody::Delete(about))?;
    }
    Ok(Answer::Done)
}
