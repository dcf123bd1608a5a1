//! What the README and the runbook tell operators: the sites build, and the warning of full disks comes before they are.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use herald_tests::{
    manifests::{Manifests, folder, list, text},
    tools,
};
use serde_json::{Value, json};
use tokio::process::Command;

/// The files that the README shows as `# site/NAME`, in their order.
fn shown() -> Result<Vec<(String, String)>> {
    let readme = fs::read_to_string(folder().join("README.md"))?;
    let blocks = readme.split("\n```yaml\n# site/").skip(1);
    let files = blocks.map(|block| {
        let block = block.split("\n```").next().context("no end")?;
        let (name, content) = block.split_once('\n').context("no name")?;
        Ok((name.to_owned(), format!("{content}\n")))
    });
    files.collect()
}

/// Builds a site of these files. They name the manifests as `../k8s`.
async fn build(files: &BTreeMap<String, String>) -> Result<Manifests> {
    let site = tempfile::Builder::new().prefix("herald-site-").tempdir()?;
    let here = site.path().canonicalize()?;
    let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
    let k8s = up.join(folder().canonicalize()?.strip_prefix("/")?);
    for (name, content) in files {
        let content = content.replace("../k8s", &k8s.display().to_string());
        fs::write(here.join(name), content)?;
    }
    Manifests::build_at(&here).await
}

#[tokio::test]
async fn the_sites_that_the_readme_shows_build() -> Result<()> {
    let shown = shown()?;
    let (kustomizations, others): (Vec<_>, Vec<_>) =
        shown.into_iter().partition(|(name, _)| name == "kustomization.yaml");
    let mut sites = Vec::new();
    for kustomization in kustomizations {
        let files = others.iter().chain([&kustomization]).cloned().collect();
        sites.push(build(&files).await?);
    }
    let [dev, prod] = &*sites else { anyhow::bail!("{} sites", sites.len()) };

    let image = |site: &Manifests| {
        let gateway = site.get("Deployment", "herald-gateway")?;
        Ok::<_, anyhow::Error>(text(gateway, "/spec/template/spec/containers/0/image").to_owned())
    };
    assert_eq!(image(dev)?, image(prod)?);
    let route = prod.get("HTTPRoute", "herald")?;
    let ingress = prod.get("Ingress", "herald")?;
    assert_eq!(text(route, "/spec/hostnames/0"), text(ingress, "/spec/rules/0/host"));
    assert_eq!(text(ingress, "/spec/tls/0/hosts/0"), text(ingress, "/spec/rules/0/host"));
    for kind in ["PodMonitor", "PrometheusRule"] {
        for object in prod.of_kind(kind) {
            assert_eq!(text(object, "/metadata/labels/release"), "kube-prometheus-stack");
        }
    }
    // The collector is told where traces go by what was patched, and may go there.
    let collector = prod.get("Deployment", "herald-collector")?;
    let endpoint = collector.pointer("/spec/template/spec/containers/0/env/0").context("no env")?;
    assert_eq!(text(endpoint, "/name"), "TRACES_ENDPOINT");
    assert!(
        prod.config_map("herald-collector")?["collector-config.yaml"].contains("TRACES_ENDPOINT")
    );
    let egress = prod.get("NetworkPolicy", "collector")?.pointer("/spec/egress/0/to/0");
    let namespace = egress.and_then(|to| to.pointer("/namespaceSelector/matchLabels"));
    let namespace = namespace.context("no namespace")?;
    let namespace = text(namespace, "/kubernetes.io~1metadata.name");
    assert_eq!(text(endpoint, "/value").split('.').nth(1), Some(namespace));
    let nats = prod.get("StatefulSet", "herald-nats")?;
    let spread = list(nats, "/spec/template/spec/topologySpreadConstraints");
    let keys: Vec<&str> = spread.iter().map(|it| text(it, "/topologyKey")).collect();
    assert_eq!(keys, ["kubernetes.io/hostname"]);
    // All that is told of longer times is in the pod's grace period.
    let gateway = prod.get("Deployment", "herald-gateway")?;
    let spec = gateway.pointer("/spec/template/spec").context("no pod")?;
    let number = |pointer: &str| spec.pointer(pointer).and_then(Value::as_u64).context("no number");
    let grace = number("/terminationGracePeriodSeconds")?;
    assert!(grace > number("/containers/0/lifecycle/preStop/sleep/seconds")? + 20 + 10);
    Ok(())
}

#[tokio::test]
async fn nats_is_said_to_be_full_before_jetstream_refuses() -> Result<()> {
    let manifests = Manifests::build_with("prod", &["monitoring"]).await?;
    let groups = list(manifests.get("PrometheusRule", "herald-platform")?, "/spec/groups").to_vec();
    let rule = groups.iter().flat_map(|group| list(group, "/rules"));
    let rule = rule.clone().find(|rule| text(rule, "/alert") == "HeraldNatsStorageFull");
    let rule = rule.context("no rule")?;
    let series = |name: &str, values: &str| {
        let labels = r#"namespace="herald", pod="herald-nats-0", server_id="a""#;
        json!({"series": format!("{name}{{{labels}}}"), "values": values})
    };
    let told = json!({
        "exp_labels": {"namespace": "herald", "pod": "herald-nats-0", "severity": "warning"},
        "exp_annotations": {
            "summary": "herald-nats-0 holds 85% of what JetStream may",
            "description": text(rule, "/annotations/description"),
            "runbook": text(rule, "/annotations/runbook"),
        },
    });
    let moment = |time: &str, alerts: &[&Value]| json!({"eval_time": time, "alertname": "HeraldNatsStorageFull", "exp_alerts": alerts});
    let tests = json!({
        "rule_files": ["rules.yaml"],
        "tests": [{
            "interval": "1m",
            "input_series": [
                series("nats_server_total_message_bytes", "75x15 85x25"),
                series("nats_server_max_storage", "100x40"),
            ],
            "alert_rule_test": [moment("12m", &[]), moment("35m", &[&told])],
        }],
    });
    let work = tempfile::tempdir()?;
    fs::write(work.path().join("rules.yaml"), json!({"groups": groups}).to_string())?;
    fs::write(work.path().join("tests.yaml"), tests.to_string())?;
    promtool(work.path()).await
}

async fn promtool(folder: &Path) -> Result<()> {
    let mut promtool = Command::new(tools::promtool().await?);
    let output =
        promtool.args(["test", "rules", "tests.yaml"]).current_dir(folder).output().await?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "promtool: {}", String::from_utf8_lossy(&said));
    Ok(())
}
