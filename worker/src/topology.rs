//! Creates what the service needs on the broker: streams, consumers, buckets, and the topology that all must agree on.

use std::time::Duration;

use async_nats::jetstream::{
    Context,
    consumer::{AckPolicy, PriorityPolicy, pull},
    kv,
    stream::{self, DiscardPolicy, Republish, RetentionPolicy, StorageType},
};
use herald_proto::{subject, topology::Topology};

use crate::{config::Config, error::Error};

pub mod change;
pub mod traffic;

/// What a service runs with unless it is told otherwise.
pub const DEFAULT: Topology = Topology { partitions: 4, event_streams: 1 };
/// A device that stays away longer than this starts anew.
const CURSORS_MAX_AGE: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long the mark of a deleted key stays: long enough for every gateway to see it.
const MARKER_TTL: Duration = Duration::from_secs(600);
const DEADLETTER_MAX_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
const DEADLETTER_MAX_BYTES: i64 = 256 << 20;

/// Creates whatever is missing and returns the topology in force.
///
/// # Errors
/// [`Error::Topology`] if the flags disagree with it; [`Error::Broker`] if the broker refuses.
pub async fn ensure(jetstream: &Context, config: &Config) -> Result<Topology, Error> {
    let replicas = usize::from(config.replicas);
    for bucket in buckets(replicas) {
        // What exists stays as it is: an operator may have changed it.
        if jetstream.get_key_value(&bucket.bucket).await.is_err() {
            let created = jetstream.create_key_value(bucket).await;
            created.map_err(Error::broker("create a key-value bucket"))?;
        }
    }
    let topology = agree(jetstream, config).await?;
    for wanted in streams(config, topology) {
        let stream = jetstream.get_or_create_stream(wanted.clone()).await;
        let stream = stream.map_err(Error::broker("create a stream"))?;
        // What exists stays as an operator made it, but for what the service can't do without.
        let mut found = stream.cached_info().config.clone();
        if wanted.allow_batch_publish && !found.allow_batch_publish {
            found.allow_batch_publish = true;
            jetstream
                .update_stream(found)
                .await
                .map_err(Error::broker("let a stream take batches"))?;
        }
    }
    let frames =
        jetstream.get_stream_no_info(subject::FRAMES).await.map_err(Error::broker("get FRAMES"))?;
    for partition in 0..topology.partitions {
        frames
            .create_consumer(consumer(config, partition))
            .await
            .map_err(Error::broker("create a consumer"))?;
    }
    // Last of all, and only once: who can read the topology finds everything else there.
    publish(jetstream, topology).await?;
    Ok(topology)
}

/// The topology that a first worker has written, if one has.
///
/// # Errors
/// If the broker fails.
pub async fn current(jetstream: &Context) -> Result<Option<Topology>, Error> {
    let bucket =
        jetstream.get_key_value(subject::TOPOLOGY).await.map_err(Error::broker("open TOPOLOGY"))?;
    stored(&bucket).await
}

/// What the service runs with, or what it will: the stored topology, if there is one, must be what the flags ask for.
async fn agree(jetstream: &Context, config: &Config) -> Result<Topology, Error> {
    let stored = current(jetstream).await?;
    let base = stored.unwrap_or(DEFAULT);
    let asked = Topology {
        partitions: config.partitions.unwrap_or(base.partitions),
        event_streams: config.event_streams.unwrap_or(base.event_streams),
    };
    match stored {
        Some(found) if found != asked => Err(Error::Topology { asked, found }),
        _ => Ok(asked),
    }
}

async fn stored(bucket: &kv::Store) -> Result<Option<Topology>, Error> {
    let bytes =
        bucket.get(subject::TOPOLOGY_KEY).await.map_err(Error::broker("read the topology"))?;
    bytes
        .map(|bytes| {
            serde_json::from_slice(&bytes).map_err(|error| Error::Unreadable("the topology", error))
        })
        .transpose()
}

async fn publish(jetstream: &Context, topology: Topology) -> Result<(), Error> {
    let bucket =
        jetstream.get_key_value(subject::TOPOLOGY).await.map_err(Error::broker("open TOPOLOGY"))?;
    let text =
        serde_json::to_vec(&topology).map_err(|error| Error::Unreadable("the topology", error))?;
    match bucket.create(subject::TOPOLOGY_KEY, text.into()).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == kv::CreateErrorKind::AlreadyExists => {
            match stored(&bucket).await? {
                Some(found) if found != topology => Err(Error::Topology { asked: topology, found }),
                _ => Ok(()),
            }
        }
        Err(error) => Err(Error::broker("write the topology")(error)),
    }
}

fn buckets(replicas: usize) -> [kv::Config; 4] {
    let bucket = |name: &str, max_age, markers: Option<Duration>| kv::Config {
        bucket: name.to_owned(),
        history: 1,
        max_age,
        storage: StorageType::File,
        num_replicas: replicas,
        limit_markers: markers,
        ..kv::Config::default()
    };
    [
        bucket(subject::TOPOLOGY, Duration::ZERO, None),
        bucket(subject::CURSORS, CURSORS_MAX_AGE, None),
        bucket(subject::LEASES, Duration::ZERO, Some(MARKER_TTL)),
        bucket(subject::SESSIONS, Duration::ZERO, Some(MARKER_TTL)),
    ]
}

fn streams(config: &Config, topology: Topology) -> Vec<stream::Config> {
    let base = stream::Config {
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::Old,
        num_replicas: usize::from(config.replicas),
        ..stream::Config::default()
    };
    let mut streams = vec![
        stream::Config {
            name: subject::FRAMES.into(),
            subjects: vec![subject::FRAMES_ALL.into()],
            max_age: config.frames_max_age,
            max_bytes: config.frames_max_bytes,
            ..base.clone()
        },
        stream::Config {
            name: subject::DEADLETTER.into(),
            subjects: vec![subject::DEADLETTER_ALL.into()],
            max_age: DEADLETTER_MAX_AGE,
            max_bytes: DEADLETTER_MAX_BYTES,
            ..base.clone()
        },
    ];
    streams.extend((0..topology.event_streams).map(|stream| stream::Config {
        name: subject::events(stream),
        subjects: vec![subject::events_all(stream)],
        max_age: config.events_max_age,
        max_bytes: config.events_max_bytes,
        max_messages_per_subject: config.events_max_per_user,
        duplicate_window: config.duplicate_window,
        allow_direct: true,
        allow_batch_publish: true,
        republish: Some(Republish {
            source: subject::events_all(stream),
            destination: subject::LIVE_FROM_EVENTS.into(),
            headers_only: false,
        }),
        ..base.clone()
    }));
    streams
}

/// One partition's consumer: one worker at a time (`pinned_client`), the others stand by; an ack covers all before it.
fn consumer(config: &Config, partition: u16) -> pull::Config {
    pull::Config {
        durable_name: Some(subject::consumer(partition)),
        filter_subject: subject::frames(partition),
        ack_policy: AckPolicy::All,
        ack_wait: config.ack_wait,
        max_ack_pending: i64::from(config.batch) * 4,
        priority_policy: PriorityPolicy::PinnedClient,
        priority_groups: vec![subject::WORKERS.into()],
        priority_timeout: config.pin_timeout,
        ..pull::Config::default()
    }
}
