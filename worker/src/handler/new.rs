//! `new`: store a message and tell the peer.

use herald_proto::{
    Error, MessageId,
    frame::{Answer, EventBody},
    payload::{Arrived, New, Stored},
};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    frame::Frame,
    store,
    working_set::{Content, WorkingSet},
};

/// Milliseconds after which a client may try again what could not be applied this time.
const RETRY_AFTER: u64 = 1000;

pub(super) fn handle(
    set: &mut WorkingSet,
    frame: &Frame,
    new: &New,
) -> Result<Answer, store::Error> {
    let digest = digest(new)?;
    let key = &new.client_message_id;
    let stored = |message_id| Answer::Stored(Stored { message_id, client_message_id: key.clone() });
    if let Some(known) = set.known(frame, key) {
        if known.digest != digest {
            return Ok(Answer::Failed(Error::conflict(
                "clientMessageId: was used for another message",
            )));
        }
        let message_id =
            MessageId::new(known.message_id).ok_or(store::Error::Corrupt("messages.message_id"))?;
        return Ok(stored(message_id));
    }
    if frame.replay {
        return Ok(Answer::Failed(Error::unavailable(
            "the message was not stored, send it again",
            RETRY_AFTER,
        )));
    }
    let attachments = match new.attachments.as_slice() {
        [] => None,
        some => Some(
            serde_json::to_string(some)
                .map_err(|_| store::Error::Corrupt("attachments are not JSON"))?,
        ),
    };
    let content =
        Content { client_message_id: key.clone(), digest, body: new.message.clone(), attachments };
    let (message_id, missed) = set.accept(frame, content)?;
    let arrived = Arrived {
        chat_id: frame.command.from.clone(),
        message_id,
        client_message_id: key.clone(),
        message: new.message.clone(),
        attachments: new.attachments.clone(),
        missed,
    };
    set.tell_peer(frame, EventBody::New(arrived))?;
    Ok(stored(message_id))
}

/// What makes two messages under one key the same: recipient, text and attachments. Not cryptographic: a sender that
/// makes two of its own messages collide only confuses itself.
fn digest(new: &New) -> Result<i64, store::Error> {
    let content = serde_json::to_vec(&(&new.chat_id, &new.message, &new.attachments))
        .map_err(|_| store::Error::Corrupt("a message is not JSON"))?;
    Ok(xxh3_64(&content).cast_signed())
}
