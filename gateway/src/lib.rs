//! Herald's gateway: terminates WebSockets, authenticates, publishes clients' requests to `FRAMES`, returns answers,
//! delivers users' events and sends again what is not acked. It keeps nothing: a session can go on at any gateway.
//!
//! ```text
//! server ─▶ routes ─▶ auth
//!               └───▶ session (one task a connection) ─▶ state (the rules, pure) ─▶ feed ─▶ window
//!                        │    ▲      traces looks on and makes spans
//!                        │    └── inbox ◀── registry ◀── live taps, replies, sweep
//!                        └─▶ publisher ─▶ FRAMES,  log ─▶ EVENTS, CURSORS,  presence ─▶ SESSIONS, LEASES
//! ```
//! Registry and publisher share a [`link`](herald_proto::link), the [`tap`], and the log has one; all else goes over
//! `async-nats`.

pub mod admin;
pub mod app;
pub mod auth;
pub mod config;
pub mod contacts;
pub mod cursors;
pub mod door;
pub mod error;
pub mod gather;
pub mod inbox;
pub mod leases;
pub mod log;
pub mod metrics;
pub mod presence;
pub mod publisher;
pub mod registry;
pub mod routes;
pub mod server;
pub mod session;
pub mod spans;
pub mod tap;
pub mod turns;
pub mod waiting;
