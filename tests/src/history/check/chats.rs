//! Every chat's events in the order of acceptance: ids without holes, one effect each, counts and marks right.

use std::collections::{BTreeMap, HashSet};

use super::{
    replay::{Fit, Replay},
    users::Events,
};
use crate::history::{Chat, Event, Key, Rule, User, Verdict};

pub(super) fn replay(
    users: &BTreeMap<User, Events>,
    verdict: &mut Verdict,
) -> BTreeMap<Chat, Replay> {
    let mut chats: BTreeMap<Chat, Vec<(u64, User, Event)>> = BTreeMap::new();
    for (user, events) in users {
        for (id, (_, event)) in events {
            chats.entry(Chat::of(*user, event.peer())).or_default().push((*id, *user, *event));
        }
    }
    chats
        .into_iter()
        .map(|(chat, mut events)| {
            events.sort_unstable_by_key(|(id, ..)| *id);
            (chat, replay_one(chat, &events, verdict))
        })
        .collect()
}

fn replay_one(chat: Chat, events: &[(u64, User, Event)], verdict: &mut Verdict) -> Replay {
    let mut replay = Replay::new(chat);
    let mut keys: HashSet<(User, Key)> = HashSet::new();
    for (id, user, event) in events {
        let tell = || format!("{chat}: event {id} to {user}: {event:?}");
        let fit = match *event {
            Event::New { peer, key, .. } if !keys.insert((peer, key)) => Fit::Again,
            Event::New { peer, key, message, missed, is_intact } => {
                let fit = replay.add(peer, key, message);
                let counted = replay.recount(peer, replay.member(*user).read);
                if missed != counted {
                    verdict.breach(Rule::Counts, || format!("{}, {counted} counted", tell()));
                }
                if !is_intact {
                    verdict.breach(Rule::Consistent, || format!("{}, another text", tell()));
                }
                fit
            }
            Event::Dlvrd(about) => replay.deliver(about.peer, about),
            Event::Read(about) => replay.read(about.peer, about),
            Event::Delete(about) => replay.delete(about.peer, about),
        };
        let is_mark = matches!(event, Event::Dlvrd(_) | Event::Read(_));
        match fit {
            // What lies between comes late, or never: then it is a hole.
            Fit::Next | Fit::Early => {}
            Fit::Late if is_mark => verdict.breach(Rule::Marks, tell),
            Fit::Late => verdict.breach(Rule::ChatOrder, tell),
            Fit::Again => verdict.breach(Rule::OneEffect, tell),
            Fit::Wrong => verdict.breach(Rule::Consistent, tell),
        }
    }
    for hole in replay.holes() {
        verdict.breach(Rule::NoHoles, || format!("{chat}: no event tells of message {hole}"));
    }
    replay
}
