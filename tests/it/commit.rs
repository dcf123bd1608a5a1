//! A worker's transaction stores all that a batch changes, or nothing of it.

use anyhow::Result;
use herald_proto::{Chat, ClientMessageId, UserId};
use herald_tests::{Backend, Database};
use herald_worker::{
    store::{
        Changes, Error, Move, NewMessage, Store, StoredChat,
        entity::{chat, message},
    },
    unread::{Ledger, Member},
};
use sea_orm::EntityTrait;

on_both! {
    all_that_a_batch_changes_is_stored_however_large_it_is
    nothing_of_a_batch_is_stored_once_another_worker_has_moved_a_partition
}

const EPOCH: i64 = 5;

/// How many chats a batch works on, each in a partition of its own, and how many messages each gets. PostgreSQL has a
/// statement for each of the first four.
const SIZES: [(u16, i64); 5] = [(1, 0), (1, 1), (2, 0), (2, 1), (1, 2)];

async fn store(backend: Backend) -> Result<(Database, Store)> {
    let database = Database::create(backend).await?;
    let store = Store::connect(database.url(), 2).await?;
    store.migrate().await?;
    Ok((database, store))
}

/// New chats, and their partitions: as many as the batch that is to be written needs.
async fn chats(store: &Store, number: u16, (count, _): (u16, i64)) -> Result<Vec<StoredChat>> {
    let mut chats = Vec::new();
    for place in 0..count {
        store.partition(number * 2 + place, EPOCH).await?;
        let user = |name| UserId::new(format!("{name}{number}-{place}"));
        let chat = Chat::between(&user("a")?, &user("b")?).expect("two users");
        store.create_chats(std::slice::from_ref(&chat)).await?;
        chats.extend(store.chats(&[chat]).await?);
    }
    Ok(chats)
}

/// A batch whose every column holds something else. Its partitions step on from `expected`.
fn batch(number: u16, chats: &[StoredChat], messages: i64, expected: &[i64]) -> Result<Changes> {
    let mut changes = Changes { now: 77, ..Changes::default() };
    for ((place, chat), expected) in (0..).zip(chats).zip(expected) {
        let id = number * 2 + place;
        changes.moves.push(Move {
            id,
            epoch: EPOCH + 1,
            expected_epoch: EPOCH,
            expected: *expected,
            applied: expected + 10,
            seen_at: 11,
            moved_at: 12,
            events: format!("[{id}]"),
        });
        let member = |n| Member { last_sent: n, read: n + 1, delivered: n + 2, missed: n + 3 };
        let ledger = Ledger { last: 20 + i64::from(id), a: member(30), b: member(40) };
        changes.counters.push((chat.id, ledger));
        for message_id in 1..=messages {
            changes.messages.push(NewMessage {
                chat_id: chat.id,
                message_id,
                from_a: message_id == 1,
                sender: UserId::new(format!("sender{id}"))?,
                client_message_id: ClientMessageId::new(format!("key{message_id}"))?,
                digest: 51,
                sent_at: 52,
                stored_at: 53,
                body: (message_id == 1).then(|| "text".to_owned()),
                attachments: (message_id > 1).then(|| "[]".to_owned()),
                deleted: message_id > 1,
            });
        }
    }
    Ok(changes)
}

async fn all_that_a_batch_changes_is_stored_however_large_it_is(backend: Backend) -> Result<()> {
    let (database, store) = store(backend).await?;
    let db = sea_orm::Database::connect(database.url()).await?;
    for (number, size) in (0..).zip(SIZES) {
        let chats = chats(&store, number, size).await?;
        let changes = batch(number, &chats, size.1, &[0, 0])?;
        store.commit(&changes).await?;
        for (step, (chat_id, ledger)) in changes.moves.iter().zip(&changes.counters) {
            let found = store.partition(step.id, EPOCH + 1).await?;
            assert_eq!(
                (found.epoch, found.applied, found.seen_at, found.moved_at, &found.events),
                (EPOCH + 1, 10, 11, 12, &step.events)
            );
            let found = chat::Entity::find_by_id(*chat_id).one(&db).await?.expect("the chat");
            assert_eq!(found.updated_at, 77);
            let a = Member {
                last_sent: found.a_last_sent,
                read: found.a_read,
                delivered: found.a_delivered,
                missed: found.a_missed,
            };
            let b = Member {
                last_sent: found.b_last_sent,
                read: found.b_read,
                delivered: found.b_delivered,
                missed: found.b_missed,
            };
            assert_eq!(Ledger { last: found.last, a, b }, *ledger);
        }
        for new in &changes.messages {
            let id = (new.chat_id, new.message_id);
            let found = message::Entity::find_by_id(id).one(&db).await?.expect("the message");
            let expected = message::Model {
                chat_id: new.chat_id,
                message_id: new.message_id,
                from_a: new.from_a,
                sender: new.sender.to_string(),
                client_message_id: new.client_message_id.to_string(),
                digest: 51,
                sent_at: 52,
                stored_at: 53,
                body: new.body.clone(),
                attachments: new.attachments.clone(),
                deleted: new.deleted,
            };
            assert_eq!(found, expected);
        }
    }
    Ok(())
}

async fn nothing_of_a_batch_is_stored_once_another_worker_has_moved_a_partition(
    backend: Backend,
) -> Result<()> {
    let (database, store) = store(backend).await?;
    let db = sea_orm::Database::connect(database.url()).await?;
    for (number, size) in (0..).zip(SIZES) {
        let chats = chats(&store, number, size).await?;
        // Of several partitions only the last was moved.
        let mut expected = [0, 0];
        expected[chats.len() - 1] = 3;
        let late = batch(number, &chats, size.1, &expected)?;
        let refused = store.commit(&late).await;
        assert!(matches!(refused, Err(Error::Fenced)), "{size:?}: {refused:?}");
        for (step, chat) in late.moves.iter().zip(&chats) {
            assert_eq!(store.partition(step.id, EPOCH).await?.applied, 0);
            let found = store.chats(std::slice::from_ref(&chat.chat)).await?;
            assert_eq!(found[0].ledger, Ledger::default());
        }
        store.commit(&batch(number, &chats, size.1, &[0, 0])?).await?;
    }
    let stored = message::Entity::find().all(&db).await?.len();
    let sent: i64 = SIZES.iter().map(|(chats, messages)| i64::from(*chats) * messages).sum();
    assert_eq!(i64::try_from(stored)?, sent);
    Ok(())
}
