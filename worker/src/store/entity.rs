//! The tables, one a file.

pub mod chat;
pub mod message;
pub mod partition;
