//! What dashboards, alerts and autoscalers ask for is there: each metric, each label, each value of a label.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context as _, Result, ensure};
use herald_tests::{
    Scrape, eventually,
    manifests::{Manifests, folder, list, text},
};
use herald_worker::topology::DEFAULT;
use promql_parser::{
    label::{MatchOp, Matcher},
    parser::{self, Expr, LabelModifier, VectorSelector},
};
use serde_json::Value;

use super::{PATIENCE, alerts, busy};

/// What Prometheus itself, and the PodMonitors, put on every series.
const TARGET: [&str; 6] = ["namespace", "pod", "container", "job", "instance", "endpoint"];

/// What others than Herald tell, as far as it is used, with their labels.
///
/// - `nats_*`: prometheus-nats-exporter 0.17 with `-prefix=nats` (collector/jsz.go, collector/collector.go: a gauge for each
///   number in NATS' `/varz`).
/// - `pg_*`: postgres_exporter 0.18 (collector/pg_stat_database.go, pg_database.go, pg_locks.go, cmd/postgres_exporter:
///   a gauge `pg_settings_*` for each setting).
/// - `kube_*`: kube-state-metrics 2 (docs/metrics); `kubelet_*`: the kubelet; `up`: Prometheus.
const OTHERS: [(&str, &[&str]); 38] = [
    ("nats_varz_connections", &["server_id"]),
    ("nats_varz_subscriptions", &["server_id"]),
    ("nats_varz_mem", &["server_id"]),
    ("nats_varz_cpu", &["server_id"]),
    ("nats_varz_in_msgs", &["server_id"]),
    ("nats_varz_out_msgs", &["server_id"]),
    ("nats_varz_in_bytes", &["server_id"]),
    ("nats_varz_out_bytes", &["server_id"]),
    ("nats_varz_slow_consumers", &["server_id"]),
    ("nats_server_total_message_bytes", &["server_id", "server_name"]),
    ("nats_server_max_storage", &["server_id", "server_name"]),
    ("nats_stream_total_messages", STREAM),
    ("nats_stream_total_bytes", STREAM),
    ("nats_stream_last_seq", STREAM),
    ("nats_consumer_num_pending", CONSUMER),
    ("nats_consumer_num_ack_pending", CONSUMER),
    ("nats_consumer_num_redelivered", CONSUMER),
    ("pg_stat_database_numbackends", DATABASE),
    ("pg_stat_database_xact_commit", DATABASE),
    ("pg_stat_database_xact_rollback", DATABASE),
    ("pg_stat_database_blks_hit", DATABASE),
    ("pg_stat_database_blks_read", DATABASE),
    ("pg_stat_database_tup_inserted", DATABASE),
    ("pg_stat_database_tup_updated", DATABASE),
    ("pg_stat_database_deadlocks", DATABASE),
    ("pg_database_size_bytes", &["datname"]),
    ("pg_locks_count", &["datname", "mode"]),
    ("pg_settings_max_connections", &["server"]),
    ("kube_pod_container_resource_limits", &["resource", "unit", "node", "uid"]),
    ("kube_deployment_status_replicas_available", &["deployment"]),
    ("kube_statefulset_status_replicas_ready", &["statefulset"]),
    ("kube_statefulset_replicas", &["statefulset"]),
    ("kube_horizontalpodautoscaler_status_current_replicas", &["horizontalpodautoscaler"]),
    ("kube_horizontalpodautoscaler_spec_max_replicas", &["horizontalpodautoscaler"]),
    ("kubelet_volume_stats_available_bytes", &["persistentvolumeclaim"]),
    ("kubelet_volume_stats_capacity_bytes", &["persistentvolumeclaim"]),
    ("up", &[]),
    ("ALERTS", &["alertname", "alertstate"]),
];
const STREAM: &[&str] =
    &["server_id", "server_name", "account", "stream_name", "stream_leader", "is_stream_leader"];
const CONSUMER: &[&str] = &[
    "server_id",
    "server_name",
    "account",
    "stream_name",
    "is_stream_leader",
    "consumer_name",
    "is_consumer_leader",
];
const DATABASE: &[&str] = &["datid", "datname"];

/// A query, and where it stands.
struct Query {
    place: String,
    text: String,
}

/// The values of each label of each metric.
#[derive(Default)]
struct Known(BTreeMap<String, BTreeMap<String, BTreeSet<String>>>);

impl Known {
    fn add(&mut self, scrape: &Scrape) {
        for sample in scrape.samples() {
            let labels = self.0.entry(sample.name.clone()).or_default();
            for (label, value) in &sample.labels {
                labels.entry(label.clone()).or_default().insert(value.clone());
            }
        }
    }

    /// The labels of a metric of ours, or of another's.
    fn labels(&self, metric: &str) -> Option<Vec<&str>> {
        if let Some(labels) = self.0.get(metric) {
            return Some(labels.keys().map(String::as_str).collect());
        }
        let (_, labels) = OTHERS.iter().find(|(name, _)| *name == metric)?;
        Some(labels.to_vec())
    }

    fn check(&self, query: &Query) -> Result<()> {
        let expr = parser::parse(&query.text).map_err(anyhow::Error::msg)?;
        let mut asked = Asked::default();
        asked.read(&expr);
        ensure!(!asked.metrics.is_empty(), "asks for nothing");
        let mut labels: BTreeSet<&str> = TARGET.into_iter().chain(["le"]).collect();
        for (metric, matchers) in &asked.metrics {
            let own = self.labels(metric).with_context(|| format!("there is no {metric}"))?;
            for Matcher { op, name, value } in matchers {
                let is_known = own.contains(&name.as_str()) || TARGET.contains(&name.as_str());
                ensure!(is_known, "{metric} has no label {name}");
                let values = self.0.get(metric).and_then(|labels| labels.get(name));
                let is_there = match op {
                    MatchOp::Equal | MatchOp::NotEqual => {
                        values.is_none_or(|all| all.contains(value))
                    }
                    MatchOp::Re(pattern) | MatchOp::NotRe(pattern) => {
                        values.is_none_or(|all| all.iter().any(|value| pattern.is_match(value)))
                    }
                };
                ensure!(is_there, "{metric}: {name} is never {value}");
            }
            labels.extend(own);
        }
        for label in &asked.labels {
            ensure!(labels.contains(label.as_str()), "nothing has a label {label}");
        }
        Ok(())
    }
}

/// What a query asks for.
#[derive(Default)]
struct Asked {
    metrics: Vec<(String, Vec<Matcher>)>,
    labels: BTreeSet<String>,
}

impl Asked {
    fn read(&mut self, expr: &Expr) {
        match expr {
            Expr::Aggregate(aggregate) => {
                self.modifier(aggregate.modifier.as_ref());
                self.read(&aggregate.expr);
                if let Some(parameter) = &aggregate.param {
                    self.read(parameter);
                }
            }
            Expr::Unary(unary) => self.read(&unary.expr),
            Expr::Binary(binary) => {
                if let Some(modifier) = &binary.modifier {
                    self.modifier(modifier.matching.as_ref());
                }
                self.read(&binary.lhs);
                self.read(&binary.rhs);
            }
            Expr::Paren(paren) => self.read(&paren.expr),
            Expr::Subquery(subquery) => self.read(&subquery.expr),
            Expr::VectorSelector(selector) => self.selector(selector),
            Expr::MatrixSelector(selector) => self.selector(&selector.vs),
            Expr::Call(call) => call.args.args.iter().for_each(|argument| self.read(argument)),
            Expr::NumberLiteral(_) | Expr::StringLiteral(_) | Expr::Extension(_) => {}
        }
    }

    fn modifier(&mut self, modifier: Option<&LabelModifier>) {
        if let Some(LabelModifier::Include(labels) | LabelModifier::Exclude(labels)) = modifier {
            self.labels.extend(labels.labels.iter().cloned());
        }
    }

    fn selector(&mut self, selector: &VectorSelector) {
        let name = selector.name.clone().unwrap_or_default();
        self.metrics.push((name, selector.matchers.matchers.clone()));
    }
}

/// The dashboards, by their files' names.
pub(super) fn dashboards() -> Result<BTreeMap<String, Value>> {
    let mut dashboards = BTreeMap::new();
    for entry in fs::read_dir(folder().join("dashboards"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let name = path.file_name().and_then(|name| name.to_str()).context("no name")?;
            dashboards.insert(name.to_owned(), serde_json::from_str(&fs::read_to_string(&path)?)?);
        }
    }
    ensure!(!dashboards.is_empty());
    Ok(dashboards)
}

fn queries(manifests: &Manifests) -> Result<Vec<Query>> {
    let mut queries = Vec::new();
    for (file, dashboard) in dashboards()? {
        for panel in list(&dashboard, "/panels") {
            for target in list(panel, "/targets") {
                if text(target, "/datasource/type") == "prometheus" {
                    let place = format!("{file}: {}", text(panel, "/title"));
                    let mut query = text(target, "/expr").to_owned();
                    // What a legend names is asked for too.
                    let legend = text(target, "/legendFormat");
                    let named = legend.split("{{").skip(1).filter_map(|rest| rest.split_once("}}"));
                    for (label, _) in named {
                        query = format!("sum by ({label}) ({query})");
                    }
                    queries.push(Query { place, text: query });
                }
            }
        }
        for variable in list(&dashboard, "/templating/list") {
            let asked = text(variable, "/query/query");
            if let Some(inner) = asked.strip_prefix("label_values(") {
                let (metric, label) =
                    inner.trim_end_matches(')').split_once(", ").context("two")?;
                let place = format!("{file}: ${}", text(variable, "/name"));
                queries.push(Query { place, text: format!("sum by ({label}) ({metric})") });
            }
        }
    }
    for rule in alerts::groups(manifests).iter().flat_map(|group| list(group, "/rules")) {
        let place = text(rule, "/alert").to_owned();
        queries.push(Query { place, text: text(rule, "/expr").to_owned() });
    }
    for scaled in manifests.of_kind("ScaledObject") {
        for trigger in list(scaled, "/spec/triggers") {
            if text(trigger, "/type") == "prometheus" {
                let place = format!("ScaledObject {}", text(scaled, "/metadata/name"));
                queries.push(Query { place, text: text(trigger, "/metadata/query").to_owned() });
            }
        }
    }
    for query in &mut queries {
        for (variable, value) in
            [("$__rate_interval", "5m"), ("$namespace", "x"), ("$database", "x")]
        {
            query.text = query.text.replace(variable, value);
        }
    }
    Ok(queries)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_is_asked_for_is_told() -> Result<()> {
    let manifests = Manifests::build_with("prod", &["keda", "monitoring"]).await?;
    let (cluster, ..) = busy().await?;
    let worker = eventually("every partition's lag is told", PATIENCE, async || {
        let worker = Scrape::of(cluster.workers[0].metrics).await?;
        ensure!(
            worker.matching("herald_worker_partition_lag", &[]).count()
                == usize::from(DEFAULT.partitions)
        );
        Ok(worker)
    });
    let mut known = Known::default();
    known.add(&worker.await?);
    known.add(&Scrape::of(cluster.gateways[0].metrics).await?);
    let queries = queries(&manifests)?;
    let mut wrong = Vec::new();
    for query in &queries {
        if let Err(error) = known.check(query) {
            wrong.push(format!("{}: {error:#}, in {}", query.place, query.text));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(queries.len() > 80, "{}", queries.len());
    for what in ["Herald", "ScaledObject", "gateway.json"] {
        assert!(queries.iter().any(|query| query.place.starts_with(what)), "nothing of {what}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_table_has_every_metric_and_none_more() -> Result<()> {
    let (cluster, ..) = busy().await?;
    let mut told = BTreeMap::new();
    for address in [cluster.gateways[0].metrics, cluster.workers[0].metrics] {
        for family in Scrape::of(address).await?.0 {
            let total = if family.kind == "counter" { "_total" } else { "" };
            let labels = family.samples.first().into_iter().flat_map(|sample| sample.labels.keys());
            let labels: BTreeSet<String> = labels.filter(|label| *label != "le").cloned().collect();
            told.insert(format!("{}{total}", family.name), labels);
        }
    }
    // Only told when the broker was asked.
    told.insert("herald_worker_partition_lag".into(), ["partition".into()].into());
    let table = fs::read_to_string(folder().join("METRICS.md"))?;
    let mut listed = BTreeMap::new();
    for line in table.lines().filter_map(|line| line.strip_prefix("| `")) {
        let mut cells = line.split(" | ");
        let name = cells.next().context("no name")?.trim_end_matches('`');
        let labels = cells.nth(1).context("no labels")?.split(", ");
        let labels = labels.map(|label| label.trim_matches(['`', ' ']).to_owned());
        let labels = labels.filter(|label| !label.is_empty());
        listed.insert(name.to_owned(), labels.collect::<BTreeSet<_>>());
    }
    assert_eq!(listed, told);
    Ok(())
}
