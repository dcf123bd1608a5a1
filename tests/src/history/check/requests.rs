//! Every request with its answer: all answered, no key with two ids.

use std::collections::BTreeMap;

use crate::history::{Answer, History, Key, Millis, Request, Rule, User, Verdict, What};

/// A request and what became of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) by: User,
    pub(super) request: Request,
    pub(super) first_sent: Millis,
    pub(super) times_sent: u32,
    /// When the final answer came, and how it was.
    pub(super) answered: Option<(Millis, Answer)>,
}

/// All requests by number, and the id of every answered message.
#[derive(Debug, Default)]
pub(super) struct Requests {
    pub(super) asked: BTreeMap<u32, Asked>,
    pub(super) ids: BTreeMap<(User, Key), u32>,
}

pub(super) fn collect(history: &History, verdict: &mut Verdict) -> Requests {
    let mut requests = Requests::default();
    for log in &history.devices {
        for record in &log.records {
            match record.what {
                What::Sent { number, request } => {
                    let (by, first_sent) = (log.user, record.at);
                    let new = Asked { by, request, first_sent, times_sent: 0, answered: None };
                    requests.asked.entry(number).or_insert(new).times_sent += 1;
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
    verdict.tally.messages = u64::try_from(requests.ids.len()).unwrap_or(u64::MAX);
    requests
}

impl Requests {
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
                let known = *self.ids.entry((asked.by, key)).or_insert(message);
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
