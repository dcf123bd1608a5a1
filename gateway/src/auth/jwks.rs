//! The public keys that tokens are checked with, from a file or a URL; read again when a token names an unknown one.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::Context;
use jsonwebtoken::{DecodingKey, jwk::JwkSet};
use tokio::sync::Mutex;

/// The keys.
pub(super) struct Jwks {
    source: Source,
    keys: Mutex<Keys>,
}

enum Source {
    File(String),
    Url(reqwest::Client, String),
}

struct Keys {
    by_id: HashMap<Option<String>, DecodingKey>,
    read_at: Instant,
}

/// Unknown keys make the set be read again, but not more often than this.
const REREAD_AFTER: Duration = Duration::from_secs(10);
/// A key that was taken out of the set is trusted no longer than this.
const TRUSTED_FOR: Duration = Duration::from_secs(600);
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

impl Jwks {
    pub(super) async fn load(source: &str) -> anyhow::Result<Self> {
        let source = if source.starts_with("https://") || source.starts_with("http://") {
            // Fails if another part of the process has chosen a provider already, which serves as well.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let client =
                reqwest::Client::builder().timeout(FETCH_TIMEOUT).build().context("--auth-jwks")?;
            Source::Url(client, source.to_owned())
        } else {
            Source::File(source.to_owned())
        };
        let by_id = source.read().await?;
        Ok(Self { source, keys: Mutex::new(Keys { by_id, read_at: Instant::now() }) })
    }

    /// The key with that id; a token without an id may use a set's only key.
    pub(super) async fn key(&self, id: Option<&str>) -> Option<DecodingKey> {
        let mut keys = self.keys.lock().await;
        let age = keys.read_at.elapsed();
        if age > TRUSTED_FOR || (age > REREAD_AFTER && keys.find(id).is_none()) {
            keys.read_at = Instant::now();
            match self.source.read().await {
                Ok(by_id) => keys.by_id = by_id,
                Err(error) => tracing::warn!(%error, "the JWKS can't be read, the old keys stay"),
            }
        }
        keys.find(id).cloned()
    }
}

impl Keys {
    fn find(&self, id: Option<&str>) -> Option<&DecodingKey> {
        match id {
            Some(id) => self.by_id.get(&Some(id.to_owned())),
            None if self.by_id.len() == 1 => self.by_id.values().next(),
            None => None,
        }
    }
}

impl Source {
    async fn read(&self) -> anyhow::Result<HashMap<Option<String>, DecodingKey>> {
        let (name, text) = match self {
            Self::File(path) => {
                (path, tokio::fs::read(path).await.with_context(|| format!("--auth-jwks {path}"))?)
            }
            Self::Url(client, url) => {
                let response =
                    client.get(url).send().await.and_then(reqwest::Response::error_for_status);
                let body = response.with_context(|| format!("--auth-jwks {url}"))?.bytes().await;
                (url, body.with_context(|| format!("--auth-jwks {url}"))?.to_vec())
            }
        };
        let set: JwkSet = serde_json::from_slice(&text)
            .with_context(|| format!("--auth-jwks {name}: not a JWKS"))?;
        let keys: HashMap<_, _> = set
            .keys
            .iter()
            .filter_map(|jwk| Some((jwk.common.key_id.clone(), DecodingKey::from_jwk(jwk).ok()?)))
            .collect();
        anyhow::ensure!(!keys.is_empty(), "--auth-jwks {name}: there is no usable key in it");
        Ok(keys)
    }
}
