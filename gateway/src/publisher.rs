//! Publishes clients' requests to `FRAMES`, all in the order in which they came, and tells a session what was not
//! confirmed. Bounded: a request that finds no place is refused at once.

use std::sync::Arc;

use async_nats::{
    Client, HeaderMap, connection,
    jetstream::{Context, context::PublishAckFuture, message::PublishMessage},
};
use futures::{StreamExt, stream::FuturesUnordered};
use herald_proto::{
    Chat, Error as ClientError, RequestId,
    clock::now_ms,
    frame::{Answer, Response, to_text},
    telemetry,
    topology::Topology,
    wire::Command,
};
use tokio::sync::mpsc;

use crate::inbox::{Delivery, Inbox};

/// A request on its way.
struct Job {
    subject: String,
    message: PublishMessage,
    id: RequestId,
    inbox: Arc<Inbox>,
}

/// Publishes for a gateway. Clones share the queue.
#[derive(Clone)]
pub struct Publisher {
    client: Client,
    topology: Topology,
    jobs: mpsc::Sender<Job>,
}

/// A request that can't be taken now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

/// Milliseconds after which a client may try again.
const RETRY_AFTER: u64 = 1000;

impl Publisher {
    /// Starts the publisher; at most `capacity` requests wait in it. It ends when its last clone is dropped.
    pub fn start(client: Client, jetstream: Context, topology: Topology, capacity: usize) -> Self {
        let (jobs, waiting) = mpsc::channel(capacity);
        tokio::spawn(run(jetstream, waiting, capacity));
        Self { client, topology, jobs }
    }

    /// Sends a request on its way. Whether it was confirmed is told to the inbox, and only if it was not.
    ///
    /// # Errors
    /// [`Refused`] if there is no connection to the broker, or no place.
    pub fn submit(
        &self,
        chat: &Chat,
        command: &Command,
        inbox: &Arc<Inbox>,
    ) -> Result<(), Refused> {
        if self.client.connection_state() != connection::State::Connected {
            return Err(Refused);
        }
        let span = tracing::info_span!(
            "publish frame",
            otel.kind = "producer",
            messaging.system = "nats",
            messaging.operation.name = "publish",
            messaging.destination.name = herald_proto::subject::FRAMES,
            herald.request = command.request.kind(),
        );
        let mut headers = HeaderMap::new();
        telemetry::inject(&span, &mut headers);
        let body = serde_json::to_vec(command).map_err(|_| Refused)?;
        let job = Job {
            subject: self.topology.frame_subject(chat),
            message: PublishMessage::build().payload(body.into()).headers(headers),
            id: command.id.clone(),
            inbox: inbox.clone(),
        };
        self.jobs.try_send(job).map_err(|_| Refused)
    }
}

async fn run(jetstream: Context, mut jobs: mpsc::Receiver<Job>, capacity: usize) {
    let mut unconfirmed = FuturesUnordered::new();
    loop {
        tokio::select! {
            job = jobs.recv(), if unconfirmed.len() < capacity => {
                let Some(Job { subject, message, id, inbox }) = job else { break };
                match jetstream.send_publish(subject, message).await {
                    Ok(confirmation) => unconfirmed.push(confirm(confirmation, id, inbox)),
                    Err(error) => fail(&error, &id, &inbox),
                }
            }
            Some(()) = unconfirmed.next() => {}
        }
    }
    while unconfirmed.next().await.is_some() {}
}

async fn confirm(confirmation: PublishAckFuture, id: RequestId, inbox: Arc<Inbox>) {
    if let Err(error) = confirmation.await {
        fail(&error, &id, &inbox);
    }
}

/// The request may still arrive: whoever sends it again gets the same answer.
fn fail(error: &dyn std::error::Error, id: &RequestId, inbox: &Inbox) {
    tracing::warn!(%error, "a request was not confirmed by the broker");
    let error = ClientError::unavailable("the service can't take the request now", RETRY_AFTER);
    let id = id.as_str().to_owned();
    let response =
        Response { id: Some(id.clone()), timestamp: now_ms(), answer: Answer::Failed(error) };
    if let Ok(frame) = to_text(&response) {
        inbox.push(Delivery::Reply { id, frame: frame.into() });
    }
}
