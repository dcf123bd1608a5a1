//! What was answered without error has come to whom it concerns, as it was answered.

use std::collections::BTreeMap;

use super::{
    replay::{Member, Replay},
    requests::{Asked, Requests},
};
use crate::history::{Answer, Chat, Request, Rule, Verdict};

pub(super) fn check(requests: &Requests, chats: &BTreeMap<Chat, Replay>, verdict: &mut Verdict) {
    for asked in requests.asked.values() {
        let Some((_, answer)) = asked.answered else { continue };
        let replay = chats.get(&Chat::of(asked.by, asked.request.peer()));
        check_one(asked, answer, replay, verdict);
    }
}

fn check_one(asked: &Asked, answer: Answer, replay: Option<&Replay>, verdict: &mut Verdict) {
    let tell = || format!("{:?} of {}, answered {answer:?}", asked.request, asked.by);
    let member = replay.map(|replay| replay.member(asked.by));
    let is_kept = match (asked.request, answer) {
        (_, Answer::Refused(_)) => true,
        (Request::New { key, .. }, Answer::Stored { message, .. }) => {
            match replay.and_then(|replay| replay.message(message)) {
                None => false,
                Some(found) if (found.sender, found.key) == (asked.by, key) => true,
                Some(found) => {
                    verdict.breach(Rule::OneEffect, || format!("{}, came {found:?}", tell()));
                    true
                }
            }
        }
        (Request::Dlvrd { up_to: Some(up_to), .. }, _) => {
            member.is_some_and(|member| member.delivered >= up_to)
        }
        (Request::Read { up_to, .. }, Answer::Read { missed }) => {
            if member.is_some_and(|member| !was_ever(member, up_to.unwrap_or(0), missed)) {
                verdict.breach(Rule::Counts, || format!("{}, and so it never was", tell()));
            }
            member.is_some_and(|member| member.read >= up_to.unwrap_or(0))
        }
        (Request::Delete { message, .. }, _) => {
            replay.and_then(|replay| replay.message(message)).is_some_and(|found| found.is_deleted)
        }
        _ => true,
    };
    if !is_kept {
        verdict.breach(Rule::Kept, tell);
    }
}

/// Whether a member's count was ever this, once it had read that far.
fn was_ever(member: &Member, up_to: u32, missed: u32) -> bool {
    let from = member.steps.partition_point(|step| step.read < up_to);
    let mut steps = member.steps.iter().skip(from).peekable();
    // The event of the mark has not come: that is another breach.
    steps.peek().is_none() || steps.any(|step| step.missed == missed)
}
