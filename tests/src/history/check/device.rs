//! One device's log by itself: ids increase, nothing lies between two events, and what was not acked comes again, to the
//! next session, first of all and in order.

use std::collections::{BTreeSet, VecDeque};

use crate::history::{Log, Rule, Verdict, What};

/// A device as its log goes by.
#[derive(Default)]
struct Device {
    /// The ids it has seen, in increasing order.
    seen: Vec<u64>,
    /// Those of them that it has not acked.
    unacked: BTreeSet<u64>,
    /// What has to come in this session before anything else.
    owed: VecDeque<u64>,
    /// Whether the next id may be further on.
    may_jump: bool,
}

pub(super) fn check(number: usize, log: &Log, may_lose_logs: bool, verdict: &mut Verdict) {
    let name = format!("device {number} of {}", log.user);
    let mut device = Device::default();
    for record in &log.records {
        match record.what {
            What::Opened => {
                verdict.tally.sessions += 1;
                device.owed = device.unacked.iter().copied().collect();
            }
            What::Resync => {
                verdict.tally.resyncs += 1;
                if !may_lose_logs {
                    verdict.breach(Rule::LogsLast, || format!("{name} at {} ms", record.at));
                }
                device.may_jump = true;
                device.owed.clear();
                device.unacked.clear();
            }
            What::Got { id, prev, .. } => {
                device.pay(&name, id, verdict);
                device.got(&name, id, prev, verdict);
            }
            What::Acked(id) => {
                device.unacked.remove(&id);
            }
            What::Ended | What::Sent { .. } | What::Answered { .. } => {}
        }
    }
    for id in &device.unacked {
        verdict.breach(Rule::Again, || format!("{name} has not acked {id} at the end"));
    }
}

impl Device {
    /// Takes an event for what was owed to this session.
    fn pay(&mut self, name: &str, id: u64, verdict: &mut Verdict) {
        while let Some(owed) = self.owed.pop_front_if(|owed| *owed < id) {
            verdict.breach(Rule::Again, || {
                format!("{name}: {id} came to a new session before {owed}, which was not acked")
            });
        }
        self.owed.pop_front_if(|owed| *owed == id);
    }

    fn got(&mut self, name: &str, id: u64, prev: u64, verdict: &mut Verdict) {
        let last = self.seen.last().copied();
        if last.is_none_or(|last| id > last) {
            // What comes before a device's first event, its user's log tells.
            if last.is_some_and(|last| prev != last) && !self.may_jump {
                verdict.breach(Rule::Prev, || {
                    format!("{name}: {id} names {prev} as the one before it, not {last:?}")
                });
            }
            verdict.tally.events += 1;
            self.may_jump = false;
            self.seen.push(id);
            self.unacked.insert(id);
        } else if self.seen.binary_search(&id).is_err() {
            verdict
                .breach(Rule::IdOrder, || format!("{name}: {id} is new and came after {last:?}"));
        } else if self.unacked.contains(&id) {
            verdict.tally.came_again += 1;
        } else {
            verdict.tally.duplicates += 1;
        }
    }
}
