//! Publishes clients' requests to `FRAMES`, each partition's in the order in which they came, and tells a session what
//! was not confirmed. Bounded: a request that finds no place is refused at once.
//!
//! Each partition has one bundle on its way. What comes meanwhile makes the next: so bundles grow under load, and
//! a request that comes alone does not wait.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use async_nats::{
    Client, connection,
    jetstream::{Context, context::PublishError},
};
use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use herald_proto::{
    Chat, RequestId, subject,
    telemetry::{Span, Traceparent},
    topology::Topology,
    wire::{Bundle, Command, MAX_COMMANDS},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::{
    inbox::{Delivery, Inbox},
    metrics::{Metrics, Publishing},
    spans,
};

/// A request on its way.
struct Job {
    partition: u16,
    /// The command, as JSON.
    body: Vec<u8>,
    /// Lasts until it is confirmed.
    span: Span,
    id: RequestId,
    inbox: Arc<Inbox>,
    /// Its place among all that are on their way.
    _place: OwnedSemaphorePermit,
}

/// Publishes for a gateway. Clones share the queue.
#[derive(Clone)]
pub struct Publisher {
    client: Client,
    topology: Topology,
    jobs: mpsc::UnboundedSender<Job>,
    /// Bounds the queue, and what was taken from it and is not confirmed.
    places: Arc<Semaphore>,
}

/// The size of most commands, in bytes.
const USUAL: usize = 512;
/// A bundle is not extended past this size, in bytes: well below what NATS takes in a message.
const MAX_BYTES: usize = 256 * 1024;

impl Publisher {
    /// Starts the publisher; at most `capacity` requests are on their way. It ends when its last clone is dropped.
    pub fn start(
        client: Client,
        jetstream: Context,
        topology: Topology,
        gateway: Arc<str>,
        capacity: usize,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (jobs, waiting) = mpsc::unbounded_channel();
        let line = Line { jetstream, gateway, metrics };
        tokio::spawn(run(line, topology.partitions, waiting));
        Self { client, topology, jobs, places: Arc::new(Semaphore::new(capacity)) }
    }

    /// Sends a request on its way, as a part of the trace of `cause`. Whether it was confirmed is told to the inbox, and
    /// only if it was not.
    ///
    /// # Errors
    /// The request's id if there is no connection to the broker, or no place.
    pub fn submit(
        &self,
        chat: &Chat,
        mut command: Command,
        cause: Option<Traceparent>,
        inbox: &Arc<Inbox>,
    ) -> Result<(), RequestId> {
        let place = self.places.clone().try_acquire_owned();
        let is_connected = self.client.connection_state() == connection::State::Connected;
        let (Ok(place), true) = (place, is_connected) else { return Err(command.id) };
        let partition = self.topology.partition(chat);
        let span = spans::publish(cause, partition);
        command.traceparent = span.traceparent();
        let mut body = Vec::with_capacity(USUAL);
        let Ok(()) = serde_json::to_writer(&mut body, &command) else { return Err(command.id) };
        let job =
            Job { partition, body, span, id: command.id, inbox: inbox.clone(), _place: place };
        self.jobs.send(job).map_err(|refused| refused.0.id)
    }
}

/// What one partition has on its way and waiting.
#[derive(Default)]
struct Lane {
    is_under_way: bool,
    waiting: VecDeque<Job>,
}

impl Lane {
    /// Takes the next bundle, if none is on its way.
    fn next(&mut self) -> Option<Vec<Job>> {
        if self.is_under_way || self.waiting.is_empty() {
            return None;
        }
        self.is_under_way = true;
        let mut bytes = 0;
        let fits = |job: &&Job| {
            bytes += job.body.len();
            bytes <= MAX_BYTES
        };
        let count = self.waiting.iter().take(MAX_COMMANDS).take_while(fits).count();
        Some(self.waiting.drain(..count.max(1)).collect())
    }
}

/// What bundles are published with.
struct Line {
    jetstream: Context,
    gateway: Arc<str>,
    metrics: Arc<Metrics>,
}

async fn run(line: Line, partitions: u16, mut jobs: mpsc::UnboundedReceiver<Job>) {
    let mut lanes: Vec<Lane> = (0..partitions).map(|_| Lane::default()).collect();
    let mut under_way = FuturesUnordered::new();
    let mut arrived = Vec::new();
    let mut is_open = true;
    while is_open || !under_way.is_empty() {
        let mut due = Vec::new();
        tokio::select! {
            count = jobs.recv_many(&mut arrived, MAX_COMMANDS), if is_open => {
                is_open = count > 0;
                for job in arrived.drain(..) {
                    due.push(job.partition);
                    if let Some(lane) = lanes.get_mut(usize::from(job.partition)) {
                        lane.waiting.push_back(job);
                    }
                }
            }
            Some(partition) = under_way.next() => {
                due.push(partition);
                if let Some(lane) = lanes.get_mut(usize::from(partition)) {
                    lane.is_under_way = false;
                }
            }
        }
        for partition in due {
            if let Some(bundle) = lanes.get_mut(usize::from(partition)).and_then(Lane::next) {
                under_way.push(publish(&line, partition, bundle));
            }
        }
    }
}

/// Publishes a bundle and waits until it is confirmed; tells the sessions if it is not.
async fn publish(line: &Line, partition: u16, bundle: Vec<Job>) -> u16 {
    let Line { jetstream, gateway, metrics } = line;
    let body = Bundle::join(gateway, bundle.iter().map(|job| job.body.as_slice()));
    metrics.bundle.observe_size(bundle.len());
    let began_at = Instant::now();
    let confirmed = confirm(jetstream, partition, body.into()).await;
    metrics.publish.observe(began_at.elapsed(), None);
    let outcome = if confirmed.is_ok() { Publishing::Confirmed } else { Publishing::Failed };
    metrics.publishes.inc(outcome);
    if let Err(error) = confirmed {
        let traced = bundle.iter().find(|job| job.span.is_some());
        let logs = traced.and_then(|job| job.span.enter());
        tracing::warn!(%error, herald.requests = bundle.len(), "requests were not confirmed by the broker");
        drop(logs);
        for mut job in bundle {
            match job.span.is_some() {
                true => job.span.fail("not_confirmed"),
                false => spans::keep_error("not_confirmed"),
            }
            // The request may still arrive: whoever sends it again gets the same answer.
            job.inbox.push(Delivery::Unconfirmed(job.id));
        }
    }
    partition
}

async fn confirm(jetstream: &Context, partition: u16, body: Bytes) -> Result<(), PublishError> {
    jetstream.publish(subject::frames(partition), body).await?.await.map(drop)
}
