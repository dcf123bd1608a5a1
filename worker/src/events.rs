//! Users' event logs, as a worker writes to them. An event's id is its sequence in its stream, so the streams must never
//! count the same sequences twice, not even after the broker has lost its newest messages or the whole stream.
//!
//! The database knows how far each stream's ids have been given out. A stream that is found below that mark, or that was
//! created anew, is emptied, and its ids jump past everything that may ever have been given out. No device's cursor lies
//! in such a log any more, so each begins with `resync`, and gateways tell the sessions that are open.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_nats::jetstream::{self, Context, consumer::DeliverPolicy, kv};
use futures::StreamExt;
use herald_proto::{
    header,
    link::{Link, Receive},
    subject,
    telemetry::Span,
    topology::Topology,
};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::{
    error::Error,
    frame::Outgoing,
    metrics::{Metrics, Publishing},
    partition::{epoch, is_no_stream},
    spans,
    store::{EventStream, Store},
};

mod append;

use append::{Append, Appender, Pending};

/// How far the event streams have been given out, as far as this worker knows.
#[derive(Clone)]
struct Marks(Arc<Mutex<Vec<EventStream>>>);

/// The event logs, for one writer.
pub struct Events {
    link: Arc<Link>,
    jetstream: Context,
    topology: Topology,
    store: Store,
    appender: Appender,
    marks: Marks,
    /// How often the link had been connected when the streams were last looked at; `None` to look again.
    looked_at: Option<u64>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
}

/// Events that were sent to their logs.
pub struct Sent {
    pending: Pending,
    /// The stream that each of the pending batches goes to.
    streams: Vec<usize>,
    spans: Vec<Span>,
    began_at: Instant,
    /// What became of it, once that is known.
    outcome: Option<Result<Vec<u64>, Error>>,
}

/// More ids than are ever given out between two looks at a stream.
const JUMP: i64 = 1_000_000;
/// How often the marks are stored.
const STORE_MARKS: Duration = Duration::from_secs(1);
/// Workers' clocks and the broker's may differ by this much.
const CLOCK_SKEW: Duration = Duration::from_secs(30);

impl Events {
    /// The logs. Events go over `link`, which has to run with [`answers`](Self::answers). If a stream is gone, `stop` is
    /// cancelled: at its next start the worker makes it anew.
    pub fn open(
        link: Arc<Link>,
        jetstream: Context,
        topology: Topology,
        store: Store,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Self {
        let appender = Appender::new(link.clone());
        let (marks, looked_at) = (Marks(Arc::default()), None);
        Self { link, jetstream, topology, store, appender, marks, looked_at, metrics, stop }
    }

    /// Who takes what comes over the link.
    pub fn answers(&self) -> Arc<impl Receive + use<>> {
        self.appender.answers()
    }

    /// What stores the marks in the database now and then, until the last batch is settled.
    pub fn keep_marks(&self, settled: CancellationToken) -> impl Future<Output = ()> + use<> {
        let (marks, store) = (self.marks.clone(), self.store.clone());
        async move {
            let mut stored = Vec::new();
            loop {
                let is_last = tokio::select! {
                    () = tokio::time::sleep(STORE_MARKS) => false,
                    () = settled.cancelled() => true,
                };
                let now = marks.lock().clone();
                if now != stored {
                    match store.raise_event_streams(&now).await {
                        Ok(()) => stored = now,
                        Err(error) => tracing::warn!(%error, "can't note how far event ids are"),
                    }
                }
                if is_last {
                    return;
                }
            }
        }
    }

    /// Appends events to their users' logs, in order, and returns when JetStream has confirmed them all. A copy of an
    /// event that is in its log already, and within the duplicate window, is dropped there.
    ///
    /// # Errors
    /// If one is not confirmed. Then all of them must be appended again.
    pub async fn append(&mut self, events: &[&Outgoing]) -> Result<(), Error> {
        if events.is_empty() {
            return Ok(());
        }
        let sent = self.send(events).await?;
        self.finish(sent).await
    }

    /// Sends events to their users' logs, in order; there are some. What was sent before has to be finished.
    ///
    /// # Errors
    /// If the broker or the database fails. Then all of them must be sent again.
    pub async fn send(&mut self, events: &[&Outgoing]) -> Result<Sent, Error> {
        let connect = self.look_if_due().await?;
        let began_at = Instant::now();
        let mut spans = Vec::new();
        let mut batches: Vec<Vec<Append<'_>>> = Vec::new();
        batches.resize_with(usize::from(self.topology.event_streams), Vec::new);
        for event in events {
            let stream = self.topology.event_stream(&event.user);
            if let Some(batch) = batches.get_mut(usize::from(stream)) {
                let span = spans::publish(event, stream);
                batch.push(append(stream, event, &span));
                if span.is_some() {
                    spans.push(span);
                }
            }
        }
        let streams: Vec<usize> =
            (0..batches.len()).filter(|&n| batches.get(n).is_some_and(|b| !b.is_empty())).collect();
        batches.retain(|batch| !batch.is_empty());
        let pending = match self.appender.send(connect, &batches) {
            Ok(pending) => pending,
            Err(error) => {
                spans.iter_mut().for_each(|span| span.fail("not_sent"));
                return Err(error);
            }
        };
        Ok(Sent { pending, streams, spans, began_at, outcome: None })
    }

    /// Waits until it is known what became of what was sent. Can be given up and called again.
    pub async fn confirmed(&mut self, sent: &mut Sent) {
        if sent.outcome.is_some() {
            return;
        }
        let outcome = self.appender.confirm(&mut sent.pending).await;
        self.metrics.publish.observe(sent.began_at.elapsed(), None);
        if outcome.is_ok() {
            self.metrics.publishes.inc(Publishing::Confirmed);
        } else {
            self.metrics.publishes.inc(Publishing::Failed);
            self.looked_at = None;
            sent.spans.iter_mut().for_each(|span| span.fail("not_confirmed"));
        }
        sent.spans.clear();
        sent.outcome = Some(outcome);
    }

    /// Waits until JetStream has confirmed all of what was sent.
    ///
    /// # Errors
    /// If something is not confirmed. Then all of it must be sent again.
    pub async fn finish(&mut self, mut sent: Sent) -> Result<(), Error> {
        self.confirmed(&mut sent).await;
        let Some(outcome) = sent.outcome else { return Ok(()) };
        let ends = outcome?;
        let mut is_behind = false;
        {
            let mut marks = self.marks.lock();
            for (stream, end) in sent.streams.into_iter().zip(ends) {
                if let Some(mark) = marks.get_mut(stream) {
                    let end = end.cast_signed();
                    // A batch that was there already ends where it did.
                    is_behind |= end <= mark.high;
                    mark.high = end.max(mark.high);
                }
            }
        }
        if is_behind {
            self.look().await?;
        }
        Ok(())
    }

    /// The ids among these events' that are in their logs already, as far back as `since` (milliseconds since the Unix
    /// epoch): for events that may have been published longer ago than JetStream remembers message ids.
    ///
    /// # Errors
    /// If the broker fails.
    pub async fn already_there(
        &self,
        events: &[Outgoing],
        since: i64,
    ) -> Result<HashSet<String>, Error> {
        const WHAT: &str = "look for published events";
        let wanted: HashSet<&str> = events.iter().map(|event| event.id.as_str()).collect();
        let streams: HashSet<u16> =
            events.iter().map(|event| self.topology.event_stream(&event.user)).collect();
        let since = OffsetDateTime::from_unix_timestamp_nanos(i128::from(since) * 1_000_000)
            .map_err(Error::broker(WHAT))?;
        let mut found = HashSet::new();
        for stream in streams {
            let stream = self.jetstream.get_stream_no_info(subject::events(stream)).await;
            let config = jetstream::consumer::pull::OrderedConfig {
                deliver_policy: DeliverPolicy::ByStartTime { start_time: since - CLOCK_SKEW },
                headers_only: true,
                ..Default::default()
            };
            let mut consumer = stream
                .map_err(Error::broker(WHAT))?
                .create_consumer(config)
                .await
                .map_err(Error::broker(WHAT))?;
            let waiting = consumer.info().await.map_err(Error::broker(WHAT))?.num_pending;
            let messages = consumer.messages().await.map_err(Error::broker(WHAT))?;
            let mut messages = messages.take(usize::try_from(waiting).unwrap_or(usize::MAX));
            while let Some(message) = messages.next().await {
                let message = message.map_err(Error::broker(WHAT))?;
                let id = message
                    .headers
                    .as_ref()
                    .and_then(|headers| headers.get(header::MESSAGE_ID).map(ToString::to_string));
                found.extend(id.filter(|id| wanted.contains(id.as_str())));
            }
        }
        Ok(found)
    }

    /// After the connection was lost, looks whether the streams still stand where they were left, and lets their ids
    /// jump if not. Returns the connection for which they do, as the link counts it.
    ///
    /// # Errors
    /// If the broker or the database fails, or a stream is missing.
    pub async fn look_if_due(&mut self) -> Result<u64, Error> {
        match self.looked_at {
            Some(connect) if connect == self.link.connects() => Ok(connect),
            _ => self.look().await,
        }
    }

    async fn look(&mut self) -> Result<u64, Error> {
        let connects = self.link.connects();
        let mut marks = Vec::new();
        for stream in 0..self.topology.event_streams {
            marks.push(self.look_at(stream).await?);
        }
        *self.marks.lock() = marks;
        self.looked_at = Some(connects);
        Ok(connects)
    }

    async fn look_at(&self, stream: u16) -> Result<EventStream, Error> {
        // Before the stream is asked: it only grows, and other workers note how far it is all the time.
        let known = self.store.event_stream(stream).await?;
        let named = self.jetstream.get_stream_no_info(subject::events(stream)).await;
        let named = named.map_err(Error::broker("get an event stream"))?;
        let info = named.get_info().await.map_err(|error| {
            if is_no_stream(&error) && !self.stop.is_cancelled() {
                tracing::error!("an event stream is gone: this worker stops, to be started again");
                self.stop.cancel();
            }
            Error::broker("get an event stream")(error)
        })?;
        let id = i32::from(stream);
        let found =
            EventStream { id, created: epoch(&info), high: info.state.last_sequence.cast_signed() };
        let Some(mut known) = known else {
            self.store.create_event_stream(found).await?;
            return Ok(found);
        };
        let own = self.marks.lock().get(usize::from(stream)).copied();
        if let Some(own) = own.filter(|own| own.created == known.created && own.high > known.high) {
            // What this worker was told last may not be stored yet.
            self.store.raise_event_streams(&[own]).await?;
            known = own;
        }
        if found.created == known.created && found.high >= known.high {
            return Ok(found);
        }
        let high = found.high.max(known.high) + JUMP;
        let jumped = EventStream { id, created: found.created, high };
        if !self.store.jump_event_stream(known, jumped).await? {
            return Err(Error::broker("let event ids jump")("another worker is at it"));
        }
        self.metrics.jumps.inc();
        tracing::error!(
            messaging.destination.name = subject::events(stream),
            herald.known = known.high,
            herald.found = found.high,
            herald.jumped_to = high,
            "an event stream has lost its newest events or was created anew: all devices are told to reload"
        );
        self.empty(stream, &named, high.cast_unsigned()).await?;
        Ok(jumped)
    }

    /// Empties a stream up to and including the sequence `high`. Whoever dies in between leaves the stream below its
    /// mark, and the next one does it again.
    async fn empty(
        &self,
        stream: u16,
        named: &jetstream::stream::Stream<()>,
        high: u64,
    ) -> Result<(), Error> {
        let bucket: kv::Store = self
            .jetstream
            .get_key_value(subject::TOPOLOGY)
            .await
            .map_err(Error::broker("open TOPOLOGY"))?;
        bucket
            .put(subject::jumped_key(stream), high.to_string().into())
            .await
            .map_err(Error::broker("tell gateways that event ids have jumped"))?;
        let purged = named.purge().sequence(high + 1).await;
        purged.map(drop).map_err(Error::broker("empty an event stream"))
    }
}

impl Marks {
    fn lock(&self) -> MutexGuard<'_, Vec<EventStream>> {
        // Numbers that only grow: right, whoever panicked while holding the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn append<'a>(stream: u16, event: &'a Outgoing, span: &Span) -> Append<'a> {
    Append {
        subject: subject::event(stream, &event.user),
        id: &event.id,
        traceparent: span.traceparent().or(event.traceparent),
        body: event.body.get(),
    }
}
