//! Reads one partition of `FRAMES`, in order and without gaps, and hands what it reads to the settler.
//!
//! The consumer decides who works (its pinned client) and wakes it. It does not decide the order: after a take-over it
//! delivers new frames before those that the former owner took and never acknowledged. So whenever a delivery does not
//! directly follow the one before, the reader fetches what lies between from the stream itself.

use std::{pin::pin, sync::Arc, time::Duration};

use async_nats::jetstream::{
    self,
    consumer::{Consumer, pull},
    message::StreamMessage,
    stream::{InfoError, RawMessageErrorKind},
};
use futures::{FutureExt, StreamExt};
use herald_proto::{
    Chat, subject,
    telemetry::OPERATIONS,
    wire::{Bundle, Command},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    error::Error,
    frame::{Frame, message_of, place},
    members::Share,
    metrics::{DeadLetterCause, Partitions},
    publisher::{DeadLetter, Publisher},
    settle::Batch,
    spans,
    store::Store,
};

mod settled;

use settled::Settled;

/// Reads one partition.
pub struct Reader {
    /// Which one.
    pub partition: u16,
    /// When `FRAMES` was created, in nanoseconds since the Unix epoch.
    pub epoch: i64,
    /// The stream `FRAMES`.
    pub frames: jetstream::stream::Stream<()>,
    /// Asked how far the partition is applied.
    pub store: Store,
    /// Takes frames that are not readable.
    pub publisher: Publisher,
    /// Where the settler takes batches.
    pub batches: mpsc::Sender<Batch>,
    /// The most frames in a batch.
    pub max_frames: usize,
    /// Whether the partition is this worker's.
    pub share: Share,
    /// Where it is told that this worker reads it.
    pub partitions: Partitions,
    /// Ends the reading.
    pub stop: CancellationToken,
}

/// How far a reader is.
struct Position {
    /// The stream sequence of the last frame taken: everything up to it is settled or on its way.
    taken: u64,
    /// When the newest of them came in, in nanoseconds since the Unix epoch.
    newest: i64,
    /// The consumer's sequence of the delivery that would directly follow, 0 if that can't be told; `None` at the start.
    next_delivery: Option<u64>,
}

/// A frame's message, delivered or fetched.
struct Message {
    sequence: u64,
    /// When it came in, in nanoseconds since the Unix epoch.
    came_at: i64,
    /// How often it was delivered, if it was not fetched.
    attempt: Option<i64>,
    subject: async_nats::Subject,
    payload: bytes::Bytes,
}

const PULL_EXPIRES: Duration = Duration::from_secs(10);
const PULL_HEARTBEAT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(500);

/// When a stream was created, in nanoseconds since the Unix epoch: tells it from one of the same name before it.
pub fn epoch(info: &jetstream::stream::Info) -> i64 {
    nanoseconds(info.created)
}

fn nanoseconds(time: time::OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos()).unwrap_or(0)
}

/// Whether a stream that was asked for does not exist.
pub fn is_no_stream(error: &InfoError) -> bool {
    let cause = std::error::Error::source(error);
    let cause = cause.and_then(|cause| cause.downcast_ref::<jetstream::Error>());
    cause.is_some_and(|cause| cause.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND)
}

/// Why a frame is not readable. Where, but never what: the error's own text may quote a message.
fn unreadable(error: &serde_json::Error) -> String {
    format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column())
}

impl Reader {
    /// Reads whenever the partition is this worker's, until told to stop; what goes wrong is logged and tried again.
    pub async fn run(self) {
        let mut share = self.share.clone();
        while !self.stop.is_cancelled() {
            tokio::select! {
                () = share.gained(self.partition) => {}
                () = self.stop.cancelled() => return,
            }
            let Err(error) = self.read().await else { continue };
            tracing::warn!(%error, messaging.destination.partition.id = self.partition, "reading a partition, starting again");
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// Reads until the partition is another worker's, or the worker stops; then lets go of it.
    async fn read(&self) -> Result<(), Error> {
        let _owned = self.partitions.own(self.partition);
        let mut position = Position { taken: 0, newest: 0, next_delivery: None };
        self.take_over(&mut position).await?;
        self.pull(&mut position).await?;
        self.leave(&position).await
    }

    #[tracing::instrument(
        target = OPERATIONS,
        name = "take a partition over",
        skip_all,
        fields(messaging.destination.partition.id = %self.partition, otel.status_code)
    )]
    async fn take_over(&self, position: &mut Position) -> Result<(), Error> {
        let taken = async {
            self.check_stream().await?;
            self.recover(position).await
        };
        taken.await.inspect_err(|_| {
            tracing::Span::current().record("otel.status_code", "ERROR");
        })
    }

    async fn pull(&self, position: &mut Position) -> Result<(), Error> {
        let name = subject::consumer(self.partition);
        let consumer: Consumer<pull::Config> = self
            .frames
            .get_consumer(&name)
            .await
            .map_err(Error::broker("get a partition's consumer"))?;
        let messages = consumer
            .stream()
            .group(subject::WORKERS)
            .max_messages_per_batch(self.max_frames)
            .expires(PULL_EXPIRES)
            .heartbeat(PULL_HEARTBEAT)
            .messages()
            .await
            .map_err(Error::broker("pull a partition's frames"))?;
        let mut messages = pin!(messages);
        let mut share = self.share.clone();
        let mut settled = Settled::default();
        loop {
            let first = tokio::select! {
                biased;
                () = self.stop.cancelled() => return settled.acknowledge().await,
                () = share.lost(self.partition) => return settled.acknowledge().await,
                message = messages.next() => message,
                () = tokio::time::sleep_until(settled.due), if settled.last.is_some() => {
                    settled.acknowledge().await?;
                    continue;
                }
            };
            let mut delivered = Vec::new();
            let mut next = first;
            // What is there already goes along; nothing is waited for.
            let failure = loop {
                match next {
                    Some(Ok(message)) => delivered.push(message),
                    Some(Err(error)) => {
                        break Some(Error::broker("read a partition's frames")(error));
                    }
                    None => {
                        break Some(Error::broker("read a partition's frames")(
                            "the pull has ended",
                        ));
                    }
                }
                if delivered.len() >= self.max_frames {
                    break None;
                }
                match messages.next().now_or_never() {
                    Some(message) => next = message,
                    None => break None,
                }
            };
            if !delivered.is_empty() {
                self.take(position, &delivered).await?;
                settled.add(delivered);
            }
            if failure.is_some() || settled.messages >= self.max_frames {
                settled.acknowledge().await?;
            }
            if let Some(failure) = failure {
                return Err(failure);
            }
        }
    }

    /// A stream that was deleted or created anew takes everything with it that this worker made at its start: it stops,
    /// to be started again.
    async fn check_stream(&self) -> Result<(), Error> {
        let is_the_same = match self.frames.get_info().await {
            Ok(info) => epoch(&info) == self.epoch,
            Err(error) if is_no_stream(&error) => false,
            Err(error) => return Err(Error::broker("get FRAMES")(error)),
        };
        if !is_the_same && !self.stop.is_cancelled() {
            tracing::error!(
                "FRAMES is gone or was created anew: this worker stops, to be started again"
            );
            self.stop.cancel();
        }
        Ok(())
    }

    /// Settles what the last owner was given and never acknowledged. The broker would deliver it again, but only after
    /// the ack wait.
    async fn recover(&self, position: &mut Position) -> Result<(), Error> {
        (position.taken, position.newest) = self.settled().await?;
        let consumer = self.frames.consumer_info(subject::consumer(self.partition)).await;
        let delivered =
            consumer.map_err(Error::broker("get a consumer's state"))?.delivered.stream_sequence;
        let mut left = Vec::new();
        self.fetch_between(position.taken, delivered + 1, &mut left).await?;
        if let Some(last) = left.last() {
            position.taken = last.sequence;
            position.newest = last.came_at.max(position.newest);
            tracing::info!(
                messaging.destination.partition.id = self.partition,
                herald.frames = left.len(),
                "settling what the last owner left"
            );
        }
        self.hand_over(left).await
    }

    /// Lets the next worker have the partition at once, if it is this one's.
    async fn leave(&self, position: &Position) -> Result<(), Error> {
        if position.next_delivery.is_none() {
            return Ok(());
        }
        let name = subject::consumer(self.partition);
        let unpinned = self.frames.unpin_consumer(&name, subject::WORKERS).await;
        unpinned.map_err(Error::broker("give a partition up"))
    }

    /// Has all frames up to the last one delivered settled.
    async fn take(
        &self,
        position: &mut Position,
        delivered: &[jetstream::Message],
    ) -> Result<(), Error> {
        let mut batch = Vec::with_capacity(delivered.len());
        for message in delivered {
            let info = message.info().map_err(Error::broker("read a delivery's subject"))?;
            let sequence = info.stream_sequence;
            if position.next_delivery.is_none() {
                let (settled, newest) = self.settled().await?;
                position.taken = position.taken.max(settled);
                position.newest = position.newest.max(newest);
            }
            let came_at = nanoseconds(info.published);
            if sequence <= position.taken && came_at > position.newest {
                return Err(Error::broker("read a partition's frames")(
                    "FRAMES has lost its newest frames and counts the same sequences again",
                ));
            }
            let is_first = info.delivered == 1;
            if position.next_delivery != Some(info.consumer_sequence) || !is_first {
                self.fetch_between(position.taken, sequence, &mut batch).await?;
            }
            // A frame that is delivered for the first time is followed by the partition's next one, if that is
            // delivered next, and for the first time too. Nothing follows from a redelivery: others may be due later.
            position.next_delivery = Some(if is_first { info.consumer_sequence + 1 } else { 0 });
            if sequence > position.taken {
                position.taken = sequence;
                position.newest = came_at.max(position.newest);
                batch.push(Message {
                    sequence,
                    came_at,
                    attempt: Some(info.delivered),
                    subject: message.subject.clone(),
                    payload: message.payload.clone(),
                });
            }
        }
        self.hand_over(batch).await
    }

    /// Up to which sequence the partition is both applied and acknowledged, and when the newest applied frame came in.
    /// From there on frames are read again: those that were applied but not acknowledged may not have been answered.
    async fn settled(&self) -> Result<(u64, i64), Error> {
        let consumer = self.frames.consumer_info(subject::consumer(self.partition)).await;
        let floor =
            consumer.map_err(Error::broker("get a consumer's state"))?.ack_floor.stream_sequence;
        let state = self.store.partition(self.partition, self.epoch).await?;
        Ok((floor.min(message_of(state.applied)), state.seen_at))
    }

    /// Fetches the partition's frames above `after` and below `before`. Asks the stream's leader: a replica may lag.
    async fn fetch_between(
        &self,
        after: u64,
        before: u64,
        batch: &mut Vec<Message>,
    ) -> Result<(), Error> {
        let mut next = after + 1;
        while next < before {
            let get = self
                .frames
                .raw_message_builder()
                .sequence(next)
                .next_by_subject(subject::frames(self.partition));
            match get.send().await {
                Ok(StreamMessage { sequence, .. }) if sequence >= before => break,
                Ok(StreamMessage { sequence, subject, payload, time, .. }) => {
                    next = sequence + 1;
                    let (came_at, attempt) = (nanoseconds(time), None);
                    batch.push(Message { sequence, came_at, attempt, subject, payload });
                }
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => break,
                Err(error) => return Err(Error::broker("fetch a frame")(error)),
            }
        }
        Ok(())
    }

    async fn hand_over(&self, messages: Vec<Message>) -> Result<(), Error> {
        let mut frames = Vec::with_capacity(messages.len());
        for message in messages {
            match self.frames_of(&message) {
                Ok(some) => frames.extend(some),
                Err(reason) => self.put_aside(message, reason).await?,
            }
        }
        // A message can hold many frames: no transaction may grow with what has piled up.
        while !frames.is_empty() {
            let rest = frames.split_off(frames.len().min(self.max_frames));
            let (done, settled) = oneshot::channel();
            let batch = Batch { partition: self.partition, frames, done };
            self.batches.send(batch).await.map_err(|_| Error::Stopping)?;
            settled.await.map_err(|_| Error::Stopping)?;
            frames = rest;
        }
        Ok(())
    }

    fn frames_of(&self, message: &Message) -> Result<Vec<Frame>, String> {
        let bundle: Bundle =
            serde_json::from_slice(&message.payload).map_err(|error| unreadable(&error))?;
        let gateway: Arc<str> = bundle.gateway.into();
        let frame = |(index, command): (usize, Command)| {
            let chat = Chat::between(&command.from, command.request.peer())
                .ok_or("a chat with oneself")?;
            let side = chat.side(&command.from).ok_or("the sender is not in the chat")?;
            let span = spans::process(&command, self.partition, message.attempt);
            Ok(Frame {
                partition: self.partition,
                place: place(message.sequence, index),
                epoch: self.epoch,
                came_at: message.came_at,
                replay: false,
                gateway: gateway.clone(),
                command,
                chat,
                side,
                span,
            })
        };
        bundle.commands.into_iter().enumerate().map(frame).collect()
    }

    async fn put_aside(&self, message: Message, reason: String) -> Result<(), Error> {
        tracing::error!(
            error = %reason,
            messaging.destination.partition.id = self.partition,
            herald.sequence = message.sequence,
            "frames are not readable, they go to DEADLETTER"
        );
        let letter = DeadLetter {
            partition: self.partition,
            place: place(message.sequence, 0),
            epoch: self.epoch,
            origin: message.subject.to_string(),
            reason,
            body: message.payload,
        };
        self.publisher.dead_letter(letter, DeadLetterCause::Unreadable).await
    }
}
