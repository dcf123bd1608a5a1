//! Nothing in a dashboard hangs in the air.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use herald_tests::manifests::{Manifests, list, text};
use serde_json::Value;

use super::names::dashboards;

/// The variables that a text names, but for Grafana's own.
fn variables(text: &str) -> BTreeSet<String> {
    let after = text.split('$').skip(1);
    let names = after.map(|rest| {
        let rest = rest.strip_prefix('{').unwrap_or(rest);
        rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
    });
    names.filter(|name| !name.is_empty() && !name.starts_with("__")).collect()
}

fn number(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap()
}

#[test]
fn every_panel_has_a_place_a_query_and_a_source_and_every_variable_is_used() -> Result<()> {
    let mut uids = BTreeSet::new();
    for (file, dashboard) in dashboards()? {
        assert!(uids.insert(text(&dashboard, "/uid").to_owned()), "{file}: its uid is taken");
        assert!(text(&dashboard, "/title").starts_with("Herald / "), "{file}");
        let mut sources = BTreeSet::new();
        let mut defined = BTreeSet::new();
        for variable in list(&dashboard, "/templating/list") {
            let name = text(variable, "/name").to_owned();
            if text(variable, "/type") == "datasource" {
                sources.insert((format!("${{{name}}}"), text(variable, "/query").to_owned()));
            }
            assert!(defined.insert(name), "{file}: a variable twice");
        }
        let mut places: BTreeSet<(u64, u64)> = BTreeSet::new();
        let mut ids = BTreeSet::new();
        for panel in list(&dashboard, "/panels") {
            let place = format!("{file}: {}", text(panel, "/title"));
            assert!(!text(panel, "/title").is_empty(), "{file}: a panel without a title");
            assert!(ids.insert(number(panel, "/id")), "{place}: its id is taken");
            let (x, y) = (number(panel, "/gridPos/x"), number(panel, "/gridPos/y"));
            let (w, h) = (number(panel, "/gridPos/w"), number(panel, "/gridPos/h"));
            assert!(w > 0 && h > 0 && x + w <= 24, "{place}: off the grid");
            for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                assert!(places.insert(cell), "{place}: its place is taken");
            }
            if ["row", "text"].contains(&text(panel, "/type")) {
                continue;
            }
            let targets = list(panel, "/targets");
            assert!(!targets.is_empty(), "{place}: no query");
            let mut refs = BTreeSet::new();
            for target in targets {
                assert!(refs.insert(text(target, "/refId")), "{place}: a refId twice");
                let query = [text(target, "/expr"), text(target, "/query")].concat();
                assert!(!query.is_empty(), "{place}: an empty query");
                let source = target.get("datasource").context("no data source")?;
                assert_eq!(Some(source), panel.get("datasource"), "{place}");
                let source = (text(source, "/uid").to_owned(), text(source, "/type").to_owned());
                assert!(sources.contains(&source), "{place}: {source:?} is no variable");
            }
        }
        let used = variables(&dashboard.to_string());
        assert_eq!(used, defined, "{file}: variables that are used, and that are defined");
    }
    Ok(())
}

#[tokio::test]
async fn grafana_is_given_every_dashboard() -> Result<()> {
    let manifests = Manifests::build_with("prod", &["monitoring"]).await?;
    let given: BTreeSet<String> = manifests
        .of_kind("ConfigMap")
        .filter(|map| text(map, "/metadata/labels/grafana_dashboard") == "1")
        .flat_map(|map| map.get("data").and_then(Value::as_object).cloned().unwrap_or_default())
        .map(|(file, content)| {
            let content: Value = serde_json::from_str(content.as_str().unwrap()).unwrap();
            assert_eq!(content, dashboards().unwrap()[&file], "{file}");
            file
        })
        .collect();
    assert_eq!(given, dashboards()?.into_keys().collect());
    Ok(())
}
