//! The manifests in `k8s/`, as `kubectl kustomize` builds them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize as _;
use serde_json::Value;
use tokio::process::Command;

use crate::{program::workspace, tools};

/// What a kustomization comes to.
#[derive(Debug, Clone)]
pub struct Manifests {
    /// The objects.
    pub objects: Vec<Value>,
}

/// The folder of the manifests.
pub fn folder() -> PathBuf {
    workspace().join("k8s")
}

impl Manifests {
    /// Builds the kustomization in that folder, for example `overlays/prod`.
    ///
    /// # Errors
    /// If it does not build; says what `kubectl` said.
    pub async fn build(kustomization: &str) -> Result<Self> {
        Self::build_at(&folder().join(kustomization)).await
    }

    /// Builds the kustomization in that folder.
    ///
    /// # Errors
    /// If it does not build; says what `kubectl` said.
    pub async fn build_at(folder: &Path) -> Result<Self> {
        let output = Command::new(tools::kubectl().await?)
            .arg("kustomize")
            .arg(folder)
            .stdin(Stdio::null())
            .output()
            .await?;
        let said = String::from_utf8_lossy(&output.stderr);
        // A warning, of a deprecated field for example, is a fault to come.
        ensure!(
            output.status.success() && said.is_empty(),
            "kubectl kustomize {}: {said}",
            folder.display()
        );
        Self::parse(&String::from_utf8(output.stdout)?)
    }

    /// Builds an overlay with these components, as a site's own kustomization would.
    ///
    /// # Errors
    /// If it does not build; says what `kubectl` said.
    pub async fn build_with(overlay: &str, components: &[&str]) -> Result<Self> {
        let site = tempfile::Builder::new().prefix("herald-site-").tempdir()?;
        let site_path = site.path().canonicalize()?;
        // A kustomization names others by relative paths.
        let up: PathBuf = site_path.components().skip(1).map(|_| "..").collect();
        let manifests = folder().canonicalize()?;
        let manifests = up.join(manifests.strip_prefix("/")?);
        let path = |part: String| manifests.join(part).display().to_string();
        let components: Vec<String> =
            components.iter().map(|name| path(format!("components/{name}"))).collect();
        let kustomization = serde_json::json!({
            "resources": [path(format!("overlays/{overlay}"))],
            "components": components,
        });
        std::fs::write(site_path.join("kustomization.yaml"), kustomization.to_string())?;
        Self::build_at(&site_path).await
    }

    /// Reads YAML documents.
    ///
    /// # Errors
    /// If it is no YAML.
    pub fn parse(text: &str) -> Result<Self> {
        let mut objects = Vec::new();
        for document in yaml_serde::Deserializer::from_str(text) {
            let object = Value::deserialize(document)?;
            if !object.is_null() {
                objects.push(object);
            }
        }
        Ok(Self { objects })
    }

    /// What the script `secrets.sh` makes for an overlay (`prod`, or `prod passwords`), with these variables in its
    /// environment. Without others there is no cluster, and any URL of a database will do.
    ///
    /// # Errors
    /// If it fails; says what it said.
    pub async fn secrets(what: &str, env: &[(&str, &str)]) -> Result<Self> {
        let output = Command::new(folder().join("secrets.sh"))
            .args(what.split(' '))
            .env("KUBECTL", tools::kubectl().await?)
            .envs([("OFFLINE", "1"), ("UNVERIFIED_DATABASE", "1")])
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .output()
            .await
            .context("running secrets.sh, which needs openssl")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "secrets.sh: {said}");
        Self::parse(&String::from_utf8(output.stdout)?)
    }

    /// The objects of a kind.
    pub fn of_kind<'a, 'k>(
        &'a self,
        kind: &'k str,
    ) -> impl Iterator<Item = &'a Value> + use<'a, 'k> {
        self.objects.iter().filter(move |object| text(object, "/kind") == kind)
    }

    /// An object by its kind and name.
    ///
    /// # Errors
    /// If there is none.
    pub fn get(&self, kind: &str, name: &str) -> Result<&Value> {
        self.of_kind(kind)
            .find(|object| text(object, "/metadata/name") == name)
            .with_context(|| format!("there is no {kind} {name}"))
    }

    /// The data of a generated ConfigMap, whose name ends in a hash of it.
    ///
    /// # Errors
    /// If there is none.
    pub fn config_map(&self, name: &str) -> Result<BTreeMap<String, String>> {
        let is_it = |object: &&Value| {
            let hash = text(object, "/metadata/name").strip_prefix(name);
            let hash = hash.and_then(|rest| rest.strip_prefix('-'));
            hash.is_some_and(|hash| hash.len() == 10 && !hash.contains('-'))
        };
        let found = self.of_kind("ConfigMap").find(is_it);
        let found = found.with_context(|| format!("there is no generated ConfigMap {name}"))?;
        Ok(serde_json::from_value(found.pointer("/data").cloned().unwrap_or_default())?)
    }
}

/// What a Secret holds under a key.
///
/// # Errors
/// If it has no such key.
pub fn secret(secret: &Value, key: &str) -> Result<Vec<u8>> {
    let name = text(secret, "/metadata/name");
    let data = secret.get("data").and_then(|data| data.get(key)).and_then(Value::as_str);
    let data = data.with_context(|| format!("the Secret {name} has no key {key}"))?;
    Ok(BASE64_STANDARD.decode(data)?)
}

/// The text at that place, empty if there is none.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The list at that place, empty if there is none.
pub fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}
