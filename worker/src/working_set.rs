//! What one batch works on: everything its frames need is remembered or looked up, changed in memory frame by frame, and
//! written in one go.

use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};
use herald_proto::{
    Chat, ClientMessageId, MessageId, Side, UserId,
    frame::{Event, EventBody, Request},
    metrics::RequestKind,
};
use serde_json::value::to_raw_value;

use crate::{
    chats::Remembered,
    frame::{Frame, Outgoing},
    store::{Changes, Error, Known, NewMessage, Recent, SpanQuery, Store},
};

mod entry;

use entry::side;
pub use entry::{Entry, Found};

type Key = (UserId, ClientMessageId);

/// The state that a batch's frames read and change.
pub struct WorkingSet {
    /// The service's clock, in milliseconds since the Unix epoch: the same for the whole batch.
    pub now: i64,
    chats: HashMap<Chat, Entry>,
    known: HashMap<Key, Known>,
    events: Vec<(u16, Outgoing)>,
    told: Vec<RequestKind>,
    has_looked_up: bool,
}

/// What a batch has come to.
pub struct Outcome {
    /// What is to be written; the partitions' moves are left to be filled in.
    pub changes: Changes,
    /// The events, with their partitions, in order.
    pub events: Vec<(u16, Outgoing)>,
    /// The kinds of the requests behind them.
    pub told: Vec<RequestKind>,
    /// The chats, as they are stored once it is written.
    pub chats: Vec<(Chat, Remembered)>,
}

impl WorkingSet {
    /// Looks up what the frames need and `remembered` lacks. Chats that a `new` opens are created.
    ///
    /// Whether a message's key is in use is looked up only if the batch is a repeat (`is_repeat`). Otherwise the
    /// database would refuse the commit, and the batch is tried again as one.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn load(
        store: &Store,
        frames: &[Frame],
        remembered: Vec<(Chat, Remembered)>,
        is_repeat: bool,
        now: i64,
    ) -> Result<Self, Error> {
        let chats = remembered.into_iter().map(|(chat, known)| (chat, Entry::new(known))).collect();
        let mut set = Self {
            now,
            chats,
            known: HashMap::new(),
            events: vec![],
            told: vec![],
            has_looked_up: is_repeat,
        };
        if is_repeat {
            set.load_known(store, frames).await?;
        }
        set.load_chats(store, frames).await?;
        set.load_points(store, frames).await?;
        set.load_spans(store, frames).await?;
        Ok(set)
    }

    /// Whether the database was asked for something.
    pub fn has_looked_up(&self) -> bool {
        self.has_looked_up
    }

    async fn load_known(&mut self, store: &Store, frames: &[Frame]) -> Result<(), Error> {
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
        self.known = store.known(&keys).await?.into_iter().collect();
        Ok(())
    }

    async fn load_chats(&mut self, store: &Store, frames: &[Frame]) -> Result<(), Error> {
        let missing: HashSet<&Chat> = frames
            .iter()
            .map(|frame| &frame.chat)
            .filter(|chat| !self.chats.contains_key(*chat))
            .collect();
        let missing: Vec<Chat> = missing.into_iter().cloned().collect();
        self.add_chats(store, &missing).await?;
        let opened: HashSet<&Chat> = frames
            .iter()
            .filter(|frame| match &frame.command.request {
                Request::New(new) => {
                    !frame.replay && self.known(frame, &new.client_message_id).is_none()
                }
                _ => false,
            })
            .map(|frame| &frame.chat)
            .filter(|chat| !self.chats.contains_key(*chat))
            .collect();
        let opened: Vec<Chat> = opened.into_iter().cloned().collect();
        store.create_chats(&opened).await?;
        self.add_chats(store, &opened).await
    }

    async fn add_chats(&mut self, store: &Store, chats: &[Chat]) -> Result<(), Error> {
        self.has_looked_up |= !chats.is_empty();
        for found in store.chats(chats).await? {
            let known = Remembered { row: found.id, ledger: found.ledger, recent: Vec::new() };
            self.chats.insert(found.chat, Entry::new(known));
        }
        Ok(())
    }

    async fn load_points(&mut self, store: &Store, frames: &[Frame]) -> Result<(), Error> {
        let mut wanted = HashSet::new();
        for frame in frames {
            let Some(entry) = self.chats.get(&frame.chat) else { continue };
            let named = match &frame.command.request {
                Request::New(_) => continue,
                Request::Delete(delete) => [Some(delete.message_id.get()), None],
                Request::Dlvrd(mark) | Request::Read(mark) => [
                    Some(entry.stored.member(frame.side.peer()).last_sent),
                    mark.message_id.map(MessageId::get),
                ],
            };
            let unknown = named.into_iter().flatten().filter(|id| entry.known(*id).is_none());
            wanted.extend(unknown.map(|id| (entry.row, id)));
        }
        self.add_points(store, wanted).await
    }

    async fn add_points(
        &mut self,
        store: &Store,
        wanted: HashSet<(i64, i64)>,
    ) -> Result<(), Error> {
        let wanted: Vec<_> = wanted.into_iter().filter(|&(_, id)| id > 0).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        self.has_looked_up = true;
        let mut by_row: HashMap<i64, Vec<Recent>> = HashMap::new();
        for point in store.points(&wanted).await? {
            by_row.entry(point.chat_id).or_default().push(point.try_into()?);
        }
        for entry in self.chats.values_mut() {
            if let Some(points) = by_row.remove(&entry.row) {
                entry.points.extend(points.into_iter().map(|point| (point.message_id, point)));
            }
        }
        Ok(())
    }

    /// Marks set below the peer's last message need a look at the messages between; most marks don't.
    async fn load_spans(&mut self, store: &Store, frames: &[Frame]) -> Result<(), Error> {
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
            let is_peers = entry.known(id.get()).is_some_and(|known| side(known.from_a) == peer);
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
        for answer in store.spans(&queries).await? {
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
        self.add_points(store, unnamed).await
    }

    /// What is stored under a sender's key, this batch included, as far as it was looked up or is remembered.
    pub fn known(&self, frame: &Frame, key: &ClientMessageId) -> Option<Known> {
        let looked_up = self.known.get(&(frame.command.from.clone(), key.clone())).copied();
        looked_up.or_else(|| {
            let recent = self.chats.get(&frame.chat)?.with_key(frame.side, key)?;
            Some(Known { message_id: recent.message_id, digest: recent.digest })
        })
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
        let event = Outgoing {
            user: frame.chat.member(frame.side.peer()).clone(),
            id: frame.event_id(),
            body: to_raw_value(&Event::new(self.now, body))
                .map_err(|_| Error::Corrupt("an event is not JSON"))?,
            traceparent: frame.command.traceparent,
            cause: frame.span.traceparent(),
        };
        self.events.push((frame.partition, event));
        self.told.push((&frame.command.request).into());
        Ok(())
    }

    /// What the frames have come to.
    pub fn finish(self) -> Outcome {
        let mut changes = Changes { now: self.now, ..Changes::default() };
        let mut chats = Vec::with_capacity(self.chats.len());
        for (chat, entry) in self.chats {
            if entry.ledger != entry.stored {
                changes.counters.push((entry.row, entry.ledger));
            }
            changes.erased.extend(entry.erased.iter().map(|&(id, _)| (entry.row, id)));
            let (remembered, messages) = entry.finish();
            changes.messages.extend(messages);
            chats.push((chat, remembered));
        }
        // One order for every worker: rows locked in the same order can't deadlock.
        changes.counters.sort_unstable_by_key(|&(row, _)| row);
        Outcome { changes, events: self.events, told: self.told, chats }
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
