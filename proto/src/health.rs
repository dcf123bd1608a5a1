//! `healthcheck`: asks a program on this machine whether it is ready, for container runtimes that only run commands.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// Why the program is not ready.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing answers there.
    #[error("nothing answers at {address}: {source}")]
    Unreachable {
        /// The address asked.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// It takes too long.
    #[error("{0} has not answered within {PATIENCE:?}")]
    Silent(SocketAddr),
    /// It says that it is not ready.
    #[error("{address} is not ready: {said}")]
    NotReady {
        /// The address asked.
        address: SocketAddr,
        /// The first and the last line of what it said.
        said: String,
    },
}

const PATIENCE: Duration = Duration::from_secs(4);
/// More than a health endpoint says.
const MOST: u64 = 4096;

/// Asks `/readyz` of the program that listens on `listen`, over loopback if it listens everywhere.
///
/// # Errors
/// [`Error`] unless it answers 200.
pub async fn ask(listen: SocketAddr) -> Result<(), Error> {
    let address = SocketAddr::new(near(listen.ip()), listen.port());
    let answer = timeout(PATIENCE, exchange(address)).await.map_err(|_| Error::Silent(address))?;
    let answer = answer.map_err(|source| Error::Unreachable { address, source })?;
    let status = answer.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") {
        return Ok(());
    }
    let body = answer.lines().last().unwrap_or_default();
    Err(Error::NotReady { address, said: format!("{status}, {body}") })
}

fn near(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// HTTP/1.0, so that the answer ends with the connection and is never chunked.
async fn exchange(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /readyz HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
