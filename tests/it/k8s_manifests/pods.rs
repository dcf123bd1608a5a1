//! What pods may do, and the image that they run.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use herald_tests::{
    Backend, Binaries, Cluster, Options, http,
    manifests::{list, text},
};

use super::sites;

/// The rules of the profile "restricted" that concern pods without volumes of the host.
#[tokio::test]
async fn every_pod_keeps_to_the_restricted_profile() -> Result<()> {
    for site in sites().await? {
        for pod in site.pods() {
            let spec = pod.template.pointer("/spec").unwrap();
            let owner = &pod.owner;
            assert_eq!(
                spec.pointer("/securityContext/runAsNonRoot"),
                Some(&true.into()),
                "{owner}"
            );
            let seccomp = text(spec, "/securityContext/seccompProfile/type");
            assert_eq!(seccomp, "RuntimeDefault", "{owner}");
            assert_eq!(spec.get("automountServiceAccountToken"), Some(&false.into()), "{owner}");
            for name in ["hostNetwork", "hostPID", "hostIPC"] {
                assert!(spec.get(name).is_none(), "{owner}: {name}");
            }
            let kinds = ["configMap", "emptyDir", "projected", "secret", "persistentVolumeClaim"];
            for volume in list(spec, "/volumes") {
                let fields = volume.as_object().unwrap().keys();
                let mut kind = fields.filter(|key| *key != "name");
                assert!(kind.all(|kind| kinds.contains(&kind.as_str())), "{owner}: {volume}");
            }
            for container in pod.containers().iter().chain(list(spec, "/initContainers")) {
                let context = container.get("securityContext").context("no securityContext")?;
                let is = |name: &str, value: bool| context.get(name) == Some(&value.into());
                assert!(is("allowPrivilegeEscalation", false), "{owner}");
                assert!(is("readOnlyRootFilesystem", true), "{owner}");
                assert_eq!(context.pointer("/capabilities/drop/0"), Some(&"ALL".into()), "{owner}");
                assert!(context.pointer("/capabilities/add").is_none(), "{owner}");
                let limits = container.pointer("/resources/limits/memory");
                assert_eq!(limits, container.pointer("/resources/requests/memory"), "{owner}");
                let serves = owner.starts_with("Deployment") || owner.starts_with("StatefulSet");
                // The exporter is not to say whether the NATS server beside it is in service.
                let is_asked = serves && text(container, "/name") != "exporter";
                assert_eq!(container.get("readinessProbe").is_some(), is_asked, "{owner}");
                // Guaranteed, so that a node that runs short does not begin with NATS.
                if site.overlay == "prod" && owner == "StatefulSet herald-nats" {
                    let resources = container.get("resources").context("no resources")?;
                    assert_eq!(resources.get("limits"), resources.get("requests"), "{owner}");
                }
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_image_runs_what_pods_run_and_its_health_check_tells_the_truth() -> Result<()> {
    let dockerfile =
        std::fs::read_to_string(herald_tests::program::workspace().join("Dockerfile"))?;
    assert!(dockerfile.contains("install -D --strip --target-directory /out/usr/local/bin"));
    assert!(dockerfile.contains("CMD [\"/usr/local/bin/herald-gateway\", \"healthcheck\"]"));
    for site in sites().await? {
        let user = format!("USER {0}:{0}\n", 65532);
        assert!(dockerfile.contains(&user));
        for pod in site.pods().iter().filter(|pod| pod.ours().next().is_some()) {
            let user = pod.template.pointer("/spec/securityContext/runAsUser");
            assert_eq!(user, Some(&65532.into()), "{}", pod.owner);
        }
    }
    let binaries = Binaries::build(false).await?;
    let cluster = Cluster::start(Backend::Sqlite, Options::of(1, 1)).await?;
    let healthy = |program: &std::path::Path, flag: &'static str, address: SocketAddr| {
        let mut command = tokio::process::Command::new(program);
        command.arg("healthcheck").env(flag, format!("0.0.0.0:{}", address.port()));
        async move { Ok::<_, anyhow::Error>(command.output().await?.status.success()) }
    };
    let (gateway, worker) = (cluster.gateways[0].address, cluster.workers[0].address);
    assert!(healthy(&binaries.gateway, "HERALD_LISTEN", gateway).await?);
    assert!(healthy(&binaries.worker, "HERALD_HEALTH_LISTEN", worker).await?);
    // Served by someone who does not say that it is ready, and by nobody.
    let not_ready = http::get(cluster.broker.address(), "/").await;
    assert!(not_ready.is_err());
    assert!(!healthy(&binaries.gateway, "HERALD_LISTEN", cluster.broker.address()).await?);
    drop(cluster);
    assert!(!healthy(&binaries.gateway, "HERALD_LISTEN", gateway).await?);
    assert!(!healthy(&binaries.worker, "HERALD_HEALTH_LISTEN", worker).await?);
    Ok(())
}
