//! What can go wrong in a worker, and what it means for the work at hand.

use async_nats::jetstream;
use herald_proto::{link, topology::Topology};

use crate::store;

/// Why the worker failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database failed, or refused.
    #[error("database: {0}")]
    Store(#[from] store::Error),
    /// A publish was not confirmed.
    #[error("publish: {0}")]
    Publish(#[from] jetstream::context::PublishError),
    /// A subject or payload that the broker client refuses to send.
    #[error("send: {0}")]
    Send(#[from] async_nats::PublishError),
    /// What was asked of the broker over a link was not confirmed.
    #[error(transparent)]
    Link(#[from] link::Silent),
    /// Anything else the broker can't do: `what` it was asked, and why not.
    #[error("{what}: {source}")]
    Broker {
        /// What was asked.
        what: &'static str,
        /// Why it failed.
        source: async_nats::Error,
    },
    /// The flags disagree with the topology that the first worker wrote.
    #[error(
        "--partitions and --event-streams ask for {asked}, but the service runs with {found}: leave them out, or change \
         the topology first (herald-worker topology plan)"
    )]
    Topology {
        /// What the flags say.
        asked: Topology,
        /// What the service runs with.
        found: Topology,
    },
    /// A frame or event is not what it must be.
    #[error("{0} is not readable: {1}")]
    Unreadable(&'static str, serde_json::Error),
    /// The worker is stopping.
    #[error("the worker is stopping")]
    Stopping,
}

impl Error {
    /// Names what the broker was asked.
    pub fn broker<E: Into<async_nats::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Broker { what, source: source.into() }
    }

    /// Whether trying the same again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store(error) => error.is_transient(),
            Self::Publish(_) | Self::Send(_) | Self::Link(_) | Self::Broker { .. } => true,
            Self::Topology { .. } | Self::Unreadable(..) | Self::Stopping => false,
        }
    }
}
