//! How many there may be of what: autoscalers with KEDA and without, memory, event streams.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use herald_proto::subject;
use herald_tests::manifests::{Manifests, list, text};
use herald_worker::config::Command as Does;
use serde_json::Value;

use super::{Pod, Site, gateway, is_gateway, sites, worker};

/// What a connection takes under load.
const CONNECTION: u64 = 15_000;

/// Mebibytes or gibibytes.
fn bytes(quantity: &str) -> Result<u64> {
    let units = [("Mi", 20), ("Gi", 30)];
    let found = units.iter().find_map(|(unit, bits)| Some((quantity.strip_suffix(unit)?, bits)));
    let (number, bits) = found.with_context(|| quantity.to_owned())?;
    Ok(number.parse::<u64>()? << bits)
}

/// The pod of that Deployment, and its first container.
fn pod<'a>(site: &'a Site, name: &str) -> Result<(Pod<'a>, &'a Value)> {
    let owner = format!("Deployment {name}");
    let pod = site.pods().into_iter().find(|pod| pod.owner == owner).context(owner)?;
    let container = list(pod.template, "/spec/containers").first().context("no container")?;
    Ok((pod, container))
}

fn partitions(site: &Site) -> Result<u16> {
    let (_, container) = pod(site, "herald-worker")?;
    let Does::Run(config) = worker(site, container)? else { anyhow::bail!("it does not run") };
    config.partitions.context("no partitions")
}

/// The overlays, as they are without any component.
async fn plain() -> Result<Vec<Site>> {
    let mut plain = Vec::new();
    for overlay in ["dev", "prod"] {
        let manifests = Manifests::build(&format!("overlays/{overlay}")).await?;
        plain.push(Site { overlay, manifests, secrets: Manifests { objects: vec![] } });
    }
    Ok(plain)
}

/// A gateway is taken away when the one before has drained, not sooner.
fn scales_in_one_by_one(behavior: &Value, grace: Duration) -> Result<()> {
    let policies = list(behavior, "/scaleDown/policies");
    ensure!(policies.len() == 1, "one policy decides");
    for policy in policies {
        assert_eq!(policy.get("value"), Some(&1.into()));
        let period = policy.get("periodSeconds").and_then(Value::as_u64).context("no period")?;
        assert!(Duration::from_secs(period) >= grace, "{period} s for {grace:?}");
    }
    Ok(())
}

#[tokio::test]
async fn keda_scales_within_the_overlays_own_numbers() -> Result<()> {
    for (plain, keda) in plain().await?.into_iter().zip(sites().await?) {
        assert_eq!(plain.manifests.of_kind("HorizontalPodAutoscaler").count(), 2);
        for name in ["herald-gateway", "herald-worker"] {
            let own = plain.manifests.get("HorizontalPodAutoscaler", name)?;
            let scaled = keda.manifests.get("ScaledObject", name)?;
            for (spec, in_keda) in [("min", "minReplicaCount"), ("max", "maxReplicaCount")] {
                let number = own.pointer(&format!("/spec/{spec}Replicas")).context("no number")?;
                assert_eq!(scaled.pointer(&format!("/spec/{in_keda}")), Some(number), "{name}");
            }
            // It takes over an autoscaler that was applied before it.
            let annotation = "/metadata/annotations/scaledobject.keda.sh~1transfer-hpa-ownership";
            assert_eq!(text(scaled, annotation), "true");
            let advanced = "/spec/advanced/horizontalPodAutoscalerConfig";
            assert_eq!(text(scaled, &format!("{advanced}/name")), name);
            let behavior = own.pointer("/spec/behavior").context("no behavior")?;
            assert_eq!(scaled.pointer(&format!("{advanced}/behavior")), Some(behavior), "{name}");
        }
        let (gateway, _) = pod(&plain, "herald-gateway")?;
        let grace = gateway.template.pointer("/spec/terminationGracePeriodSeconds");
        let grace = Duration::from_secs(grace.and_then(Value::as_u64).context("no grace")?);
        let own = plain.manifests.get("HorizontalPodAutoscaler", "herald-gateway")?;
        scales_in_one_by_one(own.pointer("/spec/behavior").context("no behavior")?, grace)?;
    }
    Ok(())
}

#[tokio::test]
async fn autoscalers_have_something_to_scale_and_never_more_workers_than_partitions() -> Result<()>
{
    for site in plain().await? {
        let partitions = u64::from(partitions(&site)?);
        for scaler in site.manifests.of_kind("HorizontalPodAutoscaler") {
            let target = scaler.pointer("/spec/scaleTargetRef").context("no target")?;
            let target = site.manifests.get(text(target, "/kind"), text(target, "/name"))?;
            assert_eq!(target.pointer("/spec/replicas"), None, "the number is the autoscaler's");
        }
        let workers = site.manifests.get("HorizontalPodAutoscaler", "herald-worker")?;
        let most = workers.pointer("/spec/maxReplicas").and_then(Value::as_u64);
        let most = most.context("no maxReplicas")?;
        // A small cluster has fewer.
        let fits = if site.overlay == "dev" { most <= partitions } else { most == partitions };
        assert!(fits, "{}: {most} workers for {partitions} partitions", site.overlay);
    }
    Ok(())
}

#[tokio::test]
async fn connections_have_room_in_a_gateways_memory() -> Result<()> {
    for site in sites().await? {
        let (_, container) = pod(&site, "herald-gateway")?;
        assert!(is_gateway(container));
        let memory = bytes(text(container, "/resources/limits/memory"))?;
        let most = u64::try_from(gateway(&site, container)?.limits.max_sessions)?;
        assert!(memory / most >= CONNECTION, "{}: {most} in {memory}", site.overlay);

        let scaled = site.manifests.get("ScaledObject", "herald-gateway")?;
        let triggers = list(scaled, "/spec/triggers").iter();
        let mut triggers = triggers.filter(|trigger| text(trigger, "/type") == "prometheus");
        let trigger = triggers.next().context("nothing asks Prometheus")?;
        let threshold: u64 = text(trigger, "/metadata/threshold").parse()?;
        // One of two gateways can be lost.
        assert!(threshold * 2 <= most, "{}: {threshold} of {most}", site.overlay);
        assert!(threshold * CONNECTION <= memory / 3, "{}: {threshold}", site.overlay);
        assert_eq!(text(trigger, "/metadata/ignoreNullValues"), "false", "no data is a failure");
    }
    Ok(())
}

#[tokio::test]
async fn workers_may_make_the_event_streams_they_are_told_of_and_gateways_read_them_and_no_others()
-> Result<()> {
    for site in sites().await? {
        let (_, container) = pod(&site, "herald-worker")?;
        let Does::Run(config) = worker(&site, container)? else { anyhow::bail!("it does not run") };
        let streams = config.event_streams.context("no number of event streams")?;
        let accounts = site.manifests.config_map("herald-nats-accounts")?;
        let accounts = accounts.get("accounts.conf").context("no accounts.conf")?;
        let (of_gateways, of_workers) =
            accounts.split_once("worker_permissions").context("no permissions of workers")?;
        let consumers = ["CONSUMER.CREATE", "CONSUMER.DELETE", "CONSUMER.MSG.NEXT"];
        let of_gateways = consumers.map(|what| (of_gateways, what));
        let streams_too = ["STREAM.CREATE", "STREAM.PURGE"].iter().chain(&consumers);
        for (of, what) in of_gateways.into_iter().chain(streams_too.map(|what| (of_workers, *what)))
        {
            let prefix = format!("\"$JS.API.{what}.");
            let found = of.lines().filter_map(|line| line.trim().strip_prefix(&prefix));
            let found = found.filter_map(|rest| rest.split(['.', '"']).next());
            let found: Vec<&str> = found.filter(|stream| stream.starts_with("EVENTS_")).collect();
            let wanted: Vec<String> = (0..streams).map(subject::events).collect();
            assert_eq!(found, wanted, "{what}");
        }
    }
    Ok(())
}
