//! Several `nats-server`s that form a cluster, as in production: streams and buckets can have replicas on them.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Context as _, Result, ensure};
use futures::future::{join_all, try_join_all};
use serde_json::json;
use tempfile::TempDir;

use super::{Broker, START, TRIES, config, program_with, run};
use crate::{eventually, http, port};

/// What a server of a cluster is given.
pub(super) struct Place {
    pub(super) scratch: TempDir,
    pub(super) port: u16,
    pub(super) routes: u16,
    pub(super) monitor: u16,
}

impl Broker {
    /// Starts that many servers with empty temporary stores as one cluster, and waits until it serves JetStream.
    ///
    /// # Errors
    /// If there is no `nats-server` or one does not start.
    pub async fn start_cluster(servers: usize) -> Result<Vec<Self>> {
        let mut last = None;
        for _ in 0..TRIES {
            let places = (0..servers).map(|_| Place::new()).collect::<Result<Vec<_>>>()?;
            let ports: Vec<u16> = places.iter().flat_map(Place::ports).collect();
            let routes: Vec<String> = places.iter().map(Place::route).collect();
            let starts = places.into_iter().map(|place| start(place, &routes));
            match try_join_all(starts).await {
                Ok(servers) => {
                    for healthy in join_all(servers.iter().map(Self::healthy)).await {
                        healthy?;
                    }
                    return Ok(servers);
                }
                // Someone took a port between our look and a server's bind.
                Err(error) if ports.iter().any(|port| !port::is_free(*port)) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.context("no ports were tried")?.context(format!("{TRIES} times a port was taken")))
    }

    /// Waits until a server of a cluster has found the others and caught up with them. Others are healthy at once.
    pub(super) async fn healthy(&self) -> Result<()> {
        let Some(monitor) = self.monitor else { return Ok(()) };
        eventually(&format!("{} is healthy", self.name()), START, async || {
            let (status, body) = http::get(monitor, "/healthz").await?;
            ensure!(status == 200, "{status}: {}", body.trim());
            Ok(())
        })
        .await
    }
}

impl Place {
    pub(super) fn new() -> Result<Self> {
        let scratch = tempfile::Builder::new().prefix("herald-nats-").tempdir()?;
        Ok(Self { scratch, port: port::free()?, routes: port::free()?, monitor: port::free()? })
    }

    pub(super) fn ports(&self) -> [u16; 3] {
        [self.port, self.routes, self.monitor]
    }

    pub(super) fn route(&self) -> String {
        format!("nats://{}:{}", Ipv4Addr::LOCALHOST, self.routes)
    }
}

async fn start(place: Place, routes: &[String]) -> Result<Broker> {
    let Place { scratch, port, routes: own, monitor } = place;
    let data_dir: PathBuf = scratch.path().to_owned();
    let monitor = SocketAddr::from((Ipv4Addr::LOCALHOST, monitor));
    let mut config = config(port, &data_dir);
    let cluster =
        json!({"name": "herald", "host": Ipv4Addr::LOCALHOST, "port": own, "routes": routes});
    let fields = config.as_object_mut().context("the configuration is no object")?;
    fields.insert("http".into(), json!(monitor.to_string()));
    fields.insert("cluster".into(), cluster);
    let program = program_with(config, &data_dir, &data_dir.join("nats-server.log")).await?;
    let program = program.scratch(&data_dir);
    let process = run(&program, port, &data_dir).await?;
    Ok(Broker { process, program, port, monitor: Some(monitor), data_dir, _scratch: Some(scratch) })
}
