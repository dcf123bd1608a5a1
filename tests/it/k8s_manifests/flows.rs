//! Whoever may send to a pod of this namespace is heard there, and whoever is heard may send: nothing is allowed on one side
//! alone.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use herald_tests::manifests::{Manifests, list, text};
use serde_json::Value;

use super::{Pod, Site, sites};

/// From, to, protocol, port.
type Flow = (String, String, String, u64);

/// What one side's rules allow between pods of this namespace.
fn flows(site: &Site, side: &str, peers: &str) -> Result<BTreeSet<Flow>> {
    let pods = site.pods();
    let mut flows = BTreeSet::new();
    for policy in site.manifests.of_kind("NetworkPolicy") {
        let name = text(policy, "/metadata/name");
        let selector = policy.pointer("/spec/podSelector").context("no podSelector")?;
        for rule in list(policy, &format!("/spec/{side}")) {
            for peer in list(rule, &format!("/{peers}")) {
                let here =
                    peer.get("podSelector").filter(|_| peer.get("namespaceSelector").is_none());
                let Some(peer) = here else { continue };
                let others: Vec<&Pod<'_>> =
                    pods.iter().filter(|pod| pod.is_selected(peer)).collect();
                assert!(!others.is_empty(), "{name} names a pod that is not there: {peer}");
                for own in pods.iter().filter(|pod| pod.is_selected(selector)) {
                    for other in &others {
                        let (from, to) =
                            if side == "egress" { (own, *other) } else { (*other, own) };
                        for port in list(rule, "/ports") {
                            let number = number(to, port);
                            let number = number.with_context(|| format!("{name}: {port}"))?;
                            let protocol = text(port, "/protocol").to_owned();
                            flows.insert((from.owner.clone(), to.owner.clone(), protocol, number));
                        }
                    }
                }
            }
        }
    }
    Ok(flows)
}

/// A port of a rule, by its number.
fn number(pod: &Pod<'_>, port: &Value) -> Option<u64> {
    let port = port.get("port")?;
    port.as_u64().or_else(|| pod.port(port.as_str()?))
}

fn listens(pod: &Pod<'_>, port: u64) -> bool {
    let mut ports = pod.containers().iter().flat_map(|container| list(container, "/ports"));
    ports.any(|own| own.get("containerPort") == Some(&port.into()))
}

#[tokio::test]
async fn what_one_side_may_send_the_other_side_may_hear() -> Result<()> {
    let mut all = sites().await?;
    for overlay in ["dev", "prod"] {
        let manifests = Manifests::build(&format!("overlays/{overlay}")).await?;
        all.push(Site { overlay, manifests, secrets: Manifests { objects: vec![] } });
    }
    for site in all {
        let sent = flows(&site, "egress", "to")?;
        let heard = flows(&site, "ingress", "from")?;
        assert_eq!(sent, heard, "{}", site.overlay);
        for (from, to, _, port) in &sent {
            let pod = site.pods().into_iter().find(|pod| pod.owner == *to).context("no pod")?;
            // A NATS server that is alone has no port for others.
            assert!(from == to || listens(&pod, *port), "{from} to {to}: {port}");
        }
        let to_nats = sent.iter().filter(|(_, to, _, port)| to.ends_with("nats") && *port == 4222);
        assert_eq!(to_nats.count(), 3, "gateway, worker, operator");
    }
    Ok(())
}
