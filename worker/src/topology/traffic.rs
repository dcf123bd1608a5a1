//! Who and what is under way on the broker: what has to come to rest before the topology can change.

use std::{collections::HashSet, fmt, time::Duration};

use async_nats::{
    Client,
    jetstream::{Context, context::ConsumerInfoErrorKind, kv},
};
use futures::StreamExt;
use herald_proto::{
    subject,
    topology::Topology,
    wire::{Heartbeat, Lease},
};
use time::OffsetDateTime;

use crate::{error::Error, members};

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Gateways whose lease has not run out.
    pub gateways: usize,
    /// Workers that were heard of.
    pub workers: usize,
    /// Frames that no worker has acknowledged.
    pub frames: u64,
}

impl Traffic {
    /// Looks around; takes as long as a silent worker still counts as alive.
    ///
    /// # Errors
    /// If the broker fails.
    pub async fn look(
        client: &Client,
        jetstream: &Context,
        topology: Topology,
    ) -> Result<Self, Error> {
        let (gateways, workers, frames) = tokio::try_join!(
            gateways(jetstream),
            workers(client),
            frames(jetstream, topology.partitions)
        )?;
        Ok(Self { gateways, workers, frames })
    }

    /// Whether nothing is under way.
    pub fn is_at_rest(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "gateways alive  {}", self.gateways)?;
        writeln!(f, "workers alive   {}", self.workers)?;
        write!(f, "frames waiting  {}", self.frames)
    }
}

/// A gateway that died still counts until its lease has run out: it may come back.
async fn gateways(jetstream: &Context) -> Result<usize, Error> {
    const WHAT: &str = "read the gateways' leases";
    let bucket: kv::Store =
        jetstream.get_key_value(subject::LEASES).await.map_err(Error::broker("open LEASES"))?;
    let mut keys = bucket.keys().await.map_err(Error::broker(WHAT))?;
    let mut alive = 0;
    while let Some(key) = keys.next().await {
        let key = key.map_err(Error::broker(WHAT))?;
        let Some(entry) = bucket.entry(key).await.map_err(Error::broker(WHAT))? else { continue };
        let Ok(Lease { lasts_ms }) = serde_json::from_slice(&entry.value) else { continue };
        let age = OffsetDateTime::now_utc() - entry.created;
        alive += usize::from(age < Duration::from_millis(lasts_ms));
    }
    Ok(alive)
}

async fn workers(client: &Client) -> Result<usize, Error> {
    let heartbeats = client.subscribe(subject::HEARTBEATS).await;
    let mut heartbeats = heartbeats.map_err(Error::broker("subscribe to heartbeats"))?;
    let mut alive = HashSet::new();
    let listen = async {
        while let Some(message) = heartbeats.next().await {
            let Ok(Heartbeat { worker, leaving }) = serde_json::from_slice(&message.payload) else {
                continue;
            };
            if leaving {
                alive.remove(&worker);
            } else {
                alive.insert(worker);
            }
        }
    };
    match tokio::time::timeout(members::LAPSE, listen).await {
        Err(_) => Ok(alive.len()),
        Ok(()) => Err(Error::broker("hear heartbeats")("the subscription ended")),
    }
}

async fn frames(jetstream: &Context, partitions: u16) -> Result<u64, Error> {
    let stream = jetstream.get_stream_no_info(subject::FRAMES).await;
    let stream = stream.map_err(Error::broker("get FRAMES"))?;
    let mut waiting = 0;
    for partition in 0..partitions {
        match stream.consumer_info(subject::consumer(partition)).await {
            Ok(info) => waiting += info.num_pending + info.num_ack_pending as u64,
            // Removed by a change that was not finished, after it had emptied the stream.
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => {}
            Err(error) => return Err(Error::broker("get a consumer's state")(error)),
        }
    }
    Ok(waiting)
}
