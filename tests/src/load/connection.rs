//! A client's connection, as cheap as it can be: small buffers, many frames a write, many frames a wake-up.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self, Message, Utf8Bytes, client::IntoClientRequest as _, protocol::WebSocketConfig,
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

/// Why a session has ended, in a few words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended(pub String);

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
                    let frame = frame.map(|frame| (u16::from(frame.code), frame.reason));
                    return Err(match frame {
                        Some((code, reason)) => Ended(format!("closed: {code} {reason}")),
                        None => Ended("closed without a code".into()),
                    });
                }
                // Pings are answered by themselves.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => return Err(Ended("the connection is gone".into())),
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
        Self(error.to_string())
    }
}

async fn open(url: &str, user: &str) -> Result<Connection> {
    let request = format!("{url}?userId={user}").into_client_request()?;
    let uri = request.uri();
    if uri.scheme_str() != Some("ws") {
        bail!("only ws:// is supported");
    }
    let host = uri.host().context("no host")?.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(80))).await?;
    stream.set_nodelay(true)?;
    let config = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(16 * 1024);
    let (socket, _) = client_async_with_config(request, stream, Some(config)).await?;
    let mut connection = Connection { socket };
    // An ack of nothing: its answer shows that the session is under way.
    let ended = |ended: Ended| anyhow::anyhow!(ended.0);
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
