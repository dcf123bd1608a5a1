//! `herald-worker`: stores messages, counts what is missed, publishes events.

use anyhow::Context;
use clap::Parser;
use herald_proto::{health, signal, telemetry};
use herald_worker::{
    app,
    config::{Cli, Command, LogFormat},
    deadletter, failpoint,
    store::Store,
    topology,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    cli.runtime.clone().run(run(cli)).context("start the runtime")?
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let format = match cli.log_format {
        LogFormat::Pretty => telemetry::LogFormat::Pretty,
        LogFormat::Json => telemetry::LogFormat::Json,
    };
    let _telemetry = telemetry::init("herald-worker", &cli.log, format)
        .map_err(anyhow::Error::from_boxed)
        .context("--log")?;
    let _failpoints = failpoint::setup();
    match cli.command {
        Command::Run(config) => {
            let listen = config.health.health_listen;
            let health = TcpListener::bind(listen)
                .await
                .with_context(|| format!("--health-listen {listen}"))?;
            let stop = CancellationToken::new();
            tokio::spawn(signal::cancel_on_signal(stop.clone()));
            app::run(*config, health, stop).await
        }
        Command::Migrate(database) => {
            let url = database.url().map_err(anyhow::Error::msg)?;
            let store = Store::connect(&url, database.database_connections).await?;
            store.migrate().await?;
            tracing::info!("the schema is up to date");
            Ok(())
        }
        Command::Healthcheck(args) => Ok(health::ask(args.health_listen).await?),
        Command::Deadletter(command) => deadletter::run(command).await,
        Command::Topology(command) => topology::change::run(command).await,
    }
}
