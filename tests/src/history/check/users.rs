//! Each user's log, put together from what its devices have seen: copies agree, nothing is missing at anyone's end.

use std::collections::{BTreeMap, HashSet};

use crate::history::{Event, History, Rule, User, Verdict, What};

/// A user's events by id, each with the id it names as the one before it.
pub(super) type Events = BTreeMap<u64, (u64, Event)>;

pub(super) fn merge(history: &History, verdict: &mut Verdict) -> BTreeMap<User, Events> {
    let mut users: BTreeMap<User, Events> = BTreeMap::new();
    for log in &history.devices {
        let events = users.entry(log.user).or_default();
        for record in &log.records {
            let What::Got { id, prev, event } = record.what else { continue };
            let known = events.entry(id).or_insert((prev, event));
            if *known != (prev, event) {
                verdict.breach(Rule::Consistent, || {
                    format!("{}: {id} came as {known:?} and as {:?}", log.user, (prev, event))
                });
            }
        }
    }
    let resynced: HashSet<User> = history
        .devices
        .iter()
        .filter(|log| log.records.iter().any(|record| record.what == What::Resync))
        .map(|log| log.user)
        .collect();
    for (user, events) in users.iter().filter(|(user, _)| !resynced.contains(user)) {
        check_prev(*user, events, verdict);
    }
    check_ends(history, &users, verdict);
    users
}

fn check_prev(user: User, events: &Events, verdict: &mut Verdict) {
    let mut last = 0;
    for (id, (prev, _)) in events {
        if *prev != last {
            verdict.breach(Rule::Prev, || {
                format!("{user}: {id} names {prev} as the one before it, not {last}")
            });
        }
        last = *id;
    }
}

/// A device without a hole lacks nothing but what came after its last event.
fn check_ends(history: &History, users: &BTreeMap<User, Events>, verdict: &mut Verdict) {
    for (number, log) in history.devices.iter().enumerate() {
        let ids = log.records.iter().filter_map(|record| match record.what {
            What::Got { id, .. } => Some(id),
            _ => None,
        });
        let last = ids.max().unwrap_or(0);
        let Some(events) = users.get(&log.user) else { continue };
        for (id, (_, event)) in events.range(last + 1..) {
            verdict.breach(Rule::Kept, || {
                format!(
                    "{}: {id} came to another device and not to device {number}: {event:?}",
                    log.user
                )
            });
        }
    }
}
