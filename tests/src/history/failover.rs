//! How long a part of the service was away: from a worker's death until every partition has answered again.

use std::collections::BTreeMap;

use super::{Chat, History, Millis, Request, User, What};

/// For each death, how long it took until in every partition a request was answered that was sent after it. Partitions in
/// which none was sent do not count; a death that the log does not outlast gives nothing.
pub fn failovers(
    history: &History,
    deaths: &[Millis],
    partition: impl Fn(Chat) -> u16,
) -> Vec<Millis> {
    let mut answers: BTreeMap<u16, Vec<(Millis, Millis)>> = BTreeMap::new();
    for log in &history.devices {
        let mut sent: BTreeMap<u32, (Millis, Request)> = BTreeMap::new();
        for record in &log.records {
            match record.what {
                What::Sent { number, request } => {
                    sent.insert(number, (record.at, request));
                }
                What::Answered { number, answer } if !answer.is_transient() => {
                    let Some((sent_at, request)) = sent.remove(&number) else { continue };
                    let partition = partition(chat(log.user, request));
                    answers.entry(partition).or_default().push((record.at, sent_at));
                }
                _ => {}
            }
        }
    }
    for of_partition in answers.values_mut() {
        of_partition.sort_unstable();
    }
    deaths
        .iter()
        .filter_map(|death| {
            let firsts = answers.values().filter_map(|answers| {
                let from = answers.partition_point(|(answered, _)| answered <= death);
                let mut later = answers.iter().skip(from);
                later.find(|(_, sent)| sent > death).map(|(answered, _)| answered - death)
            });
            firsts.max()
        })
        .collect()
}

fn chat(user: User, request: Request) -> Chat {
    Chat::of(user, request.peer())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Answer, Key, Log, Record};

    #[test]
    fn a_failover_lasts_until_the_last_partition_has_answered_what_was_sent_after_the_death() {
        let record = |at, what| Record { at, what };
        let sent = |at, number, peer| {
            let request = Request::New { peer: User(peer), key: Key(number) };
            record(at, What::Sent { number, request })
        };
        let answered = |at, number| {
            let answer = Answer::Stored { message: 1, key: Key(number) };
            record(at, What::Answered { number, answer })
        };
        let records = vec![
            sent(90, 1, 2),
            // Was on its way when the worker died.
            answered(101, 1),
            sent(110, 2, 2),
            sent(110, 3, 3),
            answered(150, 2),
            answered(900, 3),
        ];
        let history =
            History { devices: vec![Log { user: User(1), records }], ..History::default() };
        let found = failovers(&history, &[100, 2000], |chat| chat.high.0);
        assert_eq!(found, [800]);
    }
}
