//! How clients come in: from which address, to which gateway, and again when they are told to.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::time::sleep;

use super::connection::{Connection, Ended};

/// How long a client tries to come in.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest pause after an attempt that was cut off without a hint.
const PAUSE: Duration = Duration::from_millis(500);
/// How many connections to one address one source address has. Linux would have ports for 28,000, but tries one after the
/// other until it finds one that is not in use and was not a minute ago: of a storm's time that was 2 s.
const PORTS: u32 = 1000;

/// A device and the way it takes.
#[derive(Debug, Clone)]
pub struct Login {
    /// The gateway, `ws://host:port/path`.
    pub url: String,
    /// The user; the name must need no escapes.
    pub user: String,
    /// The device, likewise.
    pub device: String,
    /// The address to come from, if it matters.
    pub source: Option<IpAddr>,
}

/// A device that has come in.
#[derive(Debug)]
pub struct Entered {
    /// Its session.
    pub connection: Connection,
    /// How long it took, with everything that failed before.
    pub took: Duration,
    /// How often it was told to come again later.
    pub refused: u64,
}

impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connecting {} of {} to {}", self.device, self.user, self.url)
    }
}

impl Login {
    /// A user's device, from wherever the system likes.
    pub fn new(url: &str, user: &str, device: &str) -> Self {
        let (url, user, device) = (url.to_owned(), user.to_owned(), device.to_owned());
        Self { url, user, device, source: None }
    }

    /// Comes in, and again after the time that the gateway asks for if it refuses; waits until the session has begun.
    ///
    /// # Errors
    /// If it is not let in within a minute.
    pub async fn come_in(&self) -> Result<Entered> {
        let begun = Instant::now();
        let mut refused = 0;
        loop {
            let error = match Connection::begin(self).await {
                Ok(connection) => {
                    return Ok(Entered { connection, took: begun.elapsed(), refused });
                }
                Err(error) => error,
            };
            let hint = error.downcast_ref::<Ended>().and_then(|ended| ended.retry_after);
            refused += u64::from(hint.is_some());
            let pause = hint.map_or_else(|| PAUSE.mul_f64(fastrand::f64()), Duration::from_millis);
            if begun.elapsed() + pause > PATIENCE {
                return Err(error);
            }
            sleep(pause).await;
        }
    }
}

/// The source addresses for so many connections to a gateway on this machine: none if one will do, or if the gateway is
/// elsewhere, where this machine's other addresses are of no use.
pub fn sources(connections: u32, urls: &[String]) -> Vec<IpAddr> {
    let is_here = |url: &String| url.contains("//127.") || url.contains("//localhost");
    let gateways = u32::try_from(urls.len()).unwrap_or(1).max(1);
    let needed = connections.div_ceil(gateways).div_ceil(PORTS);
    if needed < 2 || !urls.iter().all(is_here) {
        return Vec::new();
    }
    let last = u8::try_from(needed).unwrap_or(u8::MAX);
    (1..=last).map(|last| Ipv4Addr::new(127, 0, 0, last).into()).collect()
}

/// Where each of many clients connects, in turn.
#[derive(Debug, Clone)]
pub struct Entrances {
    urls: Vec<String>,
    sources: Vec<IpAddr>,
}

impl Entrances {
    /// For so many connections.
    pub fn new(connections: u32, urls: &[String]) -> Self {
        Self { urls: urls.to_vec(), sources: sources(connections, urls) }
    }

    /// The way of client `number`.
    ///
    /// # Errors
    /// If there is no gateway.
    pub fn login(&self, number: usize, user: &str, device: &str) -> Result<Login> {
        let gateways = self.urls.len().max(1);
        let url = self.urls.get(number % gateways).context("no gateway")?;
        // Each source address meets each gateway.
        let source = number / gateways % self.sources.len().max(1);
        let source = self.sources.get(source).copied();
        Ok(Login { source, ..Login::new(url, user, device) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_here_is_reached_from_as_many_addresses_as_the_ports_ask_for() {
        let here = |port: u16| format!("ws://127.0.0.1:{port}/ws");
        let addresses = |connections, urls: &[String]| sources(connections, urls).len();
        assert_eq!(addresses(1000, &[here(1)]), 0);
        assert_eq!(addresses(1001, &[here(1)]), 2);
        assert_eq!(addresses(2000, &[here(1), here(2)]), 0);
        assert_eq!(addresses(1_000_000, &[here(1)]), 255);
        assert_eq!(addresses(50_000, &["ws://chat.example/ws".into()]), 0);
    }

    #[test]
    fn clients_take_gateways_in_turn_and_then_source_addresses() {
        let urls = ["ws://127.0.0.1:1/a".to_owned(), "ws://127.0.0.1:2/b".to_owned()];
        let entrances = Entrances::new(100_000, &urls);
        let way = |number| {
            let login = entrances.login(number, "u", "d").unwrap();
            (login.url.ends_with('b'), login.source.unwrap().to_string())
        };
        let ways: Vec<(bool, String)> = (0..4).map(way).collect();
        let [one, two] = ["127.0.0.1", "127.0.0.2"].map(str::to_owned);
        assert_eq!(ways, [(false, one.clone()), (true, one), (false, two.clone()), (true, two)]);
    }
}
