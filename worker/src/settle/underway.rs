//! What a batch has to publish, on its way: while it is, the next one's transaction may run.

use std::time::Instant;

use herald_proto::telemetry::{Ended, Span};
use tokio::sync::oneshot;

use super::{FIRST_PAUSE, Settler, partitions};
use crate::{
    error::Error,
    events::{Events, Sent},
    failpoint,
    frame::{Frame, Outgoing},
};

/// Frames that are applied, and whose events are on their way.
pub(super) struct Underway {
    /// Kept for their spans.
    frames: Vec<Frame>,
    /// Told after the frames' own.
    parts_of_spans: Vec<Ended>,
    pub(super) partitions: Vec<u16>,
    applied_at: Instant,
    /// What was sent, if there was anything to send.
    sent: Result<Option<Sent>, Error>,
    /// Told when the events are published.
    pub(super) waiters: Vec<oneshot::Sender<()>>,
}

impl Settler {
    pub(super) async fn finish_or_warn(&mut self) {
        if let Err(error) = self.finish().await {
            tracing::warn!(%error, "frames stay unacknowledged");
        }
    }

    /// Sends the events of all these frames' partitions, in one go: what one partition's events are among another's does
    /// not matter. What was sent before is finished first.
    pub(super) async fn publish(
        &mut self,
        frames: Vec<Frame>,
        applied_at: Instant,
    ) -> Result<(), Error> {
        self.finish().await?;
        let partitions = partitions(&frames);
        let sent = self.send(&partitions, applied_at).await;
        let waiters = Vec::new();
        let parts_of_spans = std::mem::take(&mut self.parts_of_spans);
        self.underway =
            Some(Underway { frames, parts_of_spans, partitions, applied_at, sent, waiters });
        Ok(())
    }

    /// Sends what partitions have to publish; `None` if there is nothing.
    async fn send(
        &mut self,
        partitions: &[u16],
        applied_at: Instant,
    ) -> Result<Option<Sent>, Error> {
        if applied_at.elapsed() > self.parts.duplicate_window / 4 {
            // Frozen, or cut off for long: another worker may have published these events, and JetStream may
            // have forgotten that it did. The database knows.
            for partition in partitions {
                self.fences.forget(*partition);
                self.learn(*partition).await?;
            }
        }
        let fences = partitions.iter().filter_map(|partition| self.fences.get(*partition));
        let events: Vec<&Outgoing> = fences.flat_map(|fence| &fence.unpublished).collect();
        if events.is_empty() { Ok(None) } else { self.parts.events.send(&events).await.map(Some) }
    }

    /// Waits until the events underway are published, trying until they are.
    pub(super) async fn finish(&mut self) -> Result<(), Error> {
        let Some(underway) = self.underway.take() else { return Ok(()) };
        let Underway { frames, parts_of_spans, partitions, applied_at, mut sent, waiters } =
            underway;
        let mut pause = FIRST_PAUSE;
        loop {
            let published = match sent {
                Ok(Some(sent)) => self.parts.events.finish(sent).await,
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            let Err(error) = published else { break };
            let traced = frames.iter().map(|frame| &frame.span).find(|span| span.is_some());
            self.pause(&mut pause, &error, traced.unwrap_or(&Span::none())).await?;
            sent = self.send(&partitions, applied_at).await;
        }
        failpoint::step("after-publish");
        for partition in partitions {
            self.fences.published(partition);
        }
        tracing::debug!(
            herald.frames = frames.len(),
            herald.publish_ms = applied_at.elapsed().as_secs_f64() * 1e3,
            "settled"
        );
        drop(frames);
        drop(parts_of_spans);
        tell(waiters);
        Ok(())
    }
}

/// Waits until it is known what became of what is underway.
pub(super) async fn confirmed(events: &mut Events, underway: &mut Option<Underway>) {
    if let Some(Underway { sent: Ok(Some(sent)), .. }) = underway {
        events.confirmed(sent).await;
    }
}

pub(super) fn tell(waiters: Vec<oneshot::Sender<()>>) {
    for waiter in waiters {
        // A reader that is gone has nothing to acknowledge.
        let _ = waiter.send(());
    }
}
