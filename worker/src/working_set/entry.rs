//! One chat of a batch: what is stored of it, and what the batch's frames make of it.

use foldhash::{HashMap, HashMapExt};
use herald_proto::{ClientMessageId, Side};

use crate::{
    chats::Remembered,
    store::{Error, NewMessage, Recent},
    unread::{Ledger, Span},
};

/// One chat of the batch.
pub struct Entry {
    pub(super) row: i64,
    /// The counters as they stand now.
    pub ledger: Ledger,
    /// The counters as they were stored.
    pub(super) stored: Ledger,
    /// The last stored messages, oldest first.
    recent: Vec<Recent>,
    /// Older stored messages that frames refer to, by id.
    pub(super) points: HashMap<i64, Recent>,
    /// How many undeleted messages of that side there were from the reader's stored mark up to that id.
    pub(super) counts: HashMap<(Side, i64), i64>,
    /// The last message of that side up to that id, where one lies beyond the stored mark.
    pub(super) newest: HashMap<(Side, i64), i64>,
    /// Messages of this batch.
    pub(super) pending: Vec<NewMessage>,
    /// Stored messages that this batch deletes, with their senders.
    pub(super) erased: Vec<(i64, Side)>,
}

/// A message that a frame refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Who sent it.
    pub from: Side,
    /// Its key.
    pub key: ClientMessageId,
    /// Whether it is deleted.
    pub deleted: bool,
}

pub(super) fn side(from_a: bool) -> Side {
    if from_a { Side::A } else { Side::B }
}

/// How many of a chat's last messages are remembered.
const RECENT: usize = 8;

impl Entry {
    /// A chat as it is stored.
    pub(super) fn new(remembered: Remembered) -> Self {
        let Remembered { row, ledger, recent } = remembered;
        Self {
            row,
            ledger,
            stored: ledger,
            recent,
            points: HashMap::new(),
            counts: HashMap::new(),
            newest: HashMap::new(),
            pending: Vec::new(),
            erased: Vec::new(),
        }
    }

    /// The chat as it is stored once the batch is committed, and the messages to be stored.
    pub(super) fn finish(self) -> (Remembered, Vec<NewMessage>) {
        let Self { row, ledger, mut recent, pending, erased, .. } = self;
        for message in &mut recent {
            message.deleted |= erased.iter().any(|&(id, _)| id == message.message_id);
        }
        recent.extend(pending.iter().rev().take(RECENT).rev().map(|message| Recent {
            message_id: message.message_id,
            from_a: message.from_a,
            client_message_id: message.client_message_id.clone(),
            digest: message.digest,
            deleted: message.deleted,
        }));
        recent.drain(..recent.len().saturating_sub(RECENT));
        (Remembered { row, ledger, recent }, pending)
    }

    /// A stored message, if it was looked up or is remembered.
    pub(super) fn known(&self, id: i64) -> Option<&Recent> {
        self.recent
            .iter()
            .rev()
            .find(|message| message.message_id == id)
            .or_else(|| self.points.get(&id))
    }

    /// A remembered message with that sender's key.
    pub(super) fn with_key(&self, from: Side, key: &ClientMessageId) -> Option<&Recent> {
        let is_it =
            |message: &&Recent| side(message.from_a) == from && message.client_message_id == *key;
        self.recent.iter().rev().find(is_it)
    }

    /// A message of this chat.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it exists and was not loaded.
    pub fn message(&self, id: i64) -> Result<Option<Found>, Error> {
        if id < 1 || id > self.ledger.last {
            return Ok(None);
        }
        if let Some(pending) = self.pending.iter().find(|message| message.message_id == id) {
            let key = pending.client_message_id.clone();
            return Ok(Some(Found { from: side(pending.from_a), key, deleted: pending.deleted }));
        }
        let known = self.known(id).ok_or(Error::Corrupt("a message is missing"))?;
        let deleted = known.deleted || self.erased.iter().any(|&(erased, _)| erased == id);
        let key = known.client_message_id.clone();
        Ok(Some(Found { from: side(known.from_a), key, deleted }))
    }

    /// The last message of `from` up to and including `up_to`, if it lies above `after`.
    pub fn newest(&self, from: Side, span: Span) -> Option<i64> {
        let stored = self.stored.member(from).last_sent;
        let pending = || {
            let of_side = |message: &&NewMessage| {
                side(message.from_a) == from && message.message_id <= span.up_to
            };
            self.pending.iter().rev().find(of_side).map(|message| message.message_id)
        };
        let is_peers = |id: i64| self.known(id).is_some_and(|known| side(known.from_a) == from);
        let newest = if span.up_to >= stored {
            pending().unwrap_or(stored)
        } else if is_peers(span.up_to) {
            span.up_to
        } else {
            self.newest.get(&(from, span.up_to)).copied().unwrap_or(0)
        };
        (newest > span.after).then_some(newest)
    }

    /// Moves the read mark of `reader`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the messages in between were not counted beforehand.
    pub fn read(&mut self, reader: Side, up_to: i64) -> Result<Option<Span>, Error> {
        let span = Span { after: self.ledger.member(reader).read, up_to };
        let unread = if up_to > span.after && up_to < self.ledger.member(reader.peer()).last_sent {
            self.unread(reader, span)?
        } else {
            0
        };
        Ok(self.ledger.read(reader, up_to, |_| unread))
    }

    /// How many undeleted messages of `reader`'s peer a span holds: the stored ones as counted beforehand, corrected
    /// by what this batch has deleted and added.
    fn unread(&self, reader: Side, span: Span) -> Result<i64, Error> {
        let peer = reader.peer();
        let stored =
            self.stored_unread(reader, span.up_to)? - self.stored_unread(reader, span.after)?;
        let within = |id: i64| id > span.after && id <= span.up_to;
        let erased = self.erased.iter().filter(|&&(id, from)| from == peer && within(id)).count();
        let added = self
            .pending
            .iter()
            .filter(|message| {
                side(message.from_a) == peer && !message.deleted && within(message.message_id)
            })
            .count();
        let number = |count: usize| i64::try_from(count).map_err(|_| Error::Corrupt("a count"));
        Ok(stored - number(erased)? + number(added)?)
    }

    /// How many of the stored unread messages of `reader`'s peer have an id up to `up_to`.
    fn stored_unread(&self, reader: Side, up_to: i64) -> Result<i64, Error> {
        let (peer, member) = (reader.peer(), self.stored.member(reader));
        if up_to <= member.read {
            Ok(0)
        } else if up_to >= self.stored.member(peer).last_sent {
            Ok(member.missed)
        } else {
            self.counts.get(&(peer, up_to)).copied().ok_or(Error::Corrupt("a span was not counted"))
        }
    }

    /// Deletes an undeleted message of `sender`.
    pub fn delete(&mut self, sender: Side, id: i64) {
        self.ledger.delete(sender, id);
        if let Some(pending) = self.pending.iter_mut().find(|message| message.message_id == id) {
            pending.deleted = true;
            pending.body = None;
            pending.attachments = None;
        } else {
            self.erased.push((id, sender));
        }
    }
}
