//! The batch statements. Each takes its rows as ONE parameter, a JSON array of objects, so that a statement's text
//! never depends on the size of the batch and stays prepared. Only how an array becomes rows differs by database.
//! PostgreSQL's commit, which every batch runs, takes an array for each column instead, or a value: reading JSON was the
//! most of it.

use std::ops::RangeFrom;

use sea_orm::DbBackend;

#[derive(Clone, Copy)]
enum Type {
    Int,
    Text,
    Bool,
}
use Type::{Bool, Int, Text};

type Column = (&'static str, Type);

const MOVES: [Column; 8] = [
    ("id", Int),
    ("epoch", Int),
    ("expected_epoch", Int),
    ("expected", Int),
    ("applied", Int),
    ("seen_at", Int),
    ("moved_at", Int),
    ("events", Text),
];
const MESSAGES: [Column; 11] = [
    ("chat_id", Int),
    ("message_id", Int),
    ("from_a", Bool),
    ("sender", Text),
    ("client_message_id", Text),
    ("digest", Int),
    ("sent_at", Int),
    ("stored_at", Int),
    ("body", Text),
    ("attachments", Text),
    ("deleted", Bool),
];
const COUNTERS: [Column; 11] = [
    ("id", Int),
    ("last", Int),
    ("a_last_sent", Int),
    ("a_read", Int),
    ("a_delivered", Int),
    ("a_missed", Int),
    ("b_last_sent", Int),
    ("b_read", Int),
    ("b_delivered", Int),
    ("b_missed", Int),
    ("updated_at", Int),
];
const PLACES: [Column; 2] = [("chat_id", Int), ("message_id", Int)];

/// The statements' texts for one database.
pub(super) struct Sql {
    pub(super) chats: String,
    pub(super) create_chats: String,
    pub(super) update_chats: String,
    pub(super) contacts: String,
    pub(super) known: String,
    pub(super) points: String,
    pub(super) spans: String,
    pub(super) insert_messages: String,
    pub(super) erase: String,
    pub(super) partitions: String,
    pub(super) create_partitions: String,
    pub(super) renew_partitions: String,
    pub(super) move_partitions: String,
    pub(super) event_streams: String,
    pub(super) create_event_streams: String,
    pub(super) raise_event_streams: String,
    pub(super) jump_event_streams: String,
    /// All that a batch writes, as one statement, for PostgreSQL only.
    pub(super) commit: Commit,
}

impl Sql {
    pub(super) fn new(backend: DbBackend) -> Self {
        let rows = |columns: &[Column]| rows(backend, columns);
        let pairs = rows(&[("user_a", Text), ("user_b", Text)]);
        let keys = rows(&[("sender", Text), ("client_message_id", Text)]);
        let points = rows(&PLACES);
        let spans = rows(&[("chat_id", Int), ("from_a", Bool), ("after", Int), ("up_to", Int)]);
        let ids = rows(&[("id", Int), ("epoch", Int)]);
        let streams = rows(&[("id", Int), ("created", Int), ("high", Int)]);
        let jumps = rows(&[("id", Int), ("old_high", Int), ("created", Int), ("high", Int)]);
        Self {
            chats: format!(
                "SELECT c.* FROM {pairs} r JOIN chats c ON c.user_a = r.user_a AND c.user_b = r.user_b"
            ),
            // `WHERE true` tells SQLite's parser that `ON CONFLICT` does not belong to a join.
            create_chats: format!(
                "INSERT INTO chats (user_a, user_b) SELECT r.user_a, r.user_b FROM {pairs} r WHERE true \
                 ON CONFLICT (user_a, user_b) DO NOTHING"
            ),
            update_chats: update_chats(&rows(&COUNTERS)),
            contacts: {
                let users = rows(&[("place", Int), ("user_id", Text), ("most", Int)]);
                let side = |own, peer| {
                    format!(
                        "SELECT r.place, r.most, c.{peer} AS peer, c.updated_at FROM {users} r \
                         JOIN chats c ON c.{own} = r.user_id"
                    )
                };
                format!(
                    "SELECT p.place, p.peer FROM (SELECT u.*, row_number() OVER \
                     (PARTITION BY u.place ORDER BY u.updated_at DESC) AS n FROM ({} UNION ALL {}) u) p \
                     WHERE p.n <= p.most ORDER BY p.place, p.n",
                    side("user_a", "user_b"),
                    side("user_b", "user_a"),
                )
            },
            known: format!(
                "SELECT m.sender, m.client_message_id, m.message_id, m.digest FROM {keys} r \
                 JOIN messages m ON m.sender = r.sender AND m.client_message_id = r.client_message_id"
            ),
            points: format!(
                "SELECT m.chat_id, m.message_id, m.from_a, m.client_message_id, m.digest, m.deleted FROM {points} r \
                 JOIN messages m ON m.chat_id = r.chat_id AND m.message_id = r.message_id"
            ),
            spans: format!(
                "SELECT r.chat_id, r.from_a, r.after, r.up_to, \
                 (SELECT count(*) FROM messages m WHERE m.chat_id = r.chat_id AND m.from_a = r.from_a \
                  AND NOT m.deleted AND m.message_id > r.after AND m.message_id <= r.up_to) AS unread, \
                 (SELECT max(m.message_id) FROM messages m WHERE m.chat_id = r.chat_id AND m.from_a = r.from_a \
                  AND m.message_id > r.after AND m.message_id <= r.up_to) AS newest FROM {spans} r"
            ),
            insert_messages: insert_messages(&rows(&MESSAGES)),
            erase: erase(&rows(&PLACES), backend),
            partitions: format!(
                "SELECT p.id, p.epoch, p.applied, p.seen_at, p.moved_at, p.events \
                 FROM {ids} r JOIN partitions p ON p.id = r.id"
            ),
            create_partitions: format!(
                "INSERT INTO partitions (id, epoch) SELECT r.id, r.epoch FROM {ids} r WHERE true \
                 ON CONFLICT (id) DO NOTHING"
            ),
            // Sequences of another stream say nothing about this one's frames.
            renew_partitions: format!(
                "UPDATE partitions SET epoch = r.epoch, applied = 0, seen_at = 0, events = '[]' FROM {ids} r \
                 WHERE partitions.id = r.id \
                 AND (partitions.epoch < r.epoch OR partitions.epoch >= r.epoch + {EPOCHS_OF_A_STREAM})"
            ),
            move_partitions: move_partitions(&rows(&MOVES)),
            event_streams: {
                let ids = rows(&[("id", Int)]);
                format!("SELECT s.* FROM {ids} r JOIN event_streams s ON s.id = r.id")
            },
            create_event_streams: format!(
                "INSERT INTO event_streams (id, created, high) SELECT r.id, r.created, r.high FROM {streams} r \
                 WHERE true ON CONFLICT (id) DO NOTHING"
            ),
            raise_event_streams: format!(
                "UPDATE event_streams SET high = r.high FROM {streams} r WHERE event_streams.id = r.id \
                 AND event_streams.created = r.created AND event_streams.high < r.high"
            ),
            jump_event_streams: format!(
                "UPDATE event_streams SET created = r.created, high = r.high FROM {jumps} r \
                 WHERE event_streams.id = r.id AND event_streams.high = r.old_high"
            ),
            commit: Commit::new(),
        }
    }
}

/// One statement for all that a batch writes, in sizes: PostgreSQL prepares to run every part of a statement, also one
/// without rows, and for a small batch that is most of what it does.
pub(super) struct Commit {
    /// For one partition's move and one chat's counters, a parameter for each column: most batches, unless there is much
    /// to do, and a third cheaper so.
    pub(super) one_chat: String,
    /// And one message with them.
    pub(super) one_message: String,
    /// For any number of moves and counters, an array for each column.
    pub(super) counters: String,
    /// And of messages.
    pub(super) messages: String,
    /// And of messages to be erased.
    pub(super) erased: String,
}

impl Commit {
    /// The parameters are the columns of `MOVES` and `COUNTERS`, then of `MESSAGES`, then of `PLACES`, as far as a
    /// statement takes them.
    fn new() -> Self {
        let [one_chat, one_message, _] = Self::sizes(row, "1");
        let [counters, messages, erased] = Self::sizes(arrays, "cardinality($1)");
        Self { one_chat, one_message, counters, messages, erased }
    }

    /// The statement without messages, with messages, and with those to be erased.
    fn sizes(rows: fn(&mut Parameters, &[Column]) -> String, moves: &str) -> [String; 3] {
        let mut parameters = 1..;
        let mut rows = |columns: &[Column]| rows(&mut parameters, columns);
        let moved = move_partitions(&rows(&MOVES));
        let counted = update_chats(&rows(&COUNTERS));
        let stored = insert_messages(&rows(&MESSAGES));
        let erased = erase(&rows(&PLACES), DbBackend::Postgres);
        let counters = format!("WITH moved AS ({moved} RETURNING 1), counted AS ({counted})");
        let messages = format!("{counters}, stored AS ({stored})");
        let erased = format!("{messages}, erased AS ({erased})");
        // If a partition has not moved, this divides by zero.
        [counters, messages, erased].map(|parts| {
            format!("{parts} SELECT 1 / ((SELECT count(*) FROM moved) = {moves})::int")
        })
    }
}

/// The numbers of PostgreSQL's parameters that are not used yet.
type Parameters = RangeFrom<u8>;

/// How many times `FRAMES` may lose its newest frames and count the same sequences again, before its partitions' epochs
/// would be taken for another stream's: one millisecond, in nanoseconds.
const EPOCHS_OF_A_STREAM: i64 = 1_000_000;

fn update_chats(counters: &str) -> String {
    format!(
        "UPDATE chats SET last = r.last, a_last_sent = r.a_last_sent, a_read = r.a_read, \
         a_delivered = r.a_delivered, a_missed = r.a_missed, b_last_sent = r.b_last_sent, \
         b_read = r.b_read, b_delivered = r.b_delivered, b_missed = r.b_missed, \
         updated_at = r.updated_at FROM {counters} r WHERE chats.id = r.id"
    )
}

fn insert_messages(messages: &str) -> String {
    format!(
        "INSERT INTO messages (chat_id, message_id, from_a, sender, client_message_id, digest, sent_at, \
         stored_at, body, attachments, deleted) SELECT r.chat_id, r.message_id, r.from_a, r.sender, \
         r.client_message_id, r.digest, r.sent_at, r.stored_at, r.body, r.attachments, r.deleted \
         FROM {messages} r"
    )
}

fn erase(places: &str, backend: DbBackend) -> String {
    let yes = if backend == DbBackend::Postgres { "true" } else { "1" };
    format!(
        "UPDATE messages SET body = NULL, attachments = NULL, deleted = {yes} FROM {places} r \
         WHERE messages.chat_id = r.chat_id AND messages.message_id = r.message_id"
    )
}

fn move_partitions(moves: &str) -> String {
    format!(
        "UPDATE partitions SET epoch = r.epoch, applied = r.applied, seen_at = r.seen_at, moved_at = r.moved_at, \
         events = r.events FROM {moves} r WHERE partitions.id = r.id \
         AND partitions.epoch = r.expected_epoch AND partitions.applied = r.expected"
    )
}

/// The first parameter, JSON, as a table expression with these columns.
fn rows(backend: DbBackend, columns: &[Column]) -> String {
    if backend == DbBackend::Postgres {
        let columns = list(columns, |name, kind| format!("\"{name}\" {}", in_postgres(kind)));
        // A subselect, so that the alias can follow here as it must in SQLite.
        format!("(SELECT * FROM json_to_recordset($1::json) AS j({columns}))")
    } else {
        let columns =
            list(columns, |name, _| format!("json_extract(value, '$.{name}') AS \"{name}\""));
        format!("(SELECT {columns} FROM json_each($1))")
    }
}

/// PostgreSQL's next parameters, an array for each column, as a table expression.
///
/// Each array that `unnest` takes is laid down in a store of its own before its first element is seen, which for a small
/// batch is most of the work. So it takes only what can't be read by place at once: texts, or else the first column.
fn arrays(parameters: &mut Parameters, columns: &[Column]) -> String {
    let has_text = columns.iter().any(|(_, kind)| matches!(kind, Text));
    let (mut unnested, mut names, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for ((name, kind), parameter) in columns.iter().zip(parameters) {
        let array = format!("${parameter}::{}[]", in_postgres(*kind));
        if matches!(kind, Text) || !has_text && unnested.is_empty() {
            all.push(format!("a.\"{name}\""));
            names.push(format!("\"{name}\""));
            unnested.push(array);
        } else {
            all.push(format!("({array})[a.place] AS \"{name}\""));
        }
    }
    let (all, unnested, names) = (all.join(", "), unnested.join(", "), names.join(", "));
    format!("(SELECT {all} FROM unnest({unnested}) WITH ORDINALITY AS a({names}, place))")
}

/// PostgreSQL's next parameters, one row's columns, as a table expression that the planner sees through.
fn row(parameters: &mut Parameters, columns: &[Column]) -> String {
    let columns: Vec<String> = columns
        .iter()
        .zip(parameters)
        .map(|((name, kind), parameter)| {
            format!("${parameter}::{} AS \"{name}\"", in_postgres(*kind))
        })
        .collect();
    format!("(SELECT {})", columns.join(", "))
}

fn list(columns: &[Column], each: impl Fn(&str, Type) -> String) -> String {
    columns.iter().map(|&(name, kind)| each(name, kind)).collect::<Vec<_>>().join(", ")
}

fn in_postgres(kind: Type) -> &'static str {
    match kind {
        Int => "bigint",
        Text => "text",
        Bool => "boolean",
    }
}
