//! `missed` equals a naive recount at every step of random histories, sent in bursts so that batches form.

use anyhow::{Result, ensure};
use herald_tests::{Backend, Client, Cluster, Options};
use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, TestRunner},
};
use serde_json::{Value, json};

on_both! {
    missed_equals_a_naive_recount_at_every_step_of_random_histories
}

#[derive(Debug, Clone)]
enum Step {
    New,
    Read(Option<usize>),
    Dlvrd(Option<usize>),
    Delete(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => Just(Step::New),
        2 => prop::option::of(0..60_usize).prop_map(Step::Read),
        2 => prop::option::of(0..60_usize).prop_map(Step::Dlvrd),
        2 => (0..60_usize).prop_map(Step::Delete),
    ]
}

/// One user's burst: who, and what it sends without waiting.
fn history() -> impl Strategy<Value = Vec<(usize, Vec<Step>)>> {
    prop::collection::vec((0..2_usize, prop::collection::vec(step(), 1..14)), 12..30)
}

#[derive(Clone)]
struct Message {
    from: usize,
    deleted: bool,
    key: String,
}

/// The chat, kept in the most naive way.
#[derive(Default)]
struct Model {
    messages: Vec<Message>,
    read: [usize; 2],
    delivered: [usize; 2],
    /// What each user's events must be: type, message id, `missed` for `new`.
    events: [Vec<(&'static str, usize, Option<usize>)>; 2],
}

impl Model {
    fn missed(&self, user: usize) -> usize {
        let unread = self.messages.iter().skip(self.read[user]);
        unread.filter(|message| message.from != user && !message.deleted).count()
    }

    /// The last message of `user`'s peer in the given range of ids.
    fn newest_of_peer(&self, user: usize, after: usize, up_to: usize) -> Option<usize> {
        (after + 1..=up_to).rev().find(|id| self.messages[id - 1].from != user)
    }

    fn last_of_peer(&self, user: usize) -> usize {
        self.newest_of_peer(user, 0, self.messages.len()).unwrap_or(0)
    }

    /// Applies a step and says what must be answered.
    fn apply(&mut self, user: usize, step: &Step, key: &str) -> Value {
        let peer = 1 - user;
        let (no_chat, last) = (self.messages.is_empty(), self.messages.len());
        match step {
            Step::New => {
                self.messages.push(Message { from: user, deleted: false, key: key.to_owned() });
                let id = self.messages.len();
                let missed = self.missed(peer);
                self.events[peer].push(("new", id, Some(missed)));
                json!({"payload": {"messageId": id, "clientMessageId": key}})
            }
            _ if no_chat => json!({"error": "not_found"}),
            Step::Read(Some(id)) | Step::Dlvrd(Some(id)) if *id >= last => {
                json!({"error": "not_found"})
            }
            Step::Delete(id) if *id >= last => json!({"error": "not_found"}),
            Step::Read(id) => {
                let up_to = id.map_or_else(|| self.last_of_peer(user), |id| id + 1);
                if up_to > self.read[user] {
                    if let Some(newest) = self.newest_of_peer(user, self.read[user], up_to) {
                        self.events[peer].push(("read", newest, None));
                    }
                    self.read[user] = up_to;
                    self.delivered[user] = self.delivered[user].max(up_to);
                }
                let mut payload = json!({"chatId": name(peer), "missed": self.missed(user)});
                if up_to > 0 {
                    payload["messageId"] = json!(up_to);
                    payload["clientMessageId"] = json!(self.messages[up_to - 1].key);
                }
                json!({"payload": payload})
            }
            Step::Dlvrd(id) => {
                let up_to = id.map_or_else(|| self.last_of_peer(user), |id| id + 1);
                if up_to > self.delivered[user] {
                    if let Some(newest) = self.newest_of_peer(user, self.delivered[user], up_to) {
                        self.events[peer].push(("dlvrd", newest, None));
                    }
                    self.delivered[user] = up_to;
                }
                json!({"payload": {}})
            }
            Step::Delete(id) => {
                let message = &mut self.messages[*id];
                if message.from != user {
                    return json!({"error": "forbidden"});
                }
                if !std::mem::replace(&mut message.deleted, true) {
                    self.events[peer].push(("delete", id + 1, None));
                }
                json!({})
            }
        }
    }
}

fn name(user: usize) -> &'static str {
    ["ann", "bob"][user]
}

fn frame(user: usize, step: &Step, id: &str) -> Value {
    let peer = name(1 - user);
    let (kind, mut payload) = match step {
        Step::New => ("new", json!({"chatId": peer, "clientMessageId": id, "message": id})),
        Step::Read(_) => ("read", json!({"chatId": peer})),
        Step::Dlvrd(_) => ("dlvrd", json!({"chatId": peer})),
        Step::Delete(_) => ("delete", json!({"chatId": peer})),
    };
    if let Step::Read(Some(index)) | Step::Dlvrd(Some(index)) | Step::Delete(index) = step {
        payload["messageId"] = json!(index + 1);
    }
    json!({"type": "request", "timestamp": 1, "id": id, "payloadType": kind, "payload": payload})
}

async fn missed_equals_a_naive_recount_at_every_step_of_random_histories(
    backend: Backend,
) -> Result<()> {
    let cluster =
        Cluster::start(backend, Options::default().gateway_flags(&["--window", "1000"])).await?;
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    for round in 0..6 {
        let history = history().new_tree(&mut runner).map_err(anyhow::Error::msg)?.current();
        let suffix = format!("{round}");
        run(&cluster, &history, &suffix)
            .await
            .map_err(|error| error.context(format!("{history:?}")))?;
    }
    Ok(())
}

async fn run(cluster: &Cluster, history: &[(usize, Vec<Step>)], round: &str) -> Result<()> {
    // Each round is a pair of its own: the model's names are put in place of the round's.
    let real = |user: usize| format!("{}{round}", name(user));
    let rename = |text: String| {
        text.replace("\"ann\"", &format!("\"{}\"", real(0)))
            .replace("\"bob\"", &format!("\"{}\"", real(1)))
    };
    let mut clients: [Client; 2] =
        [cluster.connect(&real(0)).await?, cluster.connect(&real(1)).await?];
    let mut model = Model::default();
    let mut n = 0;
    for (user, steps) in history {
        let mut expected = Vec::new();
        for step in steps {
            n += 1;
            let id = format!("{round}-{n}");
            expected.push((id.clone(), step, model.apply(*user, step, &id)));
            clients[*user].send_text(&rename(frame(*user, step, &id).to_string())).await?;
        }
        for (id, step, expected) in expected {
            let answer = clients[*user].response(&id).await?;
            let got = match answer.pointer("/error/code") {
                Some(code) => json!({"error": code}),
                None => {
                    answer.get("payload").map_or(json!({}), |payload| json!({"payload": payload}))
                }
            };
            let expected: Value = serde_json::from_str(&rename(expected.to_string()))?;
            ensure!(got == expected, "{step:?} by {}: got {got}, not {expected}", name(*user));
        }
    }
    for (user, client) in clients.iter_mut().enumerate() {
        for (kind, id, missed) in &model.events[user] {
            let event = client.next_event().await?;
            ensure!(
                event["eventType"] == *kind && event["payload"]["messageId"] == *id,
                "{} should get {kind} {id}, got {event}",
                name(user)
            );
            if let Some(missed) = missed {
                ensure!(
                    event["payload"]["missed"] == *missed,
                    "missed should be {missed}: {event}"
                );
            }
        }
        client.nothing_more().await?;
    }
    Ok(())
}
