//! The gateway's configuration: flags, environment variables and their defaults.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{ArgGroup, Args, Parser, Subcommand};
use herald_proto::{
    broker::BrokerArgs, metrics::otlp::OtlpArgs, runtime::RuntimeArgs, telemetry::TelemetryArgs,
};

/// Herald's gateway: terminates clients' WebSockets.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "herald-gateway",
    version,
    group = ArgGroup::new("auth").required(true).multiple(false),
    subcommand_negates_reqs = true
)]
pub struct Config {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Where clients connect (`/ws`), and where `/healthz` and `/readyz` are served.
    #[arg(long, env = "HERALD_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Where operators are served: `/metrics`, and `/healthz` and `/readyz`, which do not wait behind clients there.
    /// [default: nowhere]
    #[arg(long, env = "HERALD_ADMIN_LISTEN")]
    pub admin_listen: Option<SocketAddr>,
    /// Where metrics are sent.
    #[command(flatten)]
    pub otlp: OtlpArgs,
    /// This gateway's name among its peers, 1-64 bytes; must differ from every other's and change with every start.
    /// [default: the host's name and a random suffix]
    #[arg(long, env = "HERALD_GATEWAY_ID")]
    pub gateway_id: Option<String>,
    /// The broker.
    #[command(flatten)]
    pub broker: BrokerArgs,
    /// How clients are authenticated.
    #[command(flatten)]
    pub auth: AuthArgs,
    /// Which part of the requests is traced, from 0 to 1, if traces are sent anywhere. A request that is not costs
    /// nothing for it.
    #[arg(long, env = "HERALD_TRACE_RATIO", default_value_t = 0.01)]
    pub trace_ratio: f64,
    /// Requests a second that are traced because their clients trace them.
    #[arg(long, env = "HERALD_CLIENT_TRACES", default_value_t = 100)]
    pub client_traces: u32,
    /// What a client may do.
    #[command(flatten)]
    pub limits: Limits,
    /// How long a gateway that falls silent still counts as alive.
    #[arg(long, env = "HERALD_LEASE", default_value = "10s", value_parser = humantime::parse_duration)]
    pub lease: Duration,
    /// How long a user whose last connection was lost still counts as online.
    #[arg(long, env = "HERALD_GRACE", default_value = "5s", value_parser = humantime::parse_duration)]
    pub grace: Duration,
    /// How often sessions are compared with their logs, so that a lost live event is found.
    #[arg(long, env = "HERALD_SWEEP", default_value = "30s", value_parser = humantime::parse_duration)]
    pub sweep: Duration,
    /// How long open requests may take to finish after SIGTERM; saying goodbye takes a few seconds more.
    #[arg(long, env = "HERALD_DRAIN_TIMEOUT", default_value = "20s", value_parser = humantime::parse_duration)]
    pub drain_timeout: Duration,
    /// The machine.
    #[command(flatten)]
    pub runtime: RuntimeArgs,
    /// Logs and traces.
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
}

/// What to do instead of serving.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Command {
    /// Ask the gateway that serves on --listen, on this machine, whether it is ready; fails if it is not.
    Healthcheck,
}

/// How clients are authenticated: by a JWT whose `sub` is the user id. Exactly one way has to be chosen.
#[derive(Debug, Clone, Default, Args)]
#[group(skip)]
pub struct AuthArgs {
    /// File with the secret of HS256 tokens.
    #[arg(long, env = "HERALD_AUTH_HS256_SECRET_FILE", group = "auth")]
    pub auth_hs256_secret_file: Option<PathBuf>,
    /// JWKS with the keys of RS256, ES256 and EdDSA tokens: a file's path or an http(s) URL.
    #[arg(long, env = "HERALD_AUTH_JWKS", group = "auth")]
    pub auth_jwks: Option<String>,
    /// FOR DEVELOPMENT ONLY: believe whatever `?userId=` says.
    #[arg(long, env = "HERALD_INSECURE_AUTH", group = "auth")]
    pub insecure_auth: bool,
    /// The audience (`aud`) that tokens must have.
    #[arg(long, env = "HERALD_AUTH_AUDIENCE")]
    pub auth_audience: Option<String>,
    /// The issuer (`iss`) that tokens must have.
    #[arg(long, env = "HERALD_AUTH_ISSUER")]
    pub auth_issuer: Option<String>,
}

/// What a client may do.
#[derive(Debug, Clone, Args)]
pub struct Limits {
    /// The largest frame, in bytes. One up to four times as large is refused, a larger one ends the session.
    #[arg(long, env = "HERALD_MAX_FRAME_BYTES", default_value_t = 64 * 1024)]
    pub max_frame_bytes: usize,
    /// The most requests a session may have open.
    #[arg(long, env = "HERALD_MAX_OPEN_REQUESTS", default_value_t = 64)]
    pub max_open_requests: usize,
    /// The most events sent to a session and not acked.
    #[arg(long, env = "HERALD_WINDOW", default_value_t = 64)]
    pub window: usize,
    /// The most bytes of events sent to a session and not acked.
    #[arg(long, env = "HERALD_WINDOW_BYTES", default_value_t = 1 << 20)]
    pub window_bytes: usize,
    /// Frames a second a session may send.
    #[arg(long, env = "HERALD_RATE", default_value_t = 1000)]
    pub rate: u32,
    /// Frames a session may send at once before --rate holds.
    #[arg(long, env = "HERALD_BURST", default_value_t = 2000)]
    pub burst: u32,
    /// The most sessions on this gateway.
    #[arg(long, env = "HERALD_MAX_SESSIONS", default_value_t = 200_000)]
    pub max_sessions: usize,
    /// Clients a second that may come in; who comes too fast is told to come again later (1013).
    #[arg(long, env = "HERALD_ACCEPT_RATE", default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..))]
    pub accept_rate: u32,
    /// Clients a second that are sent elsewhere when the gateway drains: the more there are, the longer their hints to
    /// reconnect are spread.
    #[arg(long, env = "HERALD_RECONNECT_RATE", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub reconnect_rate: u32,
    /// The most requests of all sessions on their way to the broker.
    #[arg(long, env = "HERALD_MAX_PUBLISHES", default_value_t = 8192)]
    pub max_publishes: usize,
    /// The most requests of all sessions that wait for their answers: more are `unavailable` at once.
    #[arg(long, env = "HERALD_MAX_WAITING", default_value_t = 16_384)]
    pub max_waiting: usize,
    /// How long a connection may take to become a session.
    #[arg(long, env = "HERALD_HANDSHAKE_TIMEOUT", default_value = "10s", value_parser = humantime::parse_duration)]
    pub handshake_timeout: Duration,
    /// The most connections in that state. Others wait, and the client that is waited for longest is cut off after two
    /// seconds.
    #[arg(long, env = "HERALD_MAX_HANDSHAKES", default_value_t = 4096)]
    pub max_handshakes: usize,
    /// How long an event may stay unacked before it is sent again.
    #[arg(long, env = "HERALD_ACK_WAIT", default_value = "15s", value_parser = humantime::parse_duration)]
    pub ack_wait: Duration,
    /// How long a request may take before it is answered with `unavailable`.
    #[arg(long, env = "HERALD_REQUEST_TIMEOUT", default_value = "10s", value_parser = humantime::parse_duration)]
    pub request_timeout: Duration,
    /// How long a client may be silent before it is pinged.
    #[arg(long, env = "HERALD_PING_INTERVAL", default_value = "25s", value_parser = humantime::parse_duration)]
    pub ping_interval: Duration,
    /// How long a client may be silent, pings unanswered, before its session ends.
    #[arg(long, env = "HERALD_IDLE_TIMEOUT", default_value = "60s", value_parser = humantime::parse_duration)]
    pub idle_timeout: Duration,
    /// How long a client may not read before its session ends.
    #[arg(long, env = "HERALD_WRITE_TIMEOUT", default_value = "10s", value_parser = humantime::parse_duration)]
    pub write_timeout: Duration,
    /// How often a session's cursor is stored while acks come in.
    #[arg(long, env = "HERALD_CURSOR_INTERVAL", default_value = "10s", value_parser = humantime::parse_duration)]
    pub cursor_interval: Duration,
}

impl Config {
    /// Checks what clap can't.
    ///
    /// # Errors
    /// A message that names the flag.
    pub fn validate(&self) -> Result<(), String> {
        let limits = &self.limits;
        let at_least = |flag: &str, value: Duration, least: Duration| {
            if value >= least {
                Ok(())
            } else {
                Err(format!("--{flag}: must be at least {least:?}"))
            }
        };
        let positive = |flag: &str, value: usize| {
            if value > 0 { Ok(()) } else { Err(format!("--{flag}: must be at least 1")) }
        };
        at_least("lease", self.lease, Duration::from_secs(1))?;
        at_least("sweep", self.sweep, Duration::from_millis(100))?;
        at_least("ack-wait", limits.ack_wait, Duration::from_millis(100))?;
        at_least("request-timeout", limits.request_timeout, Duration::from_millis(100))?;
        at_least("handshake-timeout", limits.handshake_timeout, Duration::from_millis(100))?;
        at_least("ping-interval", limits.ping_interval, Duration::from_millis(100))?;
        at_least("write-timeout", limits.write_timeout, Duration::from_millis(100))?;
        at_least("cursor-interval", limits.cursor_interval, Duration::from_millis(10))?;
        at_least("idle-timeout", limits.idle_timeout, limits.ping_interval * 2)?;
        positive("max-frame-bytes", limits.max_frame_bytes)?;
        positive("max-open-requests", limits.max_open_requests)?;
        positive("window", limits.window)?;
        positive("window-bytes", limits.window_bytes)?;
        positive("max-sessions", limits.max_sessions)?;
        positive("max-publishes", limits.max_publishes)?;
        positive("max-waiting", limits.max_waiting)?;
        positive("max-handshakes", limits.max_handshakes)?;
        if limits.rate == 0 || limits.burst == 0 {
            return Err("--rate and --burst: must be at least 1".into());
        }
        if !(0.0..=1.0).contains(&self.trace_ratio) {
            return Err("--trace-ratio: must be from 0 to 1".into());
        }
        if self.gateway_id.as_ref().is_some_and(|id| id.is_empty() || id.len() > 64) {
            return Err("--gateway-id: must be 1-64 bytes".into());
        }
        Ok(())
    }
}
