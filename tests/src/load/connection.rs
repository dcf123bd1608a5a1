//! A client's connection, as cheap as it can be: small buffers, many frames a write, many frames a wake-up.

use std::{fmt, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail};
use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use tokio::{
    net::{TcpSocket, TcpStream, lookup_host},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self, Message, Utf8Bytes,
        client::IntoClientRequest as _,
        protocol::{CloseFrame, WebSocketConfig},
    },
};

use super::{
    login::Login,
    wire::{self, Answered, Frame},
};

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
    /// Connects the user's device `default` to a gateway in insecure mode, as [`begin`](Self::begin) does. `url` is
    /// `ws://host:port/path`; the user's name must need no escapes.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub async fn login(url: &str, user: &str) -> Result<Self> {
        Self::begin(&Login::new(url, user, "default")).await
    }

    /// Connects a user's device, as [`open`](Self::open) does.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn connect(url: &str, user: &str, device: &str) -> Result<Self> {
        Self::open(&Login::new(url, user, device)).await
    }

    /// Comes in, and waits until the session has begun: from then on no event is missed.
    ///
    /// # Errors
    /// If there is no session within 30 s; an [`Ended`] if the gateway has ended it.
    pub async fn begin(login: &Login) -> Result<Self> {
        timeout(PATIENCE, Box::pin(begin(login)))
            .await
            .context("not within 30 s")
            .flatten()
            .with_context(|| login.to_string())
    }

    /// Comes in, and waits for nothing more than the handshake.
    ///
    /// # Errors
    /// If there is no handshake within 30 s.
    pub async fn open(login: &Login) -> Result<Self> {
        timeout(PATIENCE, Box::pin(shake_hands(login)))
            .await
            .context("not within 30 s")
            .flatten()
            .with_context(|| login.to_string())
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

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Ended {}

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

async fn shake_hands(login: &Login) -> Result<Connection> {
    let Login { url, user, device, source } = login;
    let request = format!("{url}?userId={user}&deviceId={device}").into_client_request()?;
    let uri = request.uri();
    if uri.scheme_str() != Some("ws") {
        bail!("only ws:// is supported");
    }
    let host = uri.host().context("no host")?.trim_start_matches('[').trim_end_matches(']');
    let at = (host, uri.port_u16().unwrap_or(80));
    let stream = match source {
        None => TcpStream::connect(at).await?,
        Some(source) => {
            let to = lookup_host(at).await?.find(|to| to.is_ipv4() == source.is_ipv4());
            let socket = if source.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.bind(SocketAddr::new(*source, 0))?;
            socket.connect(to.context("no address of the source's kind")?).await?
        }
    };
    stream.set_nodelay(true)?;
    let config = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(16 * 1024);
    let (socket, _) = client_async_with_config(request, stream, Some(config)).await?;
    Ok(Connection { socket })
}

async fn begin(login: &Login) -> Result<Connection> {
    let mut connection = shake_hands(login).await?;
    // An ack of nothing: its answer shows that the session is under way.
    connection.send(&mut vec![wire::ack(0)]).await?;
    let mut batch = Vec::new();
    loop {
        connection.receive(&mut batch).await?;
        for text in batch.drain(..) {
            let frame: Frame<'_> =
                serde_json::from_str(&text).with_context(|| format!("the frame {text}"))?;
            if frame.id.answers() == Some(Answered::Ack(0)) {
                return Ok(connection);
            }
        }
    }
}
