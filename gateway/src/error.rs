//! What can go wrong in a gateway, and which close code tells a client.

use std::sync::Arc;

use async_nats::jetstream;
use herald_proto::{CloseCode, link};

/// Why the gateway failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker can't do what it was asked: `what`, and why not.
    #[error("{what}: {source}")]
    Broker {
        /// What was asked.
        what: &'static str,
        /// Why it failed.
        source: async_nats::Error,
    },
    /// A publish was not confirmed.
    #[error("publish: {0}")]
    Publish(#[from] jetstream::context::PublishError),
    /// The broker has not answered in time.
    #[error("{0}: no answer in time")]
    Silent(&'static str),
    /// What was asked of the broker over a link was not confirmed.
    #[error(transparent)]
    Link(#[from] link::Silent),
    /// What the broker holds is not what it must be.
    #[error("{0} is not readable")]
    Unreadable(&'static str),
    /// The client is not who it must be.
    #[error("not authenticated: {0}")]
    Unauthenticated(String),
    /// The gateway has as many sessions as it may.
    #[error("too many sessions")]
    Full,
    /// What was looked up for several at once could not be.
    #[error("{0}")]
    Shared(Arc<Self>),
}

impl Error {
    /// Names what the broker was asked.
    pub fn broker<E: Into<async_nats::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Broker { what, source: source.into() }
    }

    /// The close code that tells a client.
    pub fn close_code(&self) -> CloseCode {
        match self {
            Self::Unauthenticated(_) => CloseCode::Unauthenticated,
            Self::Broker { .. }
            | Self::Publish(_)
            | Self::Silent(_)
            | Self::Link(_)
            | Self::Unreadable(_)
            | Self::Full
            | Self::Shared(_) => CloseCode::TryAgainLater,
        }
    }
}
