//! What a program tells at `/metrics`, read by the parser that the format is defined by (Prometheus' own Python client),
//! which takes nothing that is not right to the letter.

use std::{collections::BTreeMap, net::SocketAddr, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::{http, tools};

/// What was scraped.
#[derive(Debug, Clone, Deserialize)]
pub struct Scrape(pub Vec<Family>);

/// Metrics of one name.
#[derive(Debug, Clone, Deserialize)]
pub struct Family {
    /// Its name, without the suffixes of its samples.
    pub name: String,
    /// What it means.
    pub help: String,
    /// What kind it is.
    pub kind: String,
    /// The samples.
    pub samples: Vec<Sample>,
}

/// A line.
#[derive(Debug, Clone, Deserialize)]
pub struct Sample {
    /// Its name, as queries spell it.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
    /// The labels of its exemplar, if it has one.
    pub exemplar: Option<BTreeMap<String, String>>,
}

const PARSE: &str = r#"
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
print(json.dumps([
    {"name": family.name, "help": family.documentation, "kind": family.type, "samples": [
        {"name": sample.name, "labels": sample.labels, "value": sample.value,
         "exemplar": sample.exemplar and sample.exemplar.labels}
        for sample in family.samples]}
    for family in text_string_to_metric_families(sys.stdin.read())]))
"#;

impl Scrape {
    /// Asks a program.
    ///
    /// # Errors
    /// If it does not answer, or with something else than OpenMetrics.
    pub async fn of(address: SocketAddr) -> Result<Self> {
        let (status, text) = http::get(address, "/metrics").await?;
        ensure!(status == 200, "/metrics answered {status}");
        Self::parse(&text).await
    }

    /// Reads OpenMetrics.
    ///
    /// # Errors
    /// If it is none.
    pub async fn parse(text: &str) -> Result<Self> {
        let mut python = Command::new("python3")
            .args(["-c", PARSE])
            .env("PYTHONPATH", tools::openmetrics_parser().await?)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("running python3")?;
        let mut input = python.stdin.take().context("no standard input")?;
        input.write_all(text.as_bytes()).await?;
        drop(input);
        let output = python.wait_with_output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "no OpenMetrics: {said}\n{text}");
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// All samples.
    pub fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.0.iter().flat_map(|family| &family.samples)
    }

    /// The samples of that name which have these labels.
    pub fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        let has = |sample: &Sample, (label, value): &(&str, &str)| {
            sample.labels.get(*label).is_some_and(|found| found == value)
        };
        self.samples().filter(move |sample| {
            sample.name == name && labels.iter().all(|label| has(sample, label))
        })
    }

    /// Their sum.
    ///
    /// # Errors
    /// If there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        ensure!(self.matching(name, labels).next().is_some(), "there is no {name}{labels:?}");
        Ok(self.matching(name, labels).map(|sample| sample.value).sum())
    }
}
