//! A TCP proxy between a program and a server, which delays, holds up or cuts what goes through.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// Chunks on their way in one direction of a connection; beyond them its sender is held up.
const IN_FLIGHT: usize = 256;
const CHUNK: usize = 16 * 1024;

/// What happens to what goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It passes.
    Pass,
    /// It passes later, in each direction.
    Delay(Duration),
    /// It vanishes from sight: nothing passes and nobody is told. Once it ends, what was held up comes through, as TCP
    /// has it when a network is whole again.
    Hole,
    /// Connections are closed, and new ones as soon as they are made.
    Cut,
}

/// The mode, and how often connections were cut so far.
#[derive(Debug, Clone, Copy)]
struct State {
    mode: Mode,
    cuts: u64,
}

/// A proxy on a port of 127.0.0.1. Dropping it cuts everything.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// A proxy that passes everything on to `server`.
    ///
    /// # Errors
    /// If it can't listen.
    pub async fn start(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (state, _) = watch::channel(State { mode: Mode::Pass, cuts: 0 });
        let task = tokio::spawn(listen(listener, server, state.clone()));
        Ok(Self { address, state, task })
    }

    /// Where to connect instead of to the server.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what happens from now on.
    pub fn set(&self, mode: Mode) {
        self.state.send_modify(|state| {
            state.mode = mode;
            state.cuts += u64::from(mode == Mode::Cut);
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Mode::Cut);
        self.task.abort();
    }
}

async fn listen(listener: TcpListener, server: SocketAddr, state: watch::Sender<State>) {
    // Accepting fails for want of files, and then works again.
    loop {
        if let Ok((client, _)) = listener.accept().await {
            tokio::spawn(serve(client, server, state.subscribe()));
        }
    }
}

async fn serve(client: TcpStream, server: SocketAddr, mut state: watch::Receiver<State>) {
    let State { mode, cuts } = *state.borrow_and_update();
    if mode == Mode::Cut {
        return;
    }
    let pass = async {
        let server = TcpStream::connect(server).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::join!(
            pump(from_client, to_server, state.clone()),
            pump(from_server, to_client, state.clone()),
        );
        std::io::Result::Ok(())
    };
    let mut watched = state.clone();
    tokio::select! {
        // Either end is told of the other's end by the close.
        _ = pass => {}
        _ = watched.wait_for(|state| state.cuts != cuts) => {}
    }
}

/// One direction of a connection, until it ends.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: watch::Receiver<State>) {
    let (sender, mut chunks) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
    let mut held = state.clone();
    let read = async move {
        let mut buffer = vec![0; CHUNK];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let delay = match state.borrow().mode {
                Mode::Delay(delay) => delay,
                Mode::Pass | Mode::Hole | Mode::Cut => Duration::ZERO,
            };
            let chunk = buffer.iter().take(length).copied().collect();
            if sender.send((Instant::now() + delay, chunk)).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, chunk)) = chunks.recv().await {
            sleep_until(due).await;
            if held.wait_for(|state| state.mode != Mode::Hole).await.is_err()
                || to.write_all(&chunk).await.is_err()
            {
                return;
            }
        }
        // Half-closed, as the sender has left it; fails only if the other end is gone as well.
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await.unwrap();
                });
            }
        });
        address
    }

    async fn round_trip(stream: &mut TcpStream, byte: u8) -> std::io::Result<u8> {
        stream.write_all(&[byte]).await?;
        stream.read_u8().await
    }

    #[tokio::test]
    async fn a_hole_holds_up_and_a_cut_ends_connections() {
        const GENEROUS: Duration = Duration::from_secs(30);
        let proxy = Proxy::start(echo().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(round_trip(&mut stream, 1).await.unwrap(), 1);
        proxy.set(Mode::Delay(Duration::from_millis(5)));
        assert_eq!(round_trip(&mut stream, 2).await.unwrap(), 2);
        proxy.set(Mode::Hole);
        let held = timeout(Duration::from_millis(50), round_trip(&mut stream, 3)).await;
        assert!(held.is_err(), "{held:?}");
        proxy.set(Mode::Pass);
        assert_eq!(timeout(GENEROUS, stream.read_u8()).await.unwrap().unwrap(), 3);
        proxy.set(Mode::Cut);
        proxy.set(Mode::Pass);
        assert!(timeout(GENEROUS, round_trip(&mut stream, 4)).await.unwrap().is_err());
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(round_trip(&mut stream, 5).await.unwrap(), 5);
    }
}
