//! What one batch works on: everything its frames need is loaded in a few statements, changed in memory frame by
//! frame, and written in a few statements.

use std::collections::{HashMap, HashSet};

use herald_proto::{
    Chat, ClientMessageId, MessageId, Side, UserId,
    frame::{Event, EventBody, Request, to_text},
};

use crate::{
    frame::{Frame, Outgoing},
    store::{Error, Known, NewMessage, Point, SpanQuery, Transaction},
};

mod entry;

use entry::side;
pub use entry::{Entry, Found};

type Key = (UserId, ClientMessageId);

/// The state that a batch's frames read and change.
pub struct WorkingSet {
    /// The service's clock, in milliseconds since the Unix epoch: the same for the whole batch.
    pub now: i64,
    /// The stream of the batch's frames.
    epoch: i64,
    chats: HashMap<Chat, Entry>,
    known: HashMap<Key, Known>,
    events: Vec<(u16, Outgoing)>,
}

impl WorkingSet {
    /// Loads what the frames need. Chats that a `new` opens are created.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn load(
        txn: &Transaction<'_>,
        frames: &[Frame],
        epoch: i64,
        now: i64,
    ) -> Result<Self, Error> {
        let mut set =
            Self { now, epoch, chats: HashMap::new(), known: HashMap::new(), events: Vec::new() };
        set.load_known(txn, frames).await?;
        set.load_chats(txn, frames).await?;
        set.load_points(txn, frames).await?;
        set.load_spans(txn, frames).await?;
        Ok(set)
    }

    async fn load_known(&mut self, txn: &Transaction<'_>, frames: &[Frame]) -> Result<(), Error> {
        let keys: HashSet<Key> = frames
            .iter()
            .filter_map(|frame| match &frame.command.request {
                Request::New(new) => {
                    Some((frame.command.from.clone(), new.client_message_id.clone()))
                }
                _ => None,
            })
            .collect();
        let keys: Vec<Key> = keys.into_iter().collect();
        self.known = txn.known(&keys).await?.into_iter().collect();
        Ok(())
    }

    async fn load_chats(&mut self, txn: &Transaction<'_>, frames: &[Frame]) -> Result<(), Error> {
        let all: HashSet<&Chat> = frames.iter().map(|frame| &frame.chat).collect();
        let all: Vec<Chat> = all.into_iter().cloned().collect();
        self.add_chats(txn, &all).await?;
        let opened: HashSet<&Chat> = frames
            .iter()
            .filter(|frame| match &frame.command.request {
                Request::New(new) => {
                    !frame.replay
                        && self.known(&frame.command.from, &new.client_message_id).is_none()
                }
                _ => false,
            })
            .map(|frame| &frame.chat)
            .filter(|chat| !self.chats.contains_key(*chat))
            .collect();
        let opened: Vec<Chat> = opened.into_iter().cloned().collect();
        txn.create_chats(&opened).await?;
        self.add_chats(txn, &opened).await
    }

    async fn add_chats(&mut self, txn: &Transaction<'_>, chats: &[Chat]) -> Result<(), Error> {
        for found in txn.chats(chats).await? {
            let entry = Entry {
                row: found.id,
                ledger: found.ledger,
                stored: found.ledger,
                points: HashMap::new(),
                counts: HashMap::new(),
                newest: HashMap::new(),
                pending: Vec::new(),
                erased: Vec::new(),
            };
            self.chats.insert(found.chat, entry);
        }
        Ok(())
    }

    async fn load_points(&mut self, txn: &Transaction<'_>, frames: &[Frame]) -> Result<(), Error> {
        let mut wanted = HashSet::new();
        for frame in frames {
            let Some(entry) = self.chats.get(&frame.chat) else { continue };
            let named = match &frame.command.request {
                Request::New(_) => continue,
                Request::Delete(delete) => Some(delete.message_id),
                Request::Dlvrd(mark) | Request::Read(mark) => {
                    wanted.insert((entry.row, entry.stored.member(frame.side.peer()).last_sent));
                    mark.message_id
                }
            };
            wanted.extend(named.map(|id| (entry.row, id.get())));
        }
        self.add_points(txn, wanted).await
    }

    async fn add_points(
        &mut self,
        txn: &Transaction<'_>,
        wanted: HashSet<(i64, i64)>,
    ) -> Result<(), Error> {
        let wanted: Vec<_> = wanted.into_iter().filter(|&(_, id)| id > 0).collect();
        let mut by_row: HashMap<i64, Vec<Point>> = HashMap::new();
        for point in txn.points(&wanted).await? {
            by_row.entry(point.chat_id).or_default().push(point);
        }
        for entry in self.chats.values_mut() {
            if let Some(points) = by_row.remove(&entry.row) {
                entry.points.extend(points.into_iter().map(|point| (point.message_id, point)));
            }
        }
        Ok(())
    }

    /// Marks set below the peer's last message need a look at the messages between; most marks don't.
    async fn load_spans(&mut self, txn: &Transaction<'_>, frames: &[Frame]) -> Result<(), Error> {
        let mut wanted: HashMap<SpanQuery, (Chat, bool)> = HashMap::new();
        for frame in frames {
            let (mark, is_read) = match &frame.command.request {
                Request::Read(mark) => (mark, true),
                Request::Dlvrd(mark) => (mark, false),
                _ => continue,
            };
            let (Some(entry), Some(id)) = (self.chats.get(&frame.chat), mark.message_id) else {
                continue;
            };
            let peer = frame.side.peer();
            let reader = entry.stored.member(frame.side);
            let after = if is_read { reader.read } else { reader.delivered };
            let is_peers =
                entry.points.get(&id.get()).is_some_and(|point| side(point.from_a) == peer);
            if id.get() <= after
                || id.get() >= entry.stored.member(peer).last_sent
                || (is_peers && !is_read)
            {
                continue;
            }
            let query =
                SpanQuery { chat_id: entry.row, from_a: peer == Side::A, after, up_to: id.get() };
            wanted.entry(query).or_insert_with(|| (frame.chat.clone(), false)).1 |= is_read;
        }
        let queries: Vec<SpanQuery> = wanted.keys().copied().collect();
        let mut unnamed = HashSet::new();
        for answer in txn.spans(&queries).await? {
            let Some((chat, is_read)) = wanted.get(&answer.query) else { continue };
            let Some(entry) = self.chats.get_mut(chat) else { continue };
            let at = (side(answer.query.from_a), answer.query.up_to);
            if *is_read {
                entry.counts.insert(at, answer.unread);
            }
            if let Some(newest) = answer.newest {
                let known = entry.newest.entry(at).or_insert(newest);
                *known = newest.max(*known);
                unnamed.insert((entry.row, newest));
            }
        }
        self.add_points(txn, unnamed).await
    }

    /// What is stored under a sender's key, this batch included.
    pub fn known(&self, sender: &UserId, key: &ClientMessageId) -> Option<Known> {
        self.known.get(&(sender.clone(), key.clone())).copied()
    }

    /// The chat, if it has a message.
    pub fn chat(&mut self, chat: &Chat) -> Option<&mut Entry> {
        self.chats.get_mut(chat).filter(|entry| entry.ledger.last > 0)
    }

    /// Stores a message and returns its id and the peer's `missed`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the frame's chat was not loaded.
    pub fn accept(&mut self, frame: &Frame, content: Content) -> Result<(MessageId, i64), Error> {
        let entry =
            self.chats.get_mut(&frame.chat).ok_or(Error::Corrupt("a new chat was not created"))?;
        let id = entry.ledger.accept(frame.side);
        let sender = frame.command.from.clone();
        let key = content.client_message_id;
        self.known.insert(
            (sender.clone(), key.clone()),
            Known { message_id: id, digest: content.digest },
        );
        entry.pending.push(NewMessage {
            chat_id: entry.row,
            message_id: id,
            from_a: frame.side == Side::A,
            sender,
            client_message_id: key,
            digest: content.digest,
            sent_at: frame.command.sent_at,
            stored_at: self.now,
            body: content.body,
            attachments: content.attachments,
            deleted: false,
        });
        let missed = entry.ledger.member(frame.side.peer()).missed;
        MessageId::new(id).map(|id| (id, missed)).ok_or(Error::Corrupt("chats.last"))
    }

    /// Notes an event for the sender's peer. A frame causes at most one.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the event can't be written as JSON.
    pub fn tell_peer(&mut self, frame: &Frame, body: EventBody) -> Result<(), Error> {
        let mut headers = async_nats::HeaderMap::new();
        herald_proto::telemetry::inject(&frame.span, &mut headers);
        let event = Outgoing {
            user: frame.chat.member(frame.side.peer()).clone(),
            id: format!("{:x}-{}-{}", self.epoch, frame.partition, frame.sequence),
            body: to_text(&Event::new(self.now, body))
                .map_err(|_| Error::Corrupt("an event is not JSON"))?,
            traceparent: headers.get(herald_proto::header::TRACEPARENT).map(ToString::to_string),
        };
        self.events.push((frame.partition, event));
        Ok(())
    }

    /// Writes what changed and returns the events, with their partitions, in order.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn save(self, txn: &Transaction<'_>) -> Result<Vec<(u16, Outgoing)>, Error> {
        let (mut messages, mut counters, mut erased) = (Vec::new(), Vec::new(), Vec::new());
        for entry in self.chats.into_values() {
            if entry.ledger != entry.stored {
                counters.push((entry.row, entry.ledger));
            }
            erased.extend(entry.erased.iter().map(|&(id, _)| (entry.row, id)));
            messages.extend(entry.pending);
        }
        // One order for every worker: rows locked in the same order can't deadlock.
        counters.sort_unstable_by_key(|&(row, _)| row);
        txn.insert_messages(&messages).await?;
        txn.update_chats(&counters, self.now).await?;
        txn.erase(&erased).await?;
        Ok(self.events)
    }
}

/// A message's content, ready to be stored.
pub struct Content {
    /// The sender's key.
    pub client_message_id: ClientMessageId,
    /// A hash of recipient and content.
    pub digest: i64,
    /// The text.
    pub body: Option<String>,
    /// The attachments, as JSON.
    pub attachments: Option<String>,
}
