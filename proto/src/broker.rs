//! The connection to NATS, set up alike in both programs.

use std::{path::PathBuf, time::Duration};

use async_nats::{Client, ConnectError, ConnectOptions, Event, ServerAddr};

use crate::telemetry;

/// Where NATS is and how to be let in.
#[derive(Debug, Clone, clap::Args)]
pub struct BrokerArgs {
    /// NATS servers, separated by commas.
    #[arg(long, env = "HERALD_NATS_URL", default_value = "nats://127.0.0.1:4222")]
    pub nats_url: String,
    /// NATS credentials file (JWT and nkey seed).
    #[arg(long, env = "HERALD_NATS_CREDS")]
    pub nats_creds: Option<PathBuf>,
    /// NATS user name, with --nats-password-file.
    #[arg(long, env = "HERALD_NATS_USER", requires = "nats_password_file")]
    pub nats_user: Option<String>,
    /// File that holds the NATS password.
    #[arg(long, env = "HERALD_NATS_PASSWORD_FILE", requires = "nats_user")]
    pub nats_password_file: Option<PathBuf>,
    /// CA certificates (PEM) to trust for NATS; asks for TLS.
    #[arg(long, env = "HERALD_NATS_CA")]
    pub nats_ca: Option<PathBuf>,
}

/// Why the broker can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file named by a flag can't be read.
    #[error("--{flag} {path}: {source}")]
    File {
        /// The flag.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `--nats-url` names no server.
    #[error("--nats-url {url}: {source}")]
    Url {
        /// The text given.
        url: String,
        /// Why.
        source: std::io::Error,
    },
    /// The connection was refused for good, for example by authentication.
    #[error("cannot connect to NATS at {url}: {source}")]
    Connect {
        /// The servers tried.
        url: String,
        /// Why.
        source: ConnectError,
    },
}

impl BrokerArgs {
    /// The servers of `--nats-url`.
    ///
    /// # Errors
    /// [`Error::Url`].
    pub fn servers(&self) -> Result<Vec<ServerAddr>, Error> {
        let servers = self.nats_url.split(',').map(|url| url.trim().parse());
        servers
            .collect::<Result<_, _>>()
            .map_err(|source| Error::Url { url: self.nats_url.clone(), source })
    }
}

/// The longest pause between two tries to reconnect.
const RECONNECT_CAP: Duration = Duration::from_secs(4);

/// Connects, and keeps reconnecting for ever with growing, jittered pauses. Answers come in under `inbox`, one of the
/// prefixes in [`subject`](crate::subject).
///
/// # Errors
/// [`Error`] if the options are bad or the first connection fails.
pub async fn connect(args: &BrokerArgs, name: &str, inbox: &str) -> Result<Client, Error> {
    let mut options = ConnectOptions::new()
        .name(name)
        .custom_inbox_prefix(inbox)
        .connection_timeout(Duration::from_secs(5))
        .ping_interval(Duration::from_secs(10))
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .reconnect_delay_callback(reconnect_delay)
        .event_callback(log_event);
    if let Some(path) = &args.nats_creds {
        options = options.credentials_file(path).await.map_err(|source| Error::File {
            flag: "nats-creds",
            path: path.clone(),
            source,
        })?;
    }
    if let (Some(user), Some(path)) = (&args.nats_user, &args.nats_password_file) {
        let password = std::fs::read_to_string(path).map_err(|source| Error::File {
            flag: "nats-password-file",
            path: path.clone(),
            source,
        })?;
        options = options.user_and_password(user.clone(), password.trim_end().to_owned());
    }
    if let Some(path) = &args.nats_ca {
        options = options.add_root_certificates(path.clone()).require_tls(true);
    }
    let servers = args.servers()?;
    if let Some(first) = servers.first() {
        telemetry::broker_is_at(first.host(), first.port());
    }
    options
        .connect(servers)
        .await
        .map_err(|source| Error::Connect { url: args.nats_url.clone(), source })
}

/// Hands what was sent to the broker before the program ends. Gives up after a while: a broker that is away is waited for
/// by nobody who is going.
pub async fn flush(client: &Client) {
    match tokio::time::timeout(FLUSH, client.flush()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the last messages to NATS may be lost"),
        Err(_) => tracing::warn!("NATS is away, the last messages to it are lost"),
    }
}

/// How long to try.
const FLUSH: Duration = Duration::from_secs(2);
/// How many messages a subscription may hold before more are dropped as `SlowConsumer`.
const SUBSCRIPTION_CAPACITY: usize = 16 * 1024;

/// How long to wait before the next try to connect, after so many in vain.
pub fn reconnect_delay(attempts: usize) -> Duration {
    let exponent = u32::try_from(attempts).unwrap_or(u32::MAX).min(6);
    let ceiling =
        Duration::from_millis(50).saturating_mul(2_u32.saturating_pow(exponent)).min(RECONNECT_CAP);
    ceiling.mul_f64(0.5 + 0.5 * fastrand::f64())
}

#[allow(clippy::unused_async)] // the signature is the client's
async fn log_event(event: Event) {
    match event {
        Event::Connected => tracing::info!("connected to NATS"),
        Event::Disconnected => tracing::warn!("lost the connection to NATS, reconnecting"),
        Event::SlowConsumer(id) => {
            tracing::warn!(
                messaging.nats.subscription = id,
                "a subscription overflowed, its messages are dropped"
            );
        }
        Event::Closed => tracing::info!("the connection to NATS is closed"),
        other => tracing::warn!(event = %other, "NATS"),
    }
}
