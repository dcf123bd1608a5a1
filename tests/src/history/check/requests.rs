//! Every request with its answer: all answered, no key with two ids.

use std::collections::BTreeMap;

use crate::history::{Answer, History, Key, Millis, Request, Rule, User, Verdict, What};

/// A request and what became of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) by: User,
    pub(super) request: Request,
    pub(super) times_sent: u32,
    /// When the final answer came, and how it was.
    pub(super) answered: Option<(Millis, Answer)>,
}

/// A message, whatever number of requests it was sent with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message {
    pub(super) peer: User,
    pub(super) first_sent: Millis,
    pub(super) times_sent: u32,
    /// When it was answered for the first time, and with which id.
    pub(super) stored: Option<(Millis, u32)>,
}

/// All requests by number, and all messages by key.
#[derive(Debug, Default)]
pub(super) struct Requests {
    pub(super) asked: BTreeMap<u32, Asked>,
    pub(super) messages: BTreeMap<(User, Key), Message>,
}

pub(super) fn collect(history: &History, verdict: &mut Verdict) -> Requests {
    let mut requests = Requests::default();
    for log in &history.devices {
        for record in &log.records {
            match record.what {
                What::Sent { number, request } => {
                    requests.sent(number, log.user, request, record.at);
                }
                What::Answered { number, answer } if !answer.is_transient() => {
                    requests.answered(number, record.at, answer, verdict);
                }
                _ => {}
            }
        }
    }
    for (number, asked) in &requests.asked {
        verdict.tally.answered += u64::from(asked.answered.is_some());
        verdict.tally.asked_again += u64::from(asked.times_sent > 1);
        if asked.answered.is_none() {
            verdict.breach(Rule::Answered, || {
                format!(
                    "request {number} of {}, sent {} times: {:?}",
                    asked.by, asked.times_sent, asked.request
                )
            });
        }
    }
    let stored = requests.messages.values().filter(|message| message.stored.is_some());
    verdict.tally.messages = u64::try_from(stored.count()).unwrap_or(u64::MAX);
    requests
}

impl Requests {
    fn sent(&mut self, number: u32, by: User, request: Request, at: Millis) {
        let asked = Asked { by, request, times_sent: 0, answered: None };
        self.asked.entry(number).or_insert(asked).times_sent += 1;
        if let Request::New { peer, key } = request {
            let message = Message { peer, first_sent: at, times_sent: 0, stored: None };
            let message = self.messages.entry((by, key)).or_insert(message);
            message.first_sent = at.min(message.first_sent);
            message.times_sent += 1;
        }
    }

    fn answered(&mut self, number: u32, at: Millis, answer: Answer, verdict: &mut Verdict) {
        let Some(asked) = self.asked.get_mut(&number) else {
            verdict
                .breach(Rule::Consistent, || format!("{answer:?} to {number}, which nobody asked"));
            return;
        };
        let tell = || format!("{:?} of {} was answered {answer:?}", asked.request, asked.by);
        match (asked.request, answer) {
            (_, Answer::Refused(_)) => verdict.breach(Rule::Answered, tell),
            (Request::New { key, .. }, Answer::Stored { message, key: answered }) => {
                if key != answered {
                    verdict.breach(Rule::Consistent, tell);
                }
                let sent = self.messages.get_mut(&(asked.by, key));
                let Some(sent) = sent else { return };
                let (first, known) = *sent.stored.get_or_insert((at, message));
                sent.stored = Some((first.min(at), known));
                if known != message {
                    verdict.breach(Rule::OneEffect, || format!("{}, {known} before", tell()));
                }
            }
            (Request::Read { .. }, Answer::Read { .. })
            | (Request::Dlvrd { .. } | Request::Delete { .. }, Answer::Done) => {}
            _ => verdict.breach(Rule::Consistent, tell),
        }
        asked.answered.get_or_insert((at, answer));
    }
}
