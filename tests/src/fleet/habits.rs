//! What clients do beside writing, each by chance.

/// Chances, from 0 to 1.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    /// That a message that has come is reported as received.
    pub report: f64,
    /// That a chat is read up to a message that has come.
    pub read: f64,
    /// That a mark names no message: all so far.
    pub mark_all: f64,
    /// That an answered message is taken back.
    pub delete: f64,
    /// That an answered message is sent once more, under the same key.
    pub repeat: f64,
    /// That an event is only acked after later ones.
    pub hold: f64,
    /// That a client vanishes between an event and its ack.
    pub vanish: f64,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            report: 0.3,
            read: 0.1,
            mark_all: 0.1,
            delete: 0.02,
            repeat: 0.01,
            hold: 0.05,
            vanish: 0.002,
        }
    }
}
