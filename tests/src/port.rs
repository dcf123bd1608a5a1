//! Ports for servers that have to come back on the same one after they were killed.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Result, bail};

/// Below the range that Linux hands out for outgoing connections (32768 and up): there, a client that reconnects
/// to a server that is down could be given the server's own port, and keep it from coming back.
const RANGE: std::ops::Range<u16> = 18_000..32_000;

/// A port on 127.0.0.1 that is free now. Another process may take it first, so be ready to ask again.
///
/// # Errors
/// If none of many tried is free.
pub fn free() -> Result<u16> {
    for _ in 0..200 {
        let port = fastrand::u16(RANGE);
        if is_free(port) {
            return Ok(port);
        }
    }
    bail!("found no free port on 127.0.0.1 between {} and {}", RANGE.start, RANGE.end)
}

/// Whether nothing listens on that port of 127.0.0.1.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
