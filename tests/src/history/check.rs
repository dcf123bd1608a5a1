//! The checker, pure: every rule, from the clients' point of view alone, and then against the database.
//!
//! Events carry the sequence of one stream, and within a chat they are published in the order of acceptance. So both
//! users' events of a chat, merged by id, are that order, and the chat can be replayed naively. (With several event
//! streams that would hold only for users of the same one.)

mod chats;
mod database;
mod device;
mod effects;
mod order;
mod replay;
mod requests;
#[cfg(test)]
mod tests;
mod users;

use super::{History, Verdict};

/// Decides whether every promise was kept.
pub fn check(history: &History) -> Verdict {
    let mut verdict = Verdict::default();
    for (number, log) in history.devices.iter().enumerate() {
        device::check(number, log, history.may_lose_logs, &mut verdict);
    }
    let users = users::merge(history, &mut verdict);
    let chats = chats::replay(&users, &mut verdict);
    let requests = requests::collect(history, &mut verdict);
    effects::check(&requests, &chats, &mut verdict);
    order::check(history, &requests, &mut verdict);
    if let Some(stored) = &history.stored {
        database::check(stored, &requests, &chats, &mut verdict);
    }
    verdict
}
