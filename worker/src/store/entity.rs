//! The tables, one a file.

pub mod chat;
pub mod event_stream;
pub mod message;
pub mod partition;
