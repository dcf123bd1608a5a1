//! A client's connection, as cheap as it can be: small buffers, many frames a write, many frames a wake-up.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self, Message, Utf8Bytes,
        client::IntoClientRequest as _,
        protocol::{CloseFrame, WebSocketConfig},
    },
};

use super::wire::{self, Answered, Frame};

/// How long a login may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many frames are taken in one go.
const BATCH: usize = 64;

/// A session of a user's device `default`.
#[derive(Debug)]
pub struct Connection {
    socket: WebSocketStream<TcpStream>,
}

/// Why a session has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// In a few words.
    pub why: String,
    /// The milliseconds after which the server asks to come again.
    pub retry_after: Option<u64>,
}

impl Ended {
    /// Ended without a hint.
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), retry_after: None }
    }
}

impl Connection {
    /// Connects the user to a gateway in insecure mode, and waits until the session has begun: from then on no event is
    /// missed. `url` is `ws://host:port/path`; the user's name must need no escapes.
    ///
    /// # Errors
    /// If the user is not let in within 30 s.
    pub async fn login(url: &str, user: &str) -> Result<Self> {
        timeout(PATIENCE, Box::pin(open(url, user)))
            .await
            .context("not within 30 s")
            .flatten()
            .with_context(|| format!("connecting {user} to {url}"))
    }

    /// Connects a user's device, and waits for nothing more than the handshake.
    ///
    /// # Errors
    /// If there is no handshake within 30 s.
    pub async fn connect(url: &str, user: &str, device: &str) -> Result<Self> {
        timeout(PATIENCE, Box::pin(shake_hands(format!("{url}?userId={user}&deviceId={device}"))))
            .await
            .context("not within 30 s")
            .flatten()
            .with_context(|| format!("connecting {device} of {user} to {url}"))
    }

    /// Waits for frames and adds all that have come to `batch`. Dropping the future loses nothing.
    ///
    /// # Errors
    /// If the session has ended. `batch` may hold its last frames.
    pub async fn receive(&mut self, batch: &mut Vec<Utf8Bytes>) -> Result<(), Ended> {
        let mut message = self.socket.next().await;
        loop {
            match message {
                Some(Ok(Message::Text(text))) => batch.push(text),
                Some(Ok(Message::Close(frame))) => {
                    return Err(frame.map_or(Ended::new("closed without a code"), closed));
                }
                // Pings are answered by themselves.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => return Err(Ended::new("the connection is gone")),
            }
            if batch.len() >= BATCH {
                return Ok(());
            }
            match self.socket.next().now_or_never() {
                Some(next) => message = next,
                None if batch.is_empty() => message = self.socket.next().await,
                None => return Ok(()),
            }
        }
    }

    /// Writes all frames at once.
    ///
    /// # Errors
    /// If the session has ended.
    pub async fn send(&mut self, frames: &mut Vec<String>) -> Result<(), Ended> {
        if frames.is_empty() {
            return Ok(());
        }
        for frame in frames.drain(..) {
            self.socket.feed(Message::text(frame)).await?;
        }
        Ok(self.socket.flush().await?)
    }

    /// Says goodbye, without waiting for the answer.
    pub async fn close(mut self) {
        // It may be gone already, which is what is wanted.
        let _ = self.socket.close(None).await;
    }
}

impl From<tungstenite::Error> for Ended {
    fn from(error: tungstenite::Error) -> Self {
        Self::new(error.to_string())
    }
}

fn closed(frame: CloseFrame) -> Ended {
    let (code, reason) = (u16::from(frame.code), frame.reason);
    let hint = serde_json::from_str::<serde_json::Value>(&reason).ok();
    let retry_after = hint.and_then(|hint| hint.get("retryAfter")?.as_u64());
    Ended { why: format!("closed: {code} {reason}"), retry_after }
}

async fn shake_hands(url: String) -> Result<Connection> {
    let request = url.into_client_request()?;
    let uri = request.uri();
    if uri.scheme_str() != Some("ws") {
        bail!("only ws:// is supported");
    }
    let host = uri.host().context("no host")?.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(80))).await?;
    stream.set_nodelay(true)?;
    let config = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(16 * 1024);
    let (socket, _) = client_async_with_config(request, stream, Some(config)).await?;
    Ok(Connection { socket })
}

async fn open(url: &str, user: &str) -> Result<Connection> {
    let mut connection = shake_hands(format!("{url}?userId={user}")).await?;
    // An ack of nothing: its answer shows that the session is under way.
    let ended = |ended: Ended| anyhow::anyhow!(ended.why);
    connection.send(&mut vec![wire::ack(0)]).await.map_err(ended)?;
    let mut batch = Vec::new();
    loop {
        connection.receive(&mut batch).await.map_err(ended)?;
        for text in batch.drain(..) {
            let frame: Frame<'_> =
                serde_json::from_str(&text).with_context(|| format!("the frame {text}"))?;
            if frame.id.answers() == Some(Answered::Ack(0)) {
                return Ok(connection);
            }
        }
    }
}
