//! A chat, replayed in the most naive way.

use crate::history::{Chat, Key, User, record::About};

/// A message as its events tell of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) sender: User,
    pub(super) key: Key,
    pub(super) is_deleted: bool,
}

/// What a member has read and missed, after some event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) read: u32,
    pub(super) missed: u32,
}

/// A member's marks, and all that its counts have been.
#[derive(Debug, Default)]
pub(super) struct Member {
    pub(super) read: u32,
    pub(super) delivered: u32,
    pub(super) steps: Vec<Step>,
}

/// A chat.
#[derive(Debug)]
pub(super) struct Replay {
    chat: Chat,
    /// By id, from 1 on; `None` is a hole, so far.
    messages: Vec<Option<Message>>,
    low: Member,
    high: Member,
}

/// What an event is to a chat that has got this far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// What had to come.
    Next,
    /// It comes after later ones.
    Late,
    /// Something lies between.
    Early,
    /// It was there already.
    Again,
    /// It is about a message that is not there, or another one.
    Wrong,
}

impl Replay {
    pub(super) fn new(chat: Chat) -> Self {
        Self { chat, messages: Vec::new(), low: Member::default(), high: Member::default() }
    }

    pub(super) fn member(&self, user: User) -> &Member {
        if user == self.chat.low { &self.low } else { &self.high }
    }

    fn member_mut(&mut self, user: User) -> &mut Member {
        if user == self.chat.low { &mut self.low } else { &mut self.high }
    }

    pub(super) fn message(&self, id: u32) -> Option<&Message> {
        self.messages.get(index(id)?)?.as_ref()
    }

    /// The ids that no message has.
    pub(super) fn holes(&self) -> impl Iterator<Item = u32> {
        (1..).zip(&self.messages).filter(|(_, message)| message.is_none()).map(|(id, _)| id)
    }

    /// The messages of `sender` above `after` that are not deleted, counted one by one.
    pub(super) fn recount(&self, sender: User, after: u32) -> u32 {
        let above = self.messages.iter().skip(usize::try_from(after).unwrap_or(usize::MAX));
        let unread = above.flatten().filter(|found| found.sender == sender && !found.is_deleted);
        u32::try_from(unread.count()).unwrap_or(u32::MAX)
    }

    /// A message of `sender`.
    pub(super) fn add(&mut self, sender: User, key: Key, id: u32) -> Fit {
        let Some(index) = index(id) else { return Fit::Wrong };
        let (len, message) = (self.messages.len(), Message { sender, key, is_deleted: false });
        let fit = match index.cmp(&len) {
            std::cmp::Ordering::Equal => Fit::Next,
            std::cmp::Ordering::Greater => Fit::Early,
            std::cmp::Ordering::Less => Fit::Late,
        };
        if index >= len {
            self.messages.resize(index + 1, None);
        }
        match self.messages.get_mut(index) {
            Some(Some(_)) => return Fit::Again,
            Some(slot) => *slot = Some(message),
            None => return Fit::Wrong,
        }
        self.note(self.chat.peer(sender));
        fit
    }

    /// `reader` has received up to the message.
    pub(super) fn deliver(&mut self, reader: User, about: About) -> Fit {
        if !self.is_about(self.chat.peer(reader), about) {
            return Fit::Wrong;
        }
        let member = self.member_mut(reader);
        if about.message <= member.delivered {
            return if about.message == member.delivered { Fit::Again } else { Fit::Late };
        }
        member.delivered = about.message;
        Fit::Next
    }

    /// `reader` has read up to the message.
    pub(super) fn read(&mut self, reader: User, about: About) -> Fit {
        if !self.is_about(self.chat.peer(reader), about) {
            return Fit::Wrong;
        }
        let member = self.member_mut(reader);
        if about.message <= member.read {
            return if about.message == member.read { Fit::Again } else { Fit::Late };
        }
        member.read = about.message;
        member.delivered = member.delivered.max(about.message);
        self.note(reader);
        Fit::Next
    }

    /// `sender` has taken the message back.
    pub(super) fn delete(&mut self, sender: User, about: About) -> Fit {
        let found = index(about.message).and_then(|index| self.messages.get_mut(index)?.as_mut());
        match found {
            Some(found) if (found.sender, found.key) == (sender, about.key) => {
                if std::mem::replace(&mut found.is_deleted, true) {
                    return Fit::Again;
                }
            }
            _ => return Fit::Wrong,
        }
        self.note(self.chat.peer(sender));
        Fit::Next
    }

    fn is_about(&self, sender: User, about: About) -> bool {
        let found = self.message(about.message);
        found.is_some_and(|found| (found.sender, found.key) == (sender, about.key))
    }

    fn note(&mut self, reader: User) {
        let read = self.member(reader).read;
        let missed = self.recount(self.chat.peer(reader), read);
        self.member_mut(reader).steps.push(Step { read, missed });
    }
}

fn index(id: u32) -> Option<usize> {
    usize::try_from(id.checked_sub(1)?).ok()
}
