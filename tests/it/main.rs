//! End to end, on real parts: one file a promise.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

/// Makes a test of an `async fn(Backend) -> Result<()>` on each database.
macro_rules! on_both {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() -> anyhow::Result<()> {
                Box::pin(super::$name(herald_tests::Backend::Sqlite)).await
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() -> anyhow::Result<()> {
                Box::pin(super::$name(herald_tests::Backend::Postgres)).await
            }
        }
    )*};
}

mod catchup;
mod commit;
mod counts;
mod cycle;
mod deadletter;
mod delivery;
mod door;
mod drain;
mod errors;
mod faults;
mod garbage;
mod hostile;
mod k8s_manifests;
mod k8s_nats;
mod k8s_postgres;
mod k8s_roll;
mod load;
mod logs;
mod metrics;
mod observed;
mod overload;
mod presence;
mod publish;
mod replicas;
mod requests;
mod rewound;
mod sessions;
mod socket;
mod takeover;
mod topology;
mod trace;
