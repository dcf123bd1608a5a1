//! `herald-gateway`: terminates clients' WebSockets.

use anyhow::Context;
use clap::Parser;
use herald_gateway::{
    app::{self, Listeners},
    config::{Command, Config},
};
use herald_proto::{health, signal, telemetry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    config.runtime.clone().run(run(config)).context("start the runtime")?
}

async fn run(mut config: Config) -> anyhow::Result<()> {
    if let Some(Command::Healthcheck) = config.command {
        return Ok(health::ask(config.listen).await?);
    }
    let telemetry = telemetry::init("herald-gateway", &config.telemetry).await?;
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("--listen {}", config.listen))?;
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
