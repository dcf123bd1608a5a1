//! The `nats-server`s of an overlay: its own configuration, accounts and certificates, on loopback.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use futures::future::{join_all, try_join_all};
use tempfile::TempDir;

use super::{Broker, TRIES, name, run, servers::Place};
use crate::{
    Program,
    manifests::{Manifests, list, secret, text},
    port, tools,
};

/// The servers, and what lets programs in.
#[derive(Debug)]
pub struct Deployed {
    /// The servers.
    pub servers: Vec<Broker>,
    /// The worker's flags for what lies on them: replicas and sizes.
    pub storage_flags: Vec<String>,
    secrets: Manifests,
    folder: TempDir,
}

/// Who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it
pub enum Role {
    Gateway,
    Worker,
    Operator,
}

impl Role {
    /// The user's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Worker => "worker",
            Self::Operator => "operator",
        }
    }
}

impl Deployed {
    /// Starts as many servers as the overlay has, as it configures them; only addresses and folders are others.
    ///
    /// # Errors
    /// If something in the configuration is not where it is looked for, or a server does not start.
    pub async fn start(overlay: &str) -> Result<Self> {
        let manifests = Manifests::build(&format!("overlays/{overlay}")).await?;
        let folder = tempfile::Builder::new().prefix("herald-deployed-").tempdir()?;
        let unused = folder.path().join("unused");
        fs::write(&unused, "{}")?;
        let unused = unused.to_str().context("the temporary folder's name is not UTF-8")?;
        let env = [
            ("SAN", "IP:127.0.0.1"),
            ("DATABASE_URL", "postgres://unused"),
            ("DATABASE_CA", unused),
            ("JWKS", unused),
        ];
        let secrets = Manifests::secrets(overlay, &env).await?;
        write_secrets(&secrets, folder.path())?;
        let stateful_set = manifests.get("StatefulSet", "herald-nats")?;
        let replicas = stateful_set.pointer("/spec/replicas").context("no replicas")?;
        let replicas = replicas.as_u64().context("no number")?;
        let mut last = None;
        for _ in 0..TRIES {
            let places = (0..replicas).map(|_| Place::new()).collect::<Result<Vec<_>>>()?;
            let ports: Vec<u16> = places.iter().flat_map(Place::ports).collect();
            let config = config(&manifests, &places, folder.path())?;
            let starts =
                places.into_iter().map(|place| start(place, &manifests, &config, folder.path()));
            match try_join_all(starts).await {
                Ok(servers) => {
                    for healthy in join_all(servers.iter().map(Broker::healthy)).await {
                        healthy?;
                    }
                    let storage_flags = storage_flags(&manifests)?;
                    return Ok(Self { servers, storage_flags, secrets, folder });
                }
                Err(error) if ports.iter().any(|port| !port::is_free(*port)) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.context("no ports were tried")?.context(format!("{TRIES} times a port was taken")))
    }

    /// The flags that let a program in.
    pub fn flags(&self, role: Role) -> Vec<String> {
        let folder = self.folder.path().join(format!("herald-nats-{}", role.name()));
        let file = |name: &str| folder.join(name).display().to_string();
        let mut flags = vec!["--nats-user".into(), role.name().into()];
        flags.extend(["--nats-password-file".into(), file("password")]);
        if self.ca(role).is_file() {
            flags.extend(["--nats-ca".into(), file("ca.crt")]);
        }
        flags
    }

    /// The file with the CA of the servers' certificates; not there if the overlay has no TLS.
    pub fn ca(&self, role: Role) -> PathBuf {
        self.folder.path().join(format!("herald-nats-{}", role.name())).join("ca.crt")
    }

    /// The password of that role.
    ///
    /// # Errors
    /// If it has none.
    pub fn password(&self, role: Role) -> Result<String> {
        let found = self.secrets.get("Secret", &format!("herald-nats-{}", role.name()))?;
        Ok(String::from_utf8(secret(found, "password")?)?)
    }

    /// What the servers have refused so far, as their logs say it.
    ///
    /// # Errors
    /// If a log can't be read.
    pub fn violations(servers: &[&Broker]) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for server in servers {
            let log = fs::read_to_string(server.data_dir().join("nats-server.log"))?;
            let lines = log.lines().filter(|line| line.contains("Violation"));
            found.extend(lines.map(ToOwned::to_owned));
        }
        Ok(found)
    }
}

/// What the worker is told of the broker's storage.
fn storage_flags(manifests: &Manifests) -> Result<Vec<String>> {
    let told = manifests.config_map("herald-worker")?;
    let flag = |name: &str| {
        let value = told.get(name).with_context(|| format!("herald-worker has no {name}"))?;
        let flag = name.trim_start_matches("HERALD_").to_lowercase().replace('_', "-");
        Ok([format!("--{flag}"), value.clone()])
    };
    let names = ["HERALD_REPLICAS", "HERALD_EVENTS_MAX_BYTES", "HERALD_FRAMES_MAX_BYTES"];
    Ok(names.into_iter().map(flag).collect::<Result<Vec<_>>>()?.concat())
}

/// Each Secret as a folder of its own, as a pod sees it.
fn write_secrets(secrets: &Manifests, folder: &Path) -> Result<()> {
    for object in secrets.of_kind("Secret") {
        let folder = folder.join(text(object, "/metadata/name"));
        fs::create_dir_all(&folder)?;
        let keys = object.get("data").and_then(|data| data.as_object()).context("no data")?;
        for key in keys.keys() {
            let file = folder.join(key);
            fs::write(&file, secret(object, key)?)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o400))?;
        }
    }
    Ok(())
}

/// The configuration, with what is different for each server still as it stands in the manifests.
fn config(manifests: &Manifests, places: &[Place], folder: &Path) -> Result<String> {
    let files = manifests.config_map("herald-nats")?;
    let mut config = files.get("nats.conf").context("no nats.conf")?.clone();
    if let [_] = places {
        return Ok(config);
    }
    for (number, place) in places.iter().enumerate() {
        let route = format!("nats://herald-nats-{number}.herald-nats:6222");
        config = replaced(&config, &route, &place.route())?;
    }
    let tls = folder.join("herald-nats-tls").display().to_string();
    replaced(&config, "/etc/nats-tls", &tls)
}

/// Everything between quotes that is `from`, or a path below it.
fn replaced(config: &str, from: &str, to: &str) -> Result<String> {
    ensure!(config.contains(&format!("\"{from}")), "{from} is not in nats.conf");
    Ok(config.replace(&format!("\"{from}"), &format!("\"{to}")))
}

async fn start(
    place: Place,
    manifests: &Manifests,
    config: &str,
    secrets: &Path,
) -> Result<Broker> {
    let Place { scratch, port, routes, monitor } = place;
    let data_dir = scratch.path().to_owned();
    let here = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string();
    let mut config = replaced(config, "0.0.0.0:4222", &here(port))?;
    config = replaced(&config, "0.0.0.0:8222", &here(monitor))?;
    if config.contains("cluster {") {
        config = replaced(&config, "0.0.0.0:6222", &here(routes))?;
    }
    config = replaced(&config, "/data\"", &format!("{}\"", data_dir.display()))?;
    let file = data_dir.join("nats.conf");
    fs::write(&file, config)?;
    for (name, text) in manifests.config_map("herald-nats-accounts")? {
        fs::write(data_dir.join(name), text)?;
    }
    fs::copy(secrets.join("herald-nats-users/users.conf"), data_dir.join("users.conf"))?;
    let pod = manifests.get("StatefulSet", "herald-nats")?;
    let env = list(pod, "/spec/template/spec/containers/0/env");
    ensure!(env.iter().any(|variable| text(variable, "/name") == "POD_NAME"), "no POD_NAME");
    let log = data_dir.join("nats-server.log");
    let program = Program::new("nats-server", tools::nats_server().await?, log)
        .arg("--config")
        .arg(file)
        .env("POD_NAME", name(&data_dir))
        .scratch(&data_dir);
    let process = run(&program, port, &data_dir).await?;
    let monitor = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, monitor)));
    Ok(Broker { process, program, port, monitor, data_dir, _scratch: Some(scratch) })
}
