//! What a session does, as its rules say.

use herald_proto::{
    Chat, CloseCode, EventId, RequestId,
    clock::now_ms,
    frame::Request,
    metrics::TraceId,
    subject,
    telemetry::{Span, Traceparent},
    wire::Command,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::Message;

use super::{Output, Session, socket::Written};
use crate::spans;

/// What the session's loop has to do.
pub(super) enum Step {
    Fetch { after: EventId, limit: usize, goes_on: bool },
    Close(CloseCode, String),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    /// Does what can be done at once; returns what the loop has to do. `None` if the client is gone.
    pub(super) async fn perform(&mut self, out: &mut Vec<Output>) -> Option<Vec<Step>> {
        let mut steps = Vec::new();
        let mut messages = Vec::with_capacity(out.len());
        // Performing can cause more to perform: a request that can't be published is answered.
        while !out.is_empty() {
            for output in std::mem::take(out) {
                match output {
                    Output::Send(frame) => {
                        self.traces.sending(&frame);
                        messages.push(Message::Text(frame));
                    }
                    Output::Answer(id, frame) => {
                        self.traces.answering(&id, &frame);
                        messages.push(Message::Text(frame));
                    }
                    Output::Ping => messages.push(Message::Ping(bytes::Bytes::new())),
                    Output::Publish { id, sent_at, traceparent, request } => {
                        self.publish(id, (sent_at, traceparent), request, out);
                    }
                    Output::Typing(peer) => {
                        let (shared, user) = (self.shared.clone(), self.identity.user.clone());
                        tokio::spawn(async move { shared.typing(user, &peer).await });
                    }
                    Output::Offline => self.go_offline(),
                    Output::Fetch { after, limit, goes_on } => {
                        steps.push(Step::Fetch { after, limit, goes_on })
                    }
                    Output::StoreCursor(cursor) => {
                        self.store_cursor(cursor);
                    }
                    Output::Close(code, reason) => steps.push(Step::Close(code, reason)),
                }
            }
        }
        if messages.is_empty() {
            return Some(steps);
        }
        let written = self.socket.write(messages).await;
        self.traces.written(matches!(written, Written::All));
        match written {
            Written::All => Some(steps),
            Written::Gone => None,
            Written::Stuck => {
                Some(vec![Step::Close(CloseCode::Idle, "the client does not read".into())])
            }
        }
    }

    fn publish(
        &mut self,
        id: RequestId,
        (sent_at, parent): (i64, Option<Traceparent>),
        request: Request,
        out: &mut Vec<Output>,
    ) {
        let is_traced = self.shared.sampler.keeps(parent.as_ref());
        let span = if is_traced { spans::request(parent, &request) } else { Span::none() };
        let cause = span.traceparent();
        if let Some(cause) = cause {
            self.state.traced(&id, TraceId::from_bytes(cause.trace_id()));
        }
        self.traces.request(&id, span);
        let user = &self.identity.user;
        // The state has refused chats with oneself.
        let Some(chat) = Chat::between(user, request.peer()) else { return };
        let command = Command {
            from: user.clone(),
            session: self.seat.id,
            id,
            sent_at,
            received_at: now_ms(),
            traceparent: None,
            request,
        };
        let is_full = self.waiting.set(self.state.open_requests());
        let submitted = if is_full {
            Err(command.id)
        } else {
            self.shared.publisher.submit(&chat, command, cause, &self.seat.inbox)
        };
        if let Err(id) = submitted {
            if !is_traced {
                spans::keep_error("not_published");
            }
            self.state.not_published(&id, now_ms(), out);
        }
    }

    pub(super) fn store_cursor(&self, cursor: EventId) {
        let key = subject::cursor_key(&self.identity.user, &self.identity.device);
        self.shared.cursors.store(key, cursor);
    }

    fn go_offline(&mut self) {
        if std::mem::take(&mut self.is_present) {
            self.shared.presence.said_offline(&self.identity.user);
        }
    }
}
