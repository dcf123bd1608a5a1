//! A connection under way: commands out, messages in.

use std::{collections::VecDeque, io, sync::Arc};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{
    PATIENCE, Receive,
    dial::Stream,
    protocol::{Op, parse},
};
use crate::metrics::nats::Traffic;

/// How much is read at once, in bytes.
pub(super) const BUFFER: usize = 64 * 1024;

/// A connection that a server has let in.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    read: BytesMut,
    /// The rounds whose pongs are to come.
    pings: VecDeque<u64>,
    /// Whether anything came in since the last ping.
    was_heard: bool,
    traffic: Arc<Traffic>,
}

impl Connection {
    /// A connection of which something may have been read already.
    pub(super) fn new(stream: Box<dyn Stream>, read: BytesMut, traffic: Arc<Traffic>) -> Self {
        Self { stream, read, pings: VecDeque::new(), was_heard: true, traffic }
    }

    /// The round that the last ping confirms, if its pong is to come.
    pub(super) fn last_ping(&self) -> Option<u64> {
        self.pings.back().copied()
    }

    /// Reads what there is, and returns how many bytes.
    pub(super) async fn read(&mut self) -> io::Result<usize> {
        let read = self.stream.read_buf(&mut self.read).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.was_heard = true;
        Ok(read)
    }

    /// An error if nothing has come in since this was asked last.
    pub(super) fn expect_heard(&mut self) -> io::Result<()> {
        match std::mem::take(&mut self.was_heard) {
            true => Ok(()),
            false => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Sends commands, and after them a ping if a round is to be confirmed.
    pub(super) async fn send(
        &mut self,
        mut commands: Vec<u8>,
        round: Option<u64>,
    ) -> io::Result<()> {
        if let Some(round) = round {
            commands.extend(b"PING\r\n");
            self.pings.push_back(round);
        }
        if commands.is_empty() {
            return Ok(());
        }
        self.traffic.sent(0, commands.len());
        let sent = async {
            self.stream.write_all(&commands).await?;
            self.stream.flush().await
        };
        timeout(PATIENCE, sent).await?
    }

    /// Hands on what was read, up to a pong: returns the round that it confirms. `None` if all is handed on.
    pub(super) async fn receive(&mut self, receiver: &impl Receive) -> io::Result<Option<u64>> {
        let (mut done, mut messages, mut is_pinged) = (0, 0, false);
        let confirmed = loop {
            let rest = self.read.get(done..).unwrap_or_default();
            let Some((op, used)) = parse(rest).map_err(io::Error::other)? else { break None };
            done += used;
            match op {
                Op::Message(message) => {
                    messages += 1;
                    receiver.receive(&message);
                }
                Op::Pong => {
                    if let Some(round) = self.pings.pop_front() {
                        break Some(round);
                    }
                }
                Op::Ping => is_pinged = true,
                Op::Refused(why) => tracing::error!(error = why, "NATS refuses something"),
                Op::Info(_) | Op::Ok => {}
            }
        };
        self.traffic.received(messages, done);
        self.read.advance(done);
        self.read.reserve(BUFFER / 2);
        if is_pinged {
            self.send(b"PONG\r\n".to_vec(), None).await?;
        }
        Ok(confirmed)
    }
}
