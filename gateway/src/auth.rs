//! Who a client is: a JWT whose `sub` is the user id, or, in development only, whatever it says.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, Uri, header};
use herald_proto::{DeviceId, UserId};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;

use crate::{config::AuthArgs, error::Error, session::Identity};

mod jwks;

use jwks::Jwks;

/// The WebSocket subprotocol that announces a token as the next one: for browsers, which can't set headers.
pub const SUBPROTOCOL: &str = "bearer";

/// Authenticates clients.
pub struct Authenticator {
    keys: Keys,
    audience: Option<String>,
    issuer: Option<String>,
}

enum Keys {
    Secret(Box<DecodingKey>),
    Jwks(Jwks),
    Insecure,
}

/// The query of `/ws`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Query {
    /// The user, in insecure mode.
    user_id: Option<String>,
    /// The device.
    device_id: Option<String>,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
}

/// The algorithms that a JWKS may be used with. No HMAC: a public key must never serve as a secret.
const PUBLIC_KEY_ALGORITHMS: [Algorithm; 3] =
    [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];

impl Authenticator {
    /// Reads the secret or the keys.
    ///
    /// # Errors
    /// A message that names the flag.
    pub async fn new(args: &AuthArgs) -> anyhow::Result<Self> {
        let keys = if args.insecure_auth {
            tracing::warn!(
                "--insecure-auth: clients are NOT authenticated, anyone can be anyone; for development only"
            );
            Keys::Insecure
        } else if let Some(path) = &args.auth_hs256_secret_file {
            let secret = std::fs::read(path).map_err(|error| {
                anyhow::anyhow!("--auth-hs256-secret-file {}: {error}", path.display())
            })?;
            let secret = secret.trim_ascii();
            anyhow::ensure!(
                secret.len() >= 32,
                "--auth-hs256-secret-file: the secret must have at least 32 bytes (RFC 7518)"
            );
            Keys::Secret(Box::new(DecodingKey::from_secret(secret)))
        } else if let Some(source) = &args.auth_jwks {
            Keys::Jwks(Jwks::load(source).await?)
        } else {
            anyhow::bail!(
                "one of --auth-hs256-secret-file, --auth-jwks, --insecure-auth is needed"
            );
        };
        Ok(Self { keys, audience: args.auth_audience.clone(), issuer: args.auth_issuer.clone() })
    }

    /// Says who sends these headers to this address.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`] says why not.
    pub async fn identify(&self, headers: &HeaderMap, uri: &Uri) -> Result<Identity, Error> {
        let query = axum::extract::Query::<Query>::try_from_uri(uri);
        let axum::extract::Query(query) = query.map_err(|why| unauthenticated(why.to_string()))?;
        let device = match query.device_id {
            Some(device) => {
                DeviceId::new(device).map_err(|why| unauthenticated(format!("deviceId: {why}")))?
            }
            None => DeviceId::default(),
        };
        if let Keys::Insecure = self.keys {
            let user = query.user_id.ok_or_else(|| unauthenticated("userId: missing"))?;
            let user =
                UserId::new(user).map_err(|why| unauthenticated(format!("userId: {why}")))?;
            return Ok(Identity { user, device, expires_at: None });
        }
        let token = token(headers).ok_or_else(|| unauthenticated("there is no bearer token"))?;
        let claims = self.verify(token).await?;
        let user = UserId::new(claims.sub).map_err(|why| unauthenticated(format!("sub: {why}")))?;
        let expires = UNIX_EPOCH.checked_add(Duration::from_secs(claims.exp));
        let left =
            expires.and_then(|at| at.duration_since(SystemTime::now()).ok()).unwrap_or_default();
        Ok(Identity { user, device, expires_at: Instant::now().checked_add(left) })
    }

    async fn verify(&self, token: &str) -> Result<Claims, Error> {
        let header = jsonwebtoken::decode_header(token)
            .map_err(|error| unauthenticated(error.to_string()))?;
        let (key, algorithm) = match &self.keys {
            Keys::Secret(key) => ((**key).clone(), Algorithm::HS256),
            Keys::Jwks(jwks) if PUBLIC_KEY_ALGORITHMS.contains(&header.alg) => {
                let key = jwks.key(header.kid.as_deref()).await;
                (key.ok_or_else(|| unauthenticated("the token's key is unknown"))?, header.alg)
            }
            Keys::Jwks(_) | Keys::Insecure => {
                return Err(unauthenticated("the token's algorithm is not allowed"));
            }
        };
        let mut validation = Validation::new(algorithm);
        validation.leeway = 0;
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp", "sub"]);
        match &self.audience {
            Some(audience) => {
                validation.set_audience(&[audience]);
                validation.required_spec_claims.insert("aud".into());
            }
            None => validation.validate_aud = false,
        }
        if let Some(issuer) = &self.issuer {
            validation.set_issuer(&[issuer]);
            validation.required_spec_claims.insert("iss".into());
        }
        let token = jsonwebtoken::decode(token, &key, &validation)
            .map_err(|error| unauthenticated(error.to_string()))?;
        Ok(token.claims)
    }
}

fn unauthenticated(why: impl Into<String>) -> Error {
    Error::Unauthenticated(why.into())
}

/// `Authorization: Bearer <token>`, or the subprotocols `bearer, <token>`.
fn token(headers: &HeaderMap) -> Option<&str> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| token.trim());
    }
    let mut protocols = protocols(headers);
    protocols.find(|protocol| *protocol == SUBPROTOCOL)?;
    protocols.next()
}

/// Whether the client offers the subprotocol, which then has to be chosen.
pub fn offers_bearer(headers: &HeaderMap) -> bool {
    protocols(headers).any(|protocol| protocol == SUBPROTOCOL)
}

fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter();
    let lists = offered.filter_map(|value| value.to_str().ok());
    lists.flat_map(|value| value.split(',')).map(str::trim)
}
