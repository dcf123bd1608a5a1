//! Just enough HTTP to ask a program's health.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(5);

/// `GET path`: the status and the body. Gives up after 5 s.
///
/// # Errors
/// If nothing answers in HTTP.
pub async fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    timeout(PATIENCE, exchange(address, "GET", path, ""))
        .await
        .context("no answer within 5 s")?
        .with_context(|| format!("GET http://{address}{path}"))
}

/// `PUT path` with a text: the status and the body. Gives up after 5 s.
///
/// # Errors
/// If nothing answers in HTTP.
pub async fn put(address: SocketAddr, path: &str, body: &str) -> Result<(u16, String)> {
    timeout(PATIENCE, exchange(address, "PUT", path, body))
        .await
        .context("no answer within 5 s")?
        .with_context(|| format!("PUT http://{address}{path}"))
}

/// Whether `/readyz` answers 200.
///
/// # Errors
/// If it does not; says what it answered.
pub async fn ready(address: SocketAddr) -> Result<()> {
    let (status, body) = get(address, "/readyz").await?;
    ensure!(status == 200, "http://{address}/readyz answered {status}: {}", body.trim());
    Ok(())
}

/// HTTP/1.0, so that the answer ends with the connection and is never chunked.
async fn exchange(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
    let status =
        head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no HTTP status")?;
    Ok((status, body.to_owned()))
}
