//! Puts frames that can't be applied for what is in them aside, so that they hold nothing up.

use foldhash::{HashMap, HashMapExt};
use herald_proto::{
    clock::now_ms,
    frame::{Answer, Response},
    subject,
    wire::Bundle,
};

use super::{FIRST_PAUSE, Settler};
use crate::{
    error::Error,
    frame::{Frame, message_of},
    metrics::DeadLetterCause,
    publisher::{Answered, DeadLetter},
    spans,
    store::Changes,
};

/// Milliseconds after which a client may try again what was put aside.
const RETRY_AFTER: u64 = 60_000;

impl Settler {
    /// Puts frames into `DEADLETTER`, tells their clients, and moves on.
    pub(super) async fn put_aside(
        &mut self,
        mut frames: Vec<Frame>,
        reason: &Error,
    ) -> Result<(), Error> {
        for frame in &mut frames {
            spans::fail(frame, "dead_letter");
            let logs = frame.span.enter();
            tracing::error!(
                error = %reason,
                messaging.destination.partition.id = frame.partition,
                herald.sequence = message_of(frame.place),
                "a frame can't be applied, it goes to DEADLETTER"
            );
            drop(logs);
            let mut pause = FIRST_PAUSE;
            while let Err(error) = self.put_one_aside(frame, reason).await {
                self.fences.forget(frame.partition);
                self.pause(&mut pause, &error, &frame.span).await?;
                self.learn_at_last(frame.partition).await?;
            }
        }
        Ok(())
    }

    async fn put_one_aside(&mut self, frame: &mut Frame, reason: &Error) -> Result<(), Error> {
        let bundle =
            Bundle { gateway: frame.gateway.to_string(), commands: vec![frame.command.clone()] };
        let body =
            serde_json::to_vec(&bundle).map_err(|error| Error::Unreadable("a frame", error))?;
        let letter = DeadLetter {
            partition: frame.partition,
            place: frame.place,
            epoch: frame.epoch,
            origin: subject::frames(frame.partition),
            reason: reason.to_string(),
            body: body.into(),
        };
        self.parts.publisher.dead_letter(letter, DeadLetterCause::Unappliable).await?;
        let frames = std::slice::from_mut(frame);
        self.fences.mark_replays(frames);
        let moves = self.fences.moves(frames, &HashMap::new())?;
        if !moves.is_empty() {
            let changes = Changes { moves, now: now_ms(), ..Changes::default() };
            self.parts.store.commit(&changes).await?;
            self.fences.moved(&changes.moves, &mut HashMap::new());
        }
        let error = herald_proto::Error::unavailable(
            "the request could not be applied and was put aside",
            RETRY_AFTER,
        );
        let id = Some(frame.command.id.as_str().to_owned());
        let response = Response { id, timestamp: now_ms(), answer: Answer::Failed(error) };
        self.parts.metrics.settled(frame, &response.answer);
        let (gateway, session) = (frame.gateway.clone(), frame.command.session);
        self.parts.publisher.replies(vec![Answered { gateway, session, response }]);
        Ok(())
    }
}
