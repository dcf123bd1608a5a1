//! What the manifests say is what the programs know, and what they name is there. A misspelled setting, port, path or
//! name is found here, before it is found in a cluster.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{ArgAction, Command, CommandFactory as _, Parser as _};
use herald_gateway::config::Config as Gateway;
use herald_proto::subject;
use herald_tests::{
    Backend, Cluster, Options, http,
    manifests::{Manifests, list, secret, text},
};
use herald_worker::config::{Cli as Worker, Command as Does};
use serde_json::Value;

mod flows;
mod image;
mod pods;
mod readme;
mod secrets;
mod sizes;

/// Each overlay with all components.
async fn sites() -> Result<Vec<Site>> {
    let mut sites = Vec::new();
    for overlay in ["dev", "prod"] {
        let components = ["keda", "monitoring", "gateway-api", "ingress"];
        let manifests = Manifests::build_with(overlay, &components).await?;
        let ca = herald_tests::manifests::folder().join("README.md").display().to_string();
        let env = [("DATABASE_URL", "postgres://x"), ("DATABASE_CA", &ca), ("JWKS", &ca)];
        let secrets = Manifests::secrets(overlay, &env).await?;
        sites.push(Site { overlay, manifests, secrets });
    }
    Ok(sites)
}

struct Site {
    overlay: &'static str,
    manifests: Manifests,
    secrets: Manifests,
}

/// A pod as its owner describes it.
struct Pod<'a> {
    owner: String,
    template: &'a Value,
}

impl Site {
    fn pods(&self) -> Vec<Pod<'_>> {
        let templates = self.manifests.objects.iter().filter_map(|object| {
            let template = match text(object, "/kind") {
                "CronJob" => object.pointer("/spec/jobTemplate/spec/template"),
                _ => object.pointer("/spec/template"),
            };
            let owner = format!("{} {}", text(object, "/kind"), text(object, "/metadata/name"));
            Some(Pod { owner, template: template.filter(|it| it.pointer("/spec").is_some())? })
        });
        templates.collect()
    }

    /// What a container of ours finds in its environment.
    fn env(&self, container: &Value) -> Result<BTreeMap<String, String>> {
        let mut env = BTreeMap::new();
        for from in list(container, "/envFrom") {
            let map = self.manifests.get("ConfigMap", text(from, "/configMapRef/name"))?;
            let data = map.pointer("/data").and_then(Value::as_object).context("no data")?;
            for (name, value) in data {
                env.insert(name.clone(), value.as_str().context("no text")?.to_owned());
            }
        }
        for variable in list(container, "/env") {
            env.insert(text(variable, "/name").to_owned(), text(variable, "/value").to_owned());
        }
        Ok(env)
    }
}

impl Pod<'_> {
    fn containers(&self) -> &[Value] {
        list(self.template, "/spec/containers")
    }

    fn ours(&self) -> impl Iterator<Item = &Value> {
        let is_ours = |container: &&Value| {
            text(container, "/command/0").starts_with("/usr/local/bin/herald-")
        };
        self.containers().iter().filter(is_ours)
    }

    fn port(&self, name: &str) -> Option<u64> {
        let ports = self.containers().iter().flat_map(|container| list(container, "/ports"));
        let mut ports = ports.filter(|port| text(port, "/name") == name);
        ports.next()?.pointer("/containerPort")?.as_u64()
    }

    fn is_selected(&self, selector: &Value) -> bool {
        let label =
            |key: &str| self.template.pointer("/metadata/labels")?.get(key).and_then(Value::as_str);
        let labels = selector.pointer("/matchLabels").and_then(Value::as_object);
        let labels = labels.into_iter().flatten().all(|(key, value)| label(key) == value.as_str());
        let expressions = list(selector, "/matchExpressions").iter().all(|expression| {
            assert_eq!(text(expression, "/operator"), "In");
            let found = label(text(expression, "/key"));
            list(expression, "/values").iter().any(|value| value.as_str() == found)
        });
        labels && expressions
    }
}

/// The command line that says what the environment says.
fn argv(container: &Value, env: &BTreeMap<String, String>) -> Result<Vec<String>> {
    let words = list(container, "/command").iter().chain(list(container, "/args"));
    let words: Vec<String> = words.filter_map(Value::as_str).map(ToOwned::to_owned).collect();
    let (program, rest) = words.split_first().context("no command")?;
    let program = program.rsplit('/').next().unwrap_or_default();
    let root = match program {
        "herald-gateway" => Gateway::command(),
        "herald-worker" => Worker::command(),
        other => bail!("{other} is no program of ours"),
    };
    let subcommands = rest.iter().take_while(|word| !word.starts_with('-'));
    let command = subcommands.clone().try_fold(&root, |command, name| {
        command.find_subcommand(name).with_context(|| format!("{program} has no command {name}"))
    })?;
    let mut argv = vec![program.to_owned()];
    argv.extend(rest.iter().cloned());
    for (name, value) in env {
        let (flag, is_switch) = flag(&root, name)
            .or_else(|| flag(command, name))
            .with_context(|| format!("{} does not know {name}", words.join(" ")))?;
        argv.push(format!("--{flag}"));
        if !is_switch {
            argv.push(value.clone());
        }
    }
    Ok(argv)
}

/// The flag of a variable, and whether it has no value.
fn flag(command: &Command, variable: &str) -> Option<(String, bool)> {
    let arg =
        command.get_arguments().find(|arg| arg.get_env().is_some_and(|env| env == variable))?;
    Some((arg.get_long()?.to_owned(), matches!(arg.get_action(), ArgAction::SetTrue)))
}

fn gateway(site: &Site, container: &Value) -> Result<Gateway> {
    let argv = argv(container, &site.env(container)?)?;
    let config = Gateway::try_parse_from(argv)?;
    config.validate().map_err(anyhow::Error::msg)?;
    Ok(config)
}

fn worker(site: &Site, container: &Value) -> Result<Does> {
    let argv = argv(container, &site.env(container)?)?;
    let command = Worker::try_parse_from(argv)?.command;
    if let Does::Run(config) = &command {
        config.validate().map_err(anyhow::Error::msg)?;
    }
    Ok(command)
}

fn is_gateway(container: &Value) -> bool {
    text(container, "/command/0").ends_with("gateway")
}

#[tokio::test]
async fn the_programs_take_every_setting_and_find_every_file() -> Result<()> {
    for site in sites().await? {
        let mut checked = 0;
        for pod in site.pods() {
            for container in pod.ours() {
                let checks = async {
                    if is_gateway(container) {
                        gateway(&site, container)?;
                    } else {
                        worker(&site, container)?;
                    }
                    for (name, value) in site.env(container)? {
                        if value.starts_with('/') {
                            let found = file(&site, &pod, container, &value);
                            found.with_context(|| format!("{name}={value}"))?;
                        }
                    }
                    Ok::<_, anyhow::Error>(())
                };
                checks.await.with_context(|| format!("{}: {}", site.overlay, pod.owner))?;
                checked += 1;
            }
        }
        assert!(checked >= 3, "gateway, worker and migration: {checked}");
    }
    Ok(())
}

/// A file that a container is told of: in a Secret that it mounts.
fn file(site: &Site, pod: &Pod<'_>, container: &Value, path: &str) -> Result<Vec<u8>> {
    let (folder, key) = path.rsplit_once('/').context("no folder")?;
    let mounts = list(container, "/volumeMounts").iter();
    let mut mounts = mounts.filter(|mount| text(mount, "/mountPath") == folder);
    let mount = mounts.next().with_context(|| format!("nothing is mounted at {folder}"))?;
    let mut volumes = list(pod.template, "/spec/volumes").iter();
    let volume = volumes.find(|volume| text(volume, "/name") == text(mount, "/name"));
    let name = text(volume.context("no volume")?, "/secret/secretName");
    secret(site.secrets.get("Secret", name)?, key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_and_services_ask_what_the_programs_serve() -> Result<()> {
    let cluster = Cluster::start(Backend::Sqlite, Options::of(1, 1)).await?;
    for site in sites().await? {
        let mut probes = 0;
        for pod in site.pods() {
            for container in pod.ours() {
                let (listen, running) = if is_gateway(container) {
                    let config = gateway(&site, container)?;
                    let admin = config.admin_listen.context("metrics are not served")?;
                    assert_eq!(pod.port("admin"), Some(u64::from(admin.port())));
                    assert!(admin.ip().is_unspecified(), "Prometheus must reach {admin}");
                    assert_eq!(pod.port("ws"), Some(u64::from(config.listen.port())));
                    let listen = config.listen.ip();
                    assert!(listen.is_unspecified(), "clients must reach {listen}");
                    (admin, cluster.gateways[0].metrics)
                } else if let Does::Run(config) = worker(&site, container)? {
                    (config.health.health_listen, cluster.workers[0].address)
                } else {
                    continue;
                };
                for kind in ["startupProbe", "readinessProbe", "livenessProbe"] {
                    let probe = container.get(kind).with_context(|| format!("no {kind}"))?;
                    let port = pod.port(text(probe, "/httpGet/port"));
                    assert_eq!(port, Some(u64::from(listen.port())), "{} {kind}", pod.owner);
                    assert!(listen.ip().is_unspecified(), "the kubelet must reach {listen}");
                    let (status, _) = http::get(running, text(probe, "/httpGet/path")).await?;
                    assert_eq!(status, 200, "{} {kind}", pod.owner);
                    probes += 1;
                }
            }
        }
        assert_eq!(probes, 6);
        for service in site.manifests.of_kind("Service") {
            let name = text(service, "/metadata/name");
            let selector = serde_json::json!({"matchLabels": service.pointer("/spec/selector")});
            let pods: Vec<Pod<'_>> =
                site.pods().into_iter().filter(|pod| pod.is_selected(&selector)).collect();
            assert_eq!(pods.len(), 1, "{name} selects one kind of pod");
            for port in list(service, "/spec/ports") {
                let target = text(port, "/targetPort");
                assert!(pods[0].port(target).is_some(), "{name}: there is no port {target}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn whatever_is_named_is_there() -> Result<()> {
    for site in sites().await? {
        let pods = site.pods();
        for pod in &pods {
            let account = text(pod.template, "/spec/serviceAccountName");
            site.manifests.get("ServiceAccount", account).with_context(|| pod.owner.clone())?;
            let volumes = list(pod.template, "/spec/volumes").iter();
            let sources = volumes.clone().flat_map(|volume| list(volume, "/projected/sources"));
            for source in volumes.clone().chain(sources) {
                for name in [text(source, "/secret/secretName"), text(source, "/secret/name")] {
                    if !name.is_empty() {
                        site.secrets.get("Secret", name).with_context(|| pod.owner.clone())?;
                    }
                }
                let map = text(source, "/configMap/name");
                if !map.is_empty() {
                    site.manifests.get("ConfigMap", map)?;
                }
            }
        }
        for object in &site.manifests.objects {
            let name = format!("{} {}", text(object, "/kind"), text(object, "/metadata/name"));
            if let Some(target) = object.pointer("/spec/scaleTargetRef") {
                site.manifests.get(text(target, "/kind"), text(target, "/name"))?;
            }
            let selector = match text(object, "/kind") {
                "PodDisruptionBudget" | "PodMonitor" => object.pointer("/spec/selector"),
                "NetworkPolicy" => object.pointer("/spec/podSelector"),
                _ => None,
            };
            let Some(selector) = selector else { continue };
            let selected: Vec<&Pod<'_>> =
                pods.iter().filter(|pod| pod.is_selected(selector)).collect();
            assert!(!selected.is_empty(), "{name} selects nothing");
            let rules = list(object, "/spec/ingress").iter();
            let ports = rules.flat_map(|rule| list(rule, "/ports"));
            let ports = ports.chain(list(object, "/spec/podMetricsEndpoints"));
            for port in ports.map(|port| text(port, "/port")).filter(|port| !port.is_empty()) {
                assert!(selected.iter().any(|pod| pod.port(port).is_some()), "{name}: {port}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn numbers_that_depend_on_each_other_fit() -> Result<()> {
    for site in sites().await? {
        for pod in site.pods() {
            for container in pod.ours() {
                let grace = pod.template.pointer("/spec/terminationGracePeriodSeconds");
                let grace = grace.and_then(Value::as_u64).map(Duration::from_secs);
                if is_gateway(container) {
                    let config = gateway(&site, container)?;
                    let pre_stop = container.pointer("/lifecycle/preStop/sleep/seconds");
                    let pre_stop = Duration::from_secs(pre_stop.and_then(Value::as_u64).unwrap());
                    // Goodbyes, last cursors and the connection's last bytes take up to 10 s.
                    let takes = pre_stop + config.drain_timeout + Duration::from_secs(10);
                    assert!(grace.unwrap() > takes, "{grace:?} for {takes:?}");
                    let readiness = container.get("readinessProbe").unwrap();
                    let number = |name: &str| readiness.get(name).and_then(Value::as_u64).unwrap();
                    let notices = number("periodSeconds") * number("failureThreshold");
                    assert!(Duration::from_secs(notices) < pre_stop, "readiness flips first");
                } else if let Does::Run(config) = worker(&site, container)? {
                    assert!(grace.unwrap() > config.drain_timeout + Duration::from_secs(10));
                    partitions(&site, config.partitions.context("no partitions")?)?;
                    storage(&site, &config)?;
                }
            }
        }
    }
    Ok(())
}

/// A trigger for each partition, and nobody else who scales.
fn partitions(site: &Site, partitions: u16) -> Result<()> {
    let scaled = site.manifests.get("ScaledObject", "herald-worker")?;
    let triggers = list(scaled, "/spec/triggers").iter();
    let triggers = triggers.filter(|trigger| text(trigger, "/type") == "nats-jetstream");
    let found: Vec<(&str, &str)> = triggers
        .map(|trigger| (text(trigger, "/metadata/stream"), text(trigger, "/metadata/consumer")))
        .collect();
    let names: Vec<String> = (0..partitions).map(subject::consumer).collect();
    let wanted: Vec<(&str, &str)> =
        names.iter().map(|name| (subject::FRAMES, name.as_str())).collect();
    assert_eq!(found, wanted);
    ensure!(
        site.manifests.of_kind("HorizontalPodAutoscaler").count() == 0,
        "KEDA's autoscalers and others would fight over the pods"
    );
    Ok(())
}

/// What lies on NATS has room on its disks, and has as many replicas as there are servers.
fn storage(site: &Site, config: &herald_worker::config::Config) -> Result<()> {
    let servers = site.manifests.get("StatefulSet", "herald-nats")?;
    let replicas = servers.pointer("/spec/replicas").and_then(Value::as_u64).context("replicas")?;
    assert_eq!(u64::from(config.replicas), replicas);
    let conf = site.manifests.config_map("herald-nats")?;
    let conf = conf.get("nats.conf").context("no nats.conf")?;
    let line = conf.lines().find(|line| line.contains("max_file_store")).context("no limit")?;
    let limit = line.trim().trim_start_matches("max_file_store: ").trim_end_matches("GB");
    let limit: i64 = limit.parse().context(line.to_owned())?;
    let disk = text(servers, "/spec/volumeClaimTemplates/0/spec/resources/requests/storage");
    let disk: i64 = disk.trim_end_matches("Gi").parse().context(disk.to_owned())?;
    let streams = config.events_max_bytes * i64::from(config.event_streams.unwrap_or(1));
    // DEADLETTER has 256 MiB, buckets have no limit: leave them some.
    let needed = streams + config.frames_max_bytes + (1 << 30);
    assert!(needed <= limit << 30, "{needed} bytes do not fit in {limit} GB");
    assert!(limit < disk, "{limit} GB do not fit on {disk} Gi");
    let names: Vec<String> =
        (0..replicas).map(|n| format!("herald-nats-{n}.herald-nats:4222")).collect();
    let url = &config.broker.nats_url;
    let is_known = |url: &str| {
        let host = url.rsplit("//").next().unwrap_or_default();
        host == "herald-nats:4222" || names.iter().any(|name| name == host)
    };
    assert!(url.split(',').all(is_known), "{url}");
    Ok(())
}
