//! The harness: the real parts that Herald's tests and programs run on, and a plain client for its protocol.
//!
//! Nothing here is mocked: [`Broker`] is a real `nats-server`, [`Database`] a real PostgreSQL or SQLite, and
//! [`Process`] a real child that a fault test ends with SIGKILL. Whatever is started here is ended and swept away
//! with the value that stands for it, and also if this process dies without a word.

pub mod allocations;
pub mod broker;
pub mod browser;
pub mod chaos;
pub mod child;
pub mod client;
pub mod cluster;
pub mod consumers;
pub mod database;
pub mod eventually;
pub mod fleet;
pub mod history;
pub mod hot;
pub mod http;
pub mod load;
pub mod manifests;
pub mod observe;
pub mod otlp;
pub mod owner;
pub mod pair;
pub mod port;
pub mod postgres;
pub mod process;
pub mod program;
pub mod proxy;
pub mod rollout;
pub mod scrape;
pub mod site;
pub mod supervise;
pub mod tools;
pub mod tree;
pub mod waterfall;

pub use broker::{Broker, deployed::Deployed};
pub use child::Child;
pub use client::Client;
pub use cluster::{Cluster, Options};
pub use database::{Backend, Database};
pub use eventually::eventually;
pub use pair::{Gateways, Pair};
pub use postgres::PostgresServer;
pub use process::{Process, Program};
pub use program::Binaries;
pub use scrape::Scrape;
