//! The one vocabulary of Herald: what clients send, what travels over the broker, and how both are spelled.
//!
//! `gateway` and `worker` both depend on this crate and never on each other. Everything here is either pure
//! (ids, frames, payloads, subjects, errors) or the thin set-up that both programs share (broker connection,
//! topology, telemetry).

pub mod broker;
pub mod clock;
pub mod error;
pub mod frame;
pub mod header;
pub mod health;
pub mod id;
pub mod instance;
pub mod link;
pub mod metrics;
pub mod payload;
pub mod runtime;
pub mod signal;
pub mod subject;
pub mod telemetry;
pub mod topology;
pub mod wire;

pub use error::{CloseCode, Error, ErrorCode};
pub use id::{Chat, ClientMessageId, DeviceId, EventId, MessageId, RequestId, Side, UserId};
