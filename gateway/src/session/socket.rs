//! A session's socket: whole batches of frames in one write, every write with a deadline, and a decent goodbye.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use herald_proto::CloseCode;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        protocol::{CloseFrame, Role, WebSocketConfig},
    },
};

/// A server's end of a WebSocket over any byte stream.
pub struct Socket<S> {
    inner: WebSocketStream<S>,
    write_timeout: Duration,
}

/// How a write went.
pub enum Written {
    /// Everything was handed to the system.
    All,
    /// The client is gone.
    Gone,
    /// The client does not read.
    Stuck,
}

/// Allocated for each connection and kept; frames larger than it take more reads.
const READ_BUFFER: usize = 1024;
/// What may gather in a connection's write buffer before it is written.
const WRITE_BUFFER: usize = 16 * 1024;
/// How long a client has to answer a close frame.
const GOODBYE: Duration = Duration::from_secs(1);
/// The longest reason that fits a close frame beside its code (RFC 6455, 5.5), in bytes.
const REASON: usize = 123;

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// Takes a stream whose handshake is done. A message over `max_message` bytes ends the reading.
    pub async fn new(stream: S, max_message: usize, write_timeout: Duration) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(WRITE_BUFFER)
            .max_message_size(Some(max_message))
            .max_frame_size(Some(max_message));
        let inner = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
        Self { inner, write_timeout }
    }

    /// The next message.
    ///
    /// # Errors
    /// How the session has to be closed; `None` if the client is gone.
    pub async fn next(&mut self) -> Result<Message, Option<(CloseCode, String)>> {
        match self.inner.next().await {
            Some(Ok(message)) => Ok(message),
            Some(Err(Error::Capacity(_))) => {
                Err(Some((CloseCode::TooLarge, "the frame is far over the limit".into())))
            }
            Some(Err(Error::Utf8(_))) => {
                Err(Some((CloseCode::Abuse, "a text frame must be UTF-8".into())))
            }
            Some(Err(_)) | None => Err(None),
        }
    }

    /// Writes messages, all at once.
    pub async fn write(&mut self, messages: Vec<Message>) -> Written {
        let write = async {
            for message in messages {
                self.inner.feed(message).await?;
            }
            self.inner.flush().await
        };
        match timeout(self.write_timeout, write).await {
            Ok(Ok(())) => Written::All,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a client is gone");
                Written::Gone
            }
            Err(_) => Written::Stuck,
        }
    }

    /// Says goodbye, as far as the client listens.
    pub async fn close(mut self, code: CloseCode, reason: &str) {
        let reason = reason.get(..reason.floor_char_boundary(REASON)).unwrap_or_default();
        let frame = CloseFrame { code: code.code().into(), reason: reason.into() };
        let goodbye = async {
            self.inner.send(Message::Close(Some(frame))).await?;
            // The client's own close frame ends the stream; what it sent before is not read any more.
            while let Some(Ok(_)) = self.inner.next().await {}
            Ok::<(), Error>(())
        };
        if !matches!(timeout(GOODBYE, goodbye).await, Ok(Ok(()))) {
            tracing::debug!(herald.close_code = code.code(), "a client did not say goodbye");
        }
    }
}
