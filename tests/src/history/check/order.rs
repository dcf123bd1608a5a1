//! The order of acceptance agrees with what clients could know of it: a message that was answered before another one was
//! sent has the lower id, and so has the first of two that one session sent, each once.

use std::collections::{BTreeMap, HashMap};

use super::requests::Requests;
use crate::history::{Chat, History, Log, Millis, Request, Rule, Verdict, What};

/// An answered message of a chat.
#[derive(Debug, Clone, Copy)]
struct Message {
    id: u32,
    sent: Millis,
    answered: Millis,
}

pub(super) fn check(history: &History, requests: &Requests, verdict: &mut Verdict) {
    let mut chats: BTreeMap<Chat, Vec<Message>> = BTreeMap::new();
    for ((sender, _), sent) in &requests.messages {
        let Some((answered, id)) = sent.stored else { continue };
        let message = Message { id, sent: sent.first_sent, answered };
        chats.entry(Chat::of(*sender, sent.peer)).or_default().push(message);
    }
    for (chat, messages) in &mut chats {
        check_chat(*chat, messages, verdict);
    }
    for (number, log) in history.devices.iter().enumerate() {
        check_sessions(number, log, requests, verdict);
    }
}

fn check_chat(chat: Chat, messages: &mut [Message], verdict: &mut Verdict) {
    let mut answered = messages.to_vec();
    answered.sort_unstable_by_key(|message| message.answered);
    let mut answered = answered.into_iter().peekable();
    messages.sort_unstable_by_key(|message| message.sent);
    let mut highest = 0;
    for message in messages {
        while let Some(earlier) = answered.next_if(|earlier| earlier.answered < message.sent) {
            highest = earlier.id.max(highest);
        }
        if message.id <= highest {
            verdict.breach(Rule::ChatOrder, || {
                format!(
                    "{chat}: {} was sent at {} ms, {highest} answered before",
                    message.id, message.sent
                )
            });
        }
    }
}

fn check_sessions(number: usize, log: &Log, requests: &Requests, verdict: &mut Verdict) {
    let mut highest: HashMap<Chat, u32> = HashMap::new();
    for record in &log.records {
        match record.what {
            What::Opened => highest.clear(),
            What::Sent { request: Request::New { peer, key }, .. } => {
                let Some(sent) = requests.messages.get(&(log.user, key)) else { continue };
                let Some((_, message)) = sent.stored else { continue };
                if sent.times_sent > 1 {
                    continue;
                }
                let chat = Chat::of(log.user, peer);
                let before = highest.insert(chat, message).unwrap_or(0);
                if message <= before {
                    verdict.breach(Rule::ChatOrder, || {
                        format!("{chat}: device {number} sent {before} before {message}")
                    });
                }
            }
            _ => {}
        }
    }
}
