//! Alert rules are right, each fires when it should and not before, and for each the runbook says what to do.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use herald_tests::{
    manifests::{Manifests, folder, list, text},
    tools,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::process::Command;

/// Given to promtool, for which rules are a file of their own.
const TESTS: &str = include_str!("alerts.yaml");

#[derive(Deserialize)]
struct Tests {
    tests: Vec<Test>,
}

#[derive(Deserialize)]
struct Test {
    alert_rule_test: Vec<Moment>,
}

#[derive(Deserialize)]
struct Moment {
    alertname: String,
    exp_alerts: Vec<Value>,
}

/// The groups of all `PrometheusRule`s.
pub(super) fn groups(manifests: &Manifests) -> Vec<Value> {
    let rules = manifests.of_kind("PrometheusRule");
    rules.flat_map(|rule| list(rule, "/spec/groups").to_vec()).collect()
}

async fn alerts() -> Result<(Vec<Value>, BTreeSet<String>)> {
    let groups = groups(&Manifests::build_with("prod", &["monitoring"]).await?);
    let rules = groups.iter().flat_map(|group| list(group, "/rules"));
    let names = rules.map(|rule| text(rule, "/alert").to_owned()).collect();
    Ok((groups, names))
}

async fn promtool(folder: &Path, arguments: &[&str]) -> Result<()> {
    let output =
        Command::new(tools::promtool().await?).args(arguments).current_dir(folder).output().await?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "promtool: {}", String::from_utf8_lossy(&said));
    Ok(())
}

#[tokio::test]
async fn every_alert_fires_when_it_should_and_not_before() -> Result<()> {
    let (groups, names) = alerts().await?;
    let work = tempfile::tempdir()?;
    fs::write(work.path().join("rules.yaml"), json!({"groups": groups}).to_string())?;
    fs::write(work.path().join("alerts.yaml"), TESTS)?;
    promtool(work.path(), &["check", "rules", "--lint-fatal", "rules.yaml"]).await?;
    promtool(work.path(), &["test", "rules", "alerts.yaml"]).await?;

    let tests: Tests = yaml_serde::from_str(TESTS)?;
    let moments: Vec<&Moment> = tests.tests.iter().flat_map(|test| &test.alert_rule_test).collect();
    let tried = |fires: bool| {
        let found = moments.iter().filter(|moment| moment.exp_alerts.is_empty() != fires);
        found.map(|moment| moment.alertname.clone()).collect::<BTreeSet<_>>()
    };
    assert_eq!(tried(true), names, "alerts that were seen to fire");
    assert_eq!(tried(false), names, "alerts that were seen not to");
    Ok(())
}

#[tokio::test]
async fn the_runbook_has_a_section_for_every_alert_and_none_more() -> Result<()> {
    let (groups, names) = alerts().await?;
    let runbook = fs::read_to_string(folder().join("RUNBOOK.md"))?;
    let sections = runbook.lines().filter_map(|line| line.strip_prefix("## Herald"));
    let sections: BTreeSet<String> = sections.map(|name| format!("Herald{name}")).collect();
    assert_eq!(sections, names);
    for rule in groups.iter().flat_map(|group| list(group, "/rules")) {
        let name = text(rule, "/alert");
        let anchor = format!("RUNBOOK.md#{}", name.to_lowercase());
        assert_eq!(text(rule, "/annotations/runbook"), anchor);
        assert!(["warning", "critical"].contains(&text(rule, "/labels/severity")), "{name}");
        text(rule, "/annotations/summary").chars().next().context("no summary")?;
    }
    Ok(())
}
