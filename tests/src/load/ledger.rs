//! The accounting of one pair, pure: every message the sender has sent, what became of it, and what was wrong.
//!
//! Messages go one way, under the keys 1, 2, 3 …, in a chat that nobody else writes to and that nobody reads: so message
//! ids must count up without holes, and `missed` must be the message id.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Instant,
};

use super::{
    arrivals::{Arrivals, Place},
    faults::Faults,
};

/// A `new` event as the recipient gets it.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// The key the sender gave the message.
    pub key: u64,
    /// Its number in the chat.
    pub message_id: u64,
    /// How many the recipient has not read.
    pub missed: Option<u64>,
    /// Whether the text is the one sent.
    pub intact: bool,
}

#[derive(Debug)]
struct Message {
    sent_at: Instant,
    message_id: Option<u64>,
    answered: bool,
    arrived: bool,
    received: bool,
}

/// One pair's messages.
#[derive(Debug)]
pub struct Ledger {
    wants_receipts: bool,
    last_key: u64,
    open: HashMap<u64, Message>,
    /// The key of each message whose receipt is still to come, by message id.
    unreceived: BTreeMap<u64, u64>,
    /// Refused, and not known to be stored all the same.
    refused: HashSet<u64>,
    at_sender: Arrivals,
    at_recipient: Arrivals,
    last_arrived: u64,
    last_received: u64,
    arrivals: u64,
    completed: u64,
    /// Acks and reports that were sent, less those that were answered.
    owed: i64,
    faults: Faults,
}

impl Ledger {
    /// An empty ledger; a message is complete with its receipt if `wants_receipts`, else with answer and event.
    pub fn new(wants_receipts: bool) -> Self {
        Self {
            wants_receipts,
            last_key: 0,
            open: HashMap::new(),
            unreceived: BTreeMap::new(),
            refused: HashSet::new(),
            at_sender: Arrivals::default(),
            at_recipient: Arrivals::default(),
            last_arrived: 0,
            last_received: 0,
            arrivals: 0,
            completed: 0,
            owed: 0,
            faults: Faults::default(),
        }
    }

    /// The ledger of a chat in which the sender has written that many messages before.
    #[must_use]
    pub fn after(self, messages: u64) -> Self {
        Self { last_arrived: messages, last_received: messages, ..self }
    }

    /// How many messages are not complete.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Whether nothing is on its way: all messages are complete, all acks and reports answered.
    pub fn is_settled(&self) -> bool {
        self.open.is_empty() && self.owed == 0
    }

    /// An ack or a report is being sent.
    pub fn asked(&mut self) {
        self.owed += 1;
    }

    /// An ack or a report was answered.
    pub fn replied(&mut self) {
        self.owed -= 1;
    }

    /// How many messages have become complete since this was last asked.
    pub fn take_completed(&mut self) -> u64 {
        std::mem::take(&mut self.completed)
    }

    /// A message is being sent; returns its key.
    pub fn sent(&mut self, at: Instant) -> u64 {
        self.last_key += 1;
        let message = Message {
            sent_at: at,
            message_id: None,
            answered: false,
            arrived: false,
            received: false,
        };
        self.open.insert(self.last_key, message);
        self.last_key
    }

    /// A message was answered with its id; returns when it was sent.
    pub fn answered(&mut self, key: u64, message_id: u64) -> Option<Instant> {
        let Some(message) = self.open.get_mut(&key).filter(|message| !message.answered) else {
            self.faults.stray_responses += 1;
            return None;
        };
        message.answered = true;
        let sent_at = message.sent_at;
        self.identify(key, message_id);
        self.finish(key);
        Some(sent_at)
    }

    /// A message was answered with an error. It may be stored all the same, if the error was `unavailable`.
    pub fn refused(&mut self, key: u64) {
        match self.open.get(&key) {
            Some(message) if !message.answered => self.forget(key),
            _ => self.faults.stray_responses += 1,
        }
    }

    /// A `new` event has come to the recipient. `None` if it came before; else when its message was sent, if that is
    /// still of interest.
    pub fn arrived(&mut self, place: Place, arrival: Arrival) -> Option<Option<Instant>> {
        if !self.at_recipient.take(place, &mut self.faults) {
            return None;
        }
        self.arrivals += 1;
        let Arrival { key, message_id, missed, intact } = arrival;
        self.faults.altered += u64::from(!intact);
        self.faults.wrong_counts += u64::from(missed != Some(message_id));
        self.faults.disordered_messages += u64::from(message_id != self.last_arrived + 1);
        self.last_arrived = self.last_arrived.max(message_id);
        if self.refused.remove(&key) {
            self.faults.refused_but_stored += 1;
            return Some(None);
        }
        match self.open.get_mut(&key) {
            Some(message) if !message.arrived => {
                message.arrived = true;
                let sent_at = message.sent_at;
                self.identify(key, message_id);
                self.finish(key);
                Some(Some(sent_at))
            }
            _ => {
                self.faults.duplicate_messages += 1;
                Some(None)
            }
        }
    }

    /// The recipient's `dlvrd` was answered with an error: no receipt has to come.
    pub fn report_refused(&mut self, message_id: u64) {
        let Some(key) = self.unreceived.remove(&message_id) else { return };
        match self.open.get_mut(&key) {
            // Its own answer is still to come, and then it is done.
            Some(message) if !message.answered => message.received = true,
            _ => self.forget(key),
        }
    }

    /// A `dlvrd` event has come to the sender, up to and including that message, whose key it names. Calls `each` with
    /// when each message was sent that it is the receipt of.
    pub fn received(&mut self, place: Place, up_to: u64, key: u64, mut each: impl FnMut(Instant)) {
        if !self.at_sender.take(place, &mut self.faults) {
            return;
        }
        if up_to <= self.last_received {
            self.faults.duplicate_receipts += 1;
            return;
        }
        self.last_received = up_to;
        if self.unreceived.get(&up_to).is_some_and(|known| *known != key) {
            self.faults.mismatches += 1;
        }
        while let Some(first) = self.unreceived.first_entry()
            && *first.key() <= up_to
        {
            let key = first.remove();
            if let Some(message) = self.open.get_mut(&key) {
                message.received = true;
                each(message.sent_at);
                self.finish(key);
            }
        }
    }

    /// How many messages have come to the recipient.
    pub fn arrivals(&self) -> u64 {
        self.arrivals
    }

    /// An event of another kind has come to the sender, which nothing explains.
    pub fn odd_event(&mut self, place: Place) {
        self.at_sender.take(place, &mut self.faults);
        self.faults.odd_frames += 1;
    }

    /// The end: what is still open is lost. Returns all that was wrong.
    pub fn close(mut self) -> Faults {
        self.faults.unanswered += u64::try_from(self.owed).unwrap_or(0);
        self.faults.stray_responses += u64::try_from(-self.owed).unwrap_or(0);
        for message in self.open.values() {
            let fault = match message {
                Message { answered: false, .. } => &mut self.faults.unanswered,
                Message { arrived: false, .. } => &mut self.faults.lost_events,
                _ => &mut self.faults.lost_receipts,
            };
            *fault += 1;
        }
        self.faults
    }

    /// Response and event must name the same id.
    fn identify(&mut self, key: u64, message_id: u64) {
        let Some(message) = self.open.get_mut(&key) else { return };
        match message.message_id {
            Some(known) => self.faults.mismatches += u64::from(known != message_id),
            None => {
                message.message_id = Some(message_id);
                if self.wants_receipts {
                    self.unreceived.insert(message_id, key);
                }
            }
        }
    }

    fn finish(&mut self, key: u64) {
        let wants_receipts = self.wants_receipts;
        let is_complete = |message: &Message| {
            message.answered && message.arrived && (message.received || !wants_receipts)
        };
        if self.open.get(&key).is_some_and(is_complete) {
            self.open.remove(&key);
            self.completed += 1;
        }
    }

    fn forget(&mut self, key: u64) {
        if let Some(message) = self.open.remove(&key) {
            self.faults.refused += 1;
            if let Some(message_id) = message.message_id {
                self.unreceived.remove(&message_id);
            }
            if !message.arrived {
                self.refused.insert(key);
            }
        }
    }
}

#[cfg(test)]
mod tests;
