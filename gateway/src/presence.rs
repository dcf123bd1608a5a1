//! Who is online, told to those who share a chat.
//!
//! A user is online while the bucket `SESSIONS` has a key `<user>.<gateway>`: each gateway writes and removes its own,
//! and the revisions decide who tells the contacts, so each change is told once. A gateway keeps one lease in `LEASES`;
//! when that runs out, any other gateway removes the dead one's keys in its stead.
//!
//! Sessions only count; a task compares what is with what was announced, and tries again until both agree.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use herald_proto::UserId;
use tokio::sync::Notify;

pub mod announcer;
pub mod marks;

pub use announcer::Announcer;
pub use marks::Marks;

/// Where sessions tell that they come and go. Clones share it.
#[derive(Clone)]
pub struct Presence {
    users: Arc<Mutex<Users>>,
    changed: Arc<Notify>,
    grace: Duration,
}

#[derive(Default)]
struct Users {
    local: HashMap<UserId, Local>,
    /// Whose announcement may have to change now.
    changed: HashSet<UserId>,
    /// Who may have to be withdrawn later, and when: the first to leave first. All can be in here at once, so nobody is
    /// looked at before. Who has come back meanwhile is found out then.
    leaving: VecDeque<(Instant, UserId)>,
}

#[derive(Default)]
struct Local {
    sessions: usize,
    /// The user's key, while it is announced as online.
    announced: Option<Announced>,
    /// Whether someone may have withdrawn it since.
    doubtful: bool,
    /// When the user counts as offline.
    leaves_at: Option<Instant>,
}

/// A user's key, as this gateway has written it.
#[derive(Clone, Copy)]
struct Announced {
    revision: u64,
    /// Whether the user had no other key then that stood.
    is_alone: bool,
}

/// What has to be done about a user.
enum Due {
    Announce,
    Confirm(u64),
    Withdraw(Announced),
    Forget,
    Nothing,
}

impl Presence {
    /// Nobody is here yet.
    pub fn new(grace: Duration) -> Self {
        Self { users: Arc::default(), changed: Arc::default(), grace }
    }

    fn users(&self) -> MutexGuard<'_, Users> {
        // Every change is a few assignments: whole, whoever panicked while holding the lock.
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many users are announced as online.
    pub fn announced_users(&self) -> usize {
        self.users().local.values().filter(|local| local.announced.is_some()).count()
    }

    /// A session of the user has opened.
    pub fn opened(&self, user: &UserId) {
        let mut users = self.users();
        let local = users.local.entry(user.clone()).or_default();
        local.sessions += 1;
        local.leaves_at = None;
        if local.announced.is_none() {
            users.changed.insert(user.clone());
            self.changed.notify_one();
        }
    }

    /// A session of the user was lost: if it was the last, the user is offline after the grace.
    pub fn lost(&self, user: &UserId) {
        self.closed(user, self.grace);
    }

    /// The user says in one of its sessions that it goes offline: if it was the last, that is so at once.
    pub fn said_offline(&self, user: &UserId) {
        self.closed(user, Duration::ZERO);
    }

    fn closed(&self, user: &UserId, grace: Duration) {
        let mut users = self.users();
        let Some(local) = users.local.get_mut(user) else { return };
        local.sessions = local.sessions.saturating_sub(1);
        if local.sessions > 0 {
            return;
        }
        let leaves_at = Instant::now() + grace;
        local.leaves_at = Some(leaves_at);
        if local.announced.is_none() || grace.is_zero() {
            users.changed.insert(user.clone());
            self.changed.notify_one();
        }
        if !grace.is_zero() {
            // One grace for all: who comes later leaves later.
            users.leaving.push_back((leaves_at, user.clone()));
        }
    }

    fn due(&self, user: &UserId) -> Due {
        let mut users = self.users();
        let Some(local) = users.local.get_mut(user) else { return Due::Nothing };
        match (local.sessions, local.announced) {
            (1.., None) => Due::Announce,
            (1.., Some(own)) if local.doubtful => Due::Confirm(own.revision),
            (0, None) => Due::Forget,
            (0, Some(own)) if local.leaves_at.is_some_and(|at| at <= Instant::now()) => {
                Due::Withdraw(own)
            }
            _ => Due::Nothing,
        }
    }

    /// Those whose announcement may have to change now.
    fn take_changed(&self) -> Vec<UserId> {
        let mut users = self.users();
        let now = Instant::now();
        let Users { local, changed, leaving } = &mut *users;
        let is_due = |user: &UserId| {
            local.get(user).and_then(|local| local.leaves_at).is_some_and(|at| at <= now)
        };
        while let Some((_, user)) = leaving.pop_front_if(|(at, _)| *at <= now) {
            if is_due(&user) {
                changed.insert(user);
            }
        }
        changed.drain().collect()
    }

    fn announced(&self, user: &UserId, announced: Option<Announced>) {
        let mut users = self.users();
        if let Some(local) = users.local.get_mut(user) {
            (local.announced, local.doubtful) = (announced, false);
            if (local.sessions > 0) != announced.is_some() {
                users.changed.insert(user.clone());
            }
        }
    }

    fn again(&self, user: UserId) {
        self.users().changed.insert(user);
    }

    fn forget(&self, user: &UserId) {
        let mut users = self.users();
        if users
            .local
            .get(user)
            .is_some_and(|local| local.sessions == 0 && local.announced.is_none())
        {
            users.local.remove(user);
        }
    }

    /// Every announcement has to be looked at again: peers may have taken this gateway for dead.
    fn doubt_all(&self) {
        let mut users = self.users();
        for local in users.local.values_mut() {
            local.doubtful = true;
        }
        let all: Vec<UserId> = users.local.keys().cloned().collect();
        users.changed.extend(all);
    }
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;

    const KEY: Announced = Announced { revision: 1, is_alone: true };

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    fn online(presence: &Presence, user: &UserId) {
        presence.opened(user);
        assert_eq!(presence.take_changed(), slice::from_ref(user));
        presence.announced(user, Some(KEY));
    }

    #[test]
    fn nobody_is_looked_at_while_its_grace_lasts_and_whoever_comes_back_in_it_never_was_away() {
        let (presence, user) = (Presence::new(Duration::from_secs(3600)), user("a"));
        online(&presence, &user);
        presence.lost(&user);
        assert_eq!(presence.take_changed(), []);
        presence.opened(&user);
        assert_eq!(presence.take_changed(), []);
        assert!(matches!(presence.due(&user), Due::Nothing));
    }

    #[test]
    fn who_has_not_come_back_within_its_grace_is_withdrawn() {
        let (presence, gone, back) = (Presence::new(Duration::from_nanos(1)), user("a"), user("b"));
        online(&presence, &gone);
        online(&presence, &back);
        presence.lost(&gone);
        presence.lost(&back);
        presence.opened(&back);
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(presence.take_changed(), slice::from_ref(&gone));
        assert!(matches!(presence.due(&gone), Due::Withdraw(_)));
        assert_eq!(presence.take_changed(), []);
    }

    #[test]
    fn who_leaves_while_it_is_announced_is_withdrawn_after_its_grace_too() {
        let (presence, user) = (Presence::new(Duration::from_nanos(1)), user("a"));
        presence.opened(&user);
        assert_eq!(presence.take_changed(), slice::from_ref(&user));
        presence.lost(&user);
        presence.announced(&user, Some(KEY));
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(presence.take_changed(), slice::from_ref(&user));
        assert!(matches!(presence.due(&user), Due::Withdraw(_)));
    }

    #[test]
    fn who_says_that_it_goes_offline_has_no_grace() {
        let (presence, user) = (Presence::new(Duration::from_secs(3600)), user("a"));
        online(&presence, &user);
        presence.said_offline(&user);
        assert_eq!(presence.take_changed(), slice::from_ref(&user));
        assert!(matches!(presence.due(&user), Due::Withdraw(_)));
    }
}
