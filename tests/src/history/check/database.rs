//! What the database holds is what was answered and what was told.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{replay::Replay, requests::Requests};
use crate::history::{
    Chat, Key, Rule, Stored, User, Verdict,
    stored::{StoredChat, StoredMessage},
};

pub(super) fn check(
    stored: &Stored,
    requests: &Requests,
    chats: &BTreeMap<Chat, Replay>,
    verdict: &mut Verdict,
) {
    let mut by_key: HashMap<(User, Key), &StoredMessage> = HashMap::new();
    let mut by_chat: BTreeMap<Chat, Vec<&StoredMessage>> = BTreeMap::new();
    for row in &stored.messages {
        if by_key.insert((row.sender, row.key), row).is_some() {
            verdict.breach(Rule::OneEffect, || format!("a second row: {row:?}"));
        }
        by_chat.entry(row.chat).or_default().push(row);
        check_row(row, chats.get(&row.chat), verdict);
    }
    for ((sender, key), message) in &requests.messages {
        let Some((_, id)) = message.stored else { continue };
        let row = by_key.get(&(*sender, *key));
        if row.is_none_or(|row| row.message != id) {
            verdict.breach(Rule::Stored, || {
                format!("{key:?} of {sender} was answered {id}, the database has {row:?}")
            });
        }
    }
    for chat in &stored.chats {
        let rows = by_chat.remove(&chat.chat).unwrap_or_default();
        let ids: HashSet<u32> = rows.iter().map(|row| row.message).collect();
        if let Some(hole) = (1..=chat.last).find(|id| !ids.contains(id)) {
            verdict.breach(Rule::NoHoles, || format!("{}: no row of message {hole}", chat.chat));
        }
        for user in [chat.chat.low, chat.chat.high] {
            check_member(chat, user, &rows, chats.get(&chat.chat), verdict);
        }
    }
}

/// A message that is stored was told to its recipient, whether its sender knows or not.
fn check_row(row: &StoredMessage, replay: Option<&Replay>, verdict: &mut Verdict) {
    match replay.and_then(|replay| replay.message(row.message)) {
        None => verdict.breach(Rule::Kept, || format!("stored, and its event never came: {row:?}")),
        Some(told) => {
            if (told.sender, told.key, told.is_deleted) != (row.sender, row.key, row.is_deleted) {
                verdict.breach(Rule::Consistent, || format!("stored {row:?}, told {told:?}"));
            }
        }
    }
}

fn check_member(
    chat: &StoredChat,
    user: User,
    rows: &[&StoredMessage],
    replay: Option<&Replay>,
    verdict: &mut Verdict,
) {
    let (member, peer) = (chat.member(user), chat.chat.peer(user));
    let is_unread =
        |row: &&&StoredMessage| row.sender == peer && row.message > member.read && !row.is_deleted;
    let counted = rows.iter().filter(is_unread).count();
    if usize::try_from(member.missed) != Ok(counted) {
        verdict.breach(Rule::Counts, || {
            format!("{}: {user} has {member:?}, {counted} counted", chat.chat)
        });
    }
    let Some(told) = replay.map(|replay| replay.member(user)) else { return };
    if member.read < told.read || member.delivered < told.delivered {
        verdict.breach(Rule::Marks, || {
            format!("{}: {user} has {member:?}, told {} {}", chat.chat, told.read, told.delivered)
        });
    }
}
