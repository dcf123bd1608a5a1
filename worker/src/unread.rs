//! The counting rules of one chat, pure: message ids without holes, marks that only move forward, `missed`.
//!
//! `missed` of a member is the number of the peer's messages that it has not read and that are not deleted.

use herald_proto::Side;

/// What one member has sent, received, read and missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Member {
    /// The id of the last message it sent; 0 for none.
    pub last_sent: i64,
    /// Everything up to this id was read; 0 for nothing.
    pub read: i64,
    /// Everything up to this id was received; never behind `read`.
    pub delivered: i64,
    /// The number of the peer's messages neither read nor deleted.
    pub missed: i64,
}

/// A chat's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ledger {
    /// The id of the chat's last message; 0 for none.
    pub last: i64,
    /// The member whose id sorts first.
    pub a: Member,
    /// The member whose id sorts last.
    pub b: Member,
}

/// The ids that a mark newly covers: above `after`, up to and including `up_to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The old mark.
    pub after: i64,
    /// The new mark.
    pub up_to: i64,
}

impl Ledger {
    /// A member's counters.
    pub fn member(&self, side: Side) -> &Member {
        match side {
            Side::A => &self.a,
            Side::B => &self.b,
        }
    }

    fn member_mut(&mut self, side: Side) -> &mut Member {
        match side {
            Side::A => &mut self.a,
            Side::B => &mut self.b,
        }
    }

    /// Takes a message and returns its id: the next one of the chat.
    pub fn accept(&mut self, sender: Side) -> i64 {
        self.last += 1;
        self.member_mut(sender).last_sent = self.last;
        self.member_mut(sender.peer()).missed += 1;
        self.last
    }

    /// Moves the received mark; `None` if it was there already.
    pub fn deliver(&mut self, reader: Side, up_to: i64) -> Option<Span> {
        let member = self.member_mut(reader);
        let span = Span { after: member.delivered, up_to };
        (span.up_to > span.after).then(|| {
            member.delivered = up_to;
            span
        })
    }

    /// Moves the read mark, and the received mark with it; `None` if it was there already.
    ///
    /// `unread` gives the number of the peer's undeleted messages in a span. It is asked only when messages of the
    /// peer remain beyond the new mark.
    pub fn read(
        &mut self,
        reader: Side,
        up_to: i64,
        unread: impl FnOnce(Span) -> i64,
    ) -> Option<Span> {
        let newest = self.member(reader.peer()).last_sent;
        let member = self.member_mut(reader);
        let span = Span { after: member.read, up_to };
        if span.up_to <= span.after {
            return None;
        }
        member.read = up_to;
        member.delivered = member.delivered.max(up_to);
        member.missed = if up_to >= newest { 0 } else { member.missed - unread(span) };
        Some(span)
    }

    /// Takes an undeleted message of `sender` back: one less is missed if the peer had not read it.
    pub fn delete(&mut self, sender: Side, message: i64) {
        let peer = self.member_mut(sender.peer());
        if message > peer.read {
            peer.missed -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same chat kept naively: every message with its sender and whether it is deleted.
    #[derive(Default)]
    struct Naive {
        messages: Vec<(Side, bool)>,
        read: [i64; 2],
    }

    fn index(side: Side) -> usize {
        usize::from(side == Side::B)
    }

    impl Naive {
        fn unread(&self, reader: Side, after: i64, up_to: i64) -> i64 {
            let count = (1_i64..).zip(&self.messages).filter(|(id, (sender, deleted))| {
                *sender == reader.peer() && !deleted && *id > after && *id <= up_to
            });
            i64::try_from(count.count()).unwrap()
        }

        fn missed(&self, reader: Side) -> i64 {
            self.unread(reader, self.read[index(reader)], i64::MAX)
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Accept(Side),
        Read(Side, usize),
        Deliver(Side, usize),
        Delete(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let side = prop_oneof![Just(Side::A), Just(Side::B)];
        prop_oneof![
            3 => side.clone().prop_map(Step::Accept),
            1 => (side.clone(), 0..40_usize).prop_map(|(s, n)| Step::Read(s, n)),
            1 => (side, 0..40_usize).prop_map(|(s, n)| Step::Deliver(s, n)),
            1 => (0..40_usize).prop_map(Step::Delete),
        ]
    }

    proptest! {
        #[test]
        fn missed_equals_a_naive_recount_and_marks_move_forward_only(steps in prop::collection::vec(step(), 0..120)) {
            let (mut ledger, mut naive) = (Ledger::default(), Naive::default());
            for step in steps {
                let before = ledger;
                let within = |n: usize, len: usize| i64::try_from(n.min(len)).unwrap();
                match step {
                    Step::Accept(side) => {
                        naive.messages.push((side, false));
                        prop_assert_eq!(ledger.accept(side), i64::try_from(naive.messages.len()).unwrap());
                    }
                    Step::Read(side, n) => {
                        let up_to = within(n, naive.messages.len());
                        ledger.read(side, up_to, |span| naive.unread(side, span.after, span.up_to));
                        naive.read[index(side)] = naive.read[index(side)].max(up_to);
                    }
                    Step::Deliver(side, n) => {
                        ledger.deliver(side, within(n, naive.messages.len()));
                    }
                    Step::Delete(n) => {
                        if let Some((sender, deleted)) = naive.messages.get_mut(n) && !*deleted {
                            *deleted = true;
                            let sender = *sender;
                            ledger.delete(sender, i64::try_from(n).unwrap() + 1);
                        }
                    }
                }
                for side in [Side::A, Side::B] {
                    prop_assert_eq!(ledger.member(side).missed, naive.missed(side));
                    prop_assert!(ledger.member(side).read >= before.member(side).read);
                    prop_assert!(ledger.member(side).delivered >= before.member(side).delivered);
                    prop_assert!(ledger.member(side).delivered >= ledger.member(side).read);
                }
            }
        }
    }
}
