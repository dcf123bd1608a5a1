//! A plain client of Herald's protocol, for tests.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{
        Message,
        client::IntoClientRequest as _,
        http::{HeaderName, HeaderValue},
        protocol::CloseFrame,
    },
};

/// How long to wait for a frame.
const PATIENCE: Duration = Duration::from_secs(10);

/// One WebSocket session. Dropping it cuts the TCP connection without a close handshake, as a lost phone does.
///
/// What arrives while something else is waited for is kept, in order, for the next call that asks for it. Pings are
/// answered only while a call waits for a frame.
#[derive(Debug)]
pub struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    queue: VecDeque<Value>,
    requests: u64,
    closed: Option<(u16, String)>,
    is_present: bool,
}

impl Client {
    /// Connects to a `ws://` URL.
    ///
    /// # Errors
    /// If the handshake fails; the chain holds the [`tokio_tungstenite::tungstenite::Error`] with the HTTP status.
    pub async fn connect(url: &str) -> Result<Self> {
        Self::connect_with(url, &[]).await
    }

    /// Connects with further headers, such as `Authorization`.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_with(url: &str, headers: &[(&str, &str)]) -> Result<Self> {
        let mut request = url.into_client_request()?;
        for (name, value) in headers {
            request
                .headers_mut()
                .append(name.parse::<HeaderName>()?, value.parse::<HeaderValue>()?);
        }
        let connect = Box::pin(connect_async_with_config(request, None, true));
        let (socket, _) =
            timeout(PATIENCE, connect).await.context("the handshake takes over 10 s")??;
        Ok(Self { socket, queue: VecDeque::new(), requests: 0, closed: None, is_present: true })
    }

    /// Leaves `online` and `offline` out, also those kept already: they come at their own times between the frames of a test.
    #[must_use]
    pub fn without_presence(mut self) -> Self {
        self.is_present = false;
        self.queue.retain(|frame| !is_presence(frame));
        self
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// If the connection is gone.
    pub async fn send(&mut self, frame: &Value) -> Result<()> {
        self.send_text(&frame.to_string()).await
    }

    /// Sends any text.
    ///
    /// # Errors
    /// If the connection is gone.
    pub async fn send_text(&mut self, text: &str) -> Result<()> {
        self.send_message(Message::text(text)).await
    }

    /// Sends a binary message.
    ///
    /// # Errors
    /// If the connection is gone.
    pub async fn send_binary(&mut self, bytes: &[u8]) -> Result<()> {
        self.send_message(Message::binary(bytes.to_vec())).await
    }

    async fn send_message(&mut self, message: Message) -> Result<()> {
        timeout(PATIENCE, self.socket.send(message))
            .await
            .context("nobody takes the frame within 10 s")??;
        Ok(())
    }

    /// The next frame: the oldest that was kept, else the next to arrive, within 10 s.
    ///
    /// # Errors
    /// If none comes, or the session ends (then [`Self::expect_close`] tells how).
    pub async fn recv(&mut self) -> Result<Value> {
        match self.queue.pop_front() {
            Some(frame) => Ok(frame),
            None => self.arrival().await,
        }
    }

    /// Sends a request and gives its response, be it an error. Ids are counted: `r1`, `r2`, ….
    ///
    /// # Errors
    /// If no response comes within 10 s.
    pub async fn request(&mut self, payload_type: &str, payload: Value) -> Result<Value> {
        self.requests += 1;
        let id = format!("r{}", self.requests);
        let frame = json!({
            "type": "request", "id": id, "timestamp": now(), "payloadType": payload_type, "payload": payload,
        });
        self.send(&frame).await?;
        self.response(&id).await.with_context(|| format!("the response to {frame}"))
    }

    /// Acks an event and gives the response.
    ///
    /// # Errors
    /// If no response comes within 10 s.
    pub async fn ack(&mut self, id: u64) -> Result<Value> {
        self.send(&json!({"type": "ack", "id": id, "timestamp": now()})).await?;
        self.response(&id.to_string())
            .await
            .with_context(|| format!("the response to the ack of {id}"))
    }

    /// The response under that id.
    ///
    /// # Errors
    /// If none comes within 10 s.
    pub async fn response(&mut self, id: &str) -> Result<Value> {
        self.first(|frame| is(frame, "type", "response") && is(frame, "id", id)).await
    }

    /// The next event of that type; others are kept.
    ///
    /// # Errors
    /// If none comes within 10 s.
    pub async fn event(&mut self, event_type: &str) -> Result<Value> {
        self.first(|frame| is(frame, "type", "event") && is(frame, "eventType", event_type))
            .await
            .with_context(|| format!("the event {event_type}"))
    }

    /// An event of that type that has come already and was kept.
    ///
    /// # Errors
    /// If there is none.
    pub fn queued(&mut self, event_type: &str) -> Result<Value> {
        let at = self.queue.iter().position(|frame| is(frame, "eventType", event_type));
        at.and_then(|at| self.queue.remove(at)).with_context(|| format!("no {event_type} is kept"))
    }

    /// The next event of whatever type; responses are kept.
    ///
    /// # Errors
    /// If none comes within 10 s.
    pub async fn next_event(&mut self) -> Result<Value> {
        self.first(|frame| is(frame, "type", "event")).await.context("the next event")
    }

    /// Proves that nothing more was sent until now, by a round trip: an ack of 0, which acks nothing, is answered, and
    /// nothing came before its answer that was not asked for.
    ///
    /// # Errors
    /// If there is anything more; shows it.
    pub async fn nothing_more(&mut self) -> Result<()> {
        self.ack(0).await?;
        ensure!(
            self.queue.is_empty(),
            "there is more: {:?}",
            self.queue.iter().map(Value::to_string).collect::<Vec<_>>()
        );
        Ok(())
    }

    /// Waits for the server's close frame: its code and reason (1005 and nothing if it gives none, RFC 6455 7.1.5).
    ///
    /// # Errors
    /// If none comes within 10 s, or the connection is cut without one.
    pub async fn expect_close(&mut self) -> Result<(u16, String)> {
        loop {
            if let Some(close) = self.closed.take() {
                return Ok(close);
            }
            match self.arrival().await {
                Ok(frame) => self.queue.push_back(frame),
                Err(error) if self.closed.is_none() => return Err(error.context("no close frame")),
                Err(_) => {}
            }
        }
    }

    /// Ends the session with a close handshake.
    ///
    /// # Errors
    /// If the server does not answer it within 10 s.
    pub async fn close(mut self) -> Result<()> {
        self.socket.close(None).await?;
        let end = async { while let Some(Ok(_)) = self.socket.next().await {} };
        timeout(PATIENCE, end).await.context("the close is not answered within 10 s")
    }

    async fn first(&mut self, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        if let Some(frame) =
            self.queue.iter().position(&wanted).and_then(|at| self.queue.remove(at))
        {
            return Ok(frame);
        }
        let search = async {
            loop {
                let frame = self.arrival().await?;
                if wanted(&frame) {
                    return Ok(frame);
                }
                self.queue.push_back(frame);
            }
        };
        match timeout(PATIENCE, search).await {
            Ok(found) => found,
            Err(_) => bail!(
                "not within 10 s; {} frames came instead, the first: {:?}",
                self.queue.len(),
                self.queue.front()
            ),
        }
    }

    async fn arrival(&mut self) -> Result<Value> {
        loop {
            let message =
                timeout(PATIENCE, self.socket.next()).await.context("no frame within 10 s")?;
            match message.context("the connection has ended")?? {
                Message::Text(text) => {
                    let frame =
                        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
                    if self.is_present || !is_presence(&frame) {
                        return Ok(frame);
                    }
                }
                Message::Close(frame) => {
                    let (code, reason) = frame
                        .map_or((1005, String::new()), |CloseFrame { code, reason }| {
                            (code.into(), reason.as_str().to_owned())
                        });
                    let error = format!("the server closed the session: {code} {reason}");
                    self.closed = Some((code, reason));
                    bail!(error);
                }
                Message::Binary(bytes) => bail!("a binary message of {} bytes", bytes.len()),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }
}

fn is_presence(frame: &Value) -> bool {
    is(frame, "eventType", "online") || is(frame, "eventType", "offline")
}

fn is(frame: &Value, field: &str, value: &str) -> bool {
    frame.get(field).and_then(Value::as_str) == Some(value)
}

/// Milliseconds since the Unix epoch.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
