//! `herald-gateway`: terminates clients' WebSockets.

use std::{io, net::SocketAddr};

use anyhow::Context;
use clap::Parser;
use herald_gateway::{
    app::{self, Listeners},
    config::{Command, Config},
};
use herald_proto::{health, instance, signal, telemetry};
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    config.runtime.clone().run(run(config)).context("start the runtime")?
}

/// As many connections as the system allows may wait to be taken: all clients can come at once, and one that finds no
/// room tries again only after a second.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(i32::MAX.cast_unsigned())
}

async fn run(mut config: Config) -> anyhow::Result<()> {
    if let Some(Command::Healthcheck) = config.command {
        return Ok(health::ask(config.listen).await?);
    }
    let name = config.gateway_id.get_or_insert_with(|| instance::name("gateway"));
    let telemetry = telemetry::init("herald-gateway", name, &config.telemetry).await?;
    let listener = listen(config.listen).with_context(|| format!("--listen {}", config.listen))?;
    let admin = match config.admin_listen {
        Some(address) => Some(
            TcpListener::bind(address)
                .await
                .with_context(|| format!("--admin-listen {address}"))?,
        ),
        None => None,
    };
    config.otlp.share(&config.telemetry);
    let stop = CancellationToken::new();
    tokio::spawn(signal::cancel_on_signal(stop.clone()));
    let ran = app::run(config, Listeners { clients: listener, admin }, stop).await;
    telemetry.shutdown().await;
    ran
}
