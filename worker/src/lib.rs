//! Herald's worker: takes clients' requests from `FRAMES`, applies them in database transactions, answers them, and
//! publishes events to users' logs.
//!
//! ```text
//! partition (reads in order) ─┐
//! partition                  ─┼─▶ settle ─▶ working_set ─▶ handler ─▶ unread (the rules, pure)
//! partition                  ─┘     │            └──────▶ store (PostgreSQL or SQLite)
//!                                   └─▶ publisher ─▶ replies,  events ─▶ EVENTS
//! ```
//! Replies and events go over a [`link`](herald_proto::link) of their own; all else goes over `async-nats`.

pub mod app;
pub mod chats;
pub mod config;
pub mod contacts;
pub mod deadletter;
pub mod error;
pub mod events;
pub mod failpoint;
pub mod frame;
pub mod handler;
pub mod health;
pub mod members;
pub mod metrics;
pub mod partition;
pub mod publisher;
pub mod settle;
pub mod spans;
pub mod store;
pub mod topology;
pub mod unread;
pub mod working_set;
