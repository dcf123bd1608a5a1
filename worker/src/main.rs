//! `herald-worker`: stores messages, counts what is missed, publishes events.

use anyhow::Context;
use clap::Parser;
use herald_proto::{health, signal, telemetry};
use herald_worker::{
    app,
    config::{Cli, Command},
    deadletter, failpoint,
    store::Store,
    topology,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    cli.runtime.clone().run(start(cli)).context("start the runtime")?
}

async fn start(mut cli: Cli) -> anyhow::Result<()> {
    let telemetry = match &cli.command {
        Command::Run(config) => {
            telemetry::init("herald-worker", &config.name, &cli.telemetry).await?
        }
        // Beside a worker that runs: traces, and who may change what is logged, are its own.
        _ => telemetry::log(&cli.telemetry.log, cli.telemetry.log_format)?,
    };
    if let Command::Run(config) = &mut cli.command {
        config.otlp.share(&cli.telemetry);
    }
    let _failpoints = failpoint::setup();
    let ran = run(cli.command).await;
    telemetry.shutdown().await;
    ran
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
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
