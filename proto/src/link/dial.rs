//! Opens a link's connection: as `async-nats` opens its own, with the same flags.

use std::{io, path::Path, sync::Arc, time::Duration};

use async_nats::ServerAddr;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::{Buf, BytesMut};
use nkeys::KeyPair;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::protocol::{Info, Op, parse};
use crate::broker::{self, BrokerArgs};

/// A connection, encrypted or not.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection that a server has let in.
pub struct Opened {
    /// The connection.
    pub stream: Box<dyn Stream>,
    /// What was read and is to be looked at.
    pub read: BytesMut,
    /// The largest message that the server takes, in bytes.
    pub max_payload: usize,
}

/// Knows where the servers are and how to be let in.
pub struct Dialer {
    args: BrokerArgs,
    name: String,
    servers: Vec<ServerAddr>,
    /// Servers that those above have told of.
    discovered: Vec<ServerAddr>,
    tries: usize,
}

/// What a client says first.
#[derive(Serialize, Default)]
struct Connect<'a> {
    verbose: bool,
    pedantic: bool,
    tls_required: bool,
    lang: &'a str,
    version: &'a str,
    protocol: u8,
    headers: bool,
    no_responders: bool,
    echo: bool,
    name: &'a str,
    user: Option<String>,
    pass: Option<String>,
    auth_token: Option<String>,
    jwt: Option<String>,
    sig: Option<String>,
}

/// How long opening may take.
const PATIENCE: Duration = Duration::from_secs(5);

impl Dialer {
    /// A dialer that says its name is `name`.
    ///
    /// # Errors
    /// If `--nats-url` names no server.
    pub fn new(args: &BrokerArgs, name: String) -> Result<Self, broker::Error> {
        let servers = args.servers()?;
        // Not all gateways begin with the same one.
        let tries = fastrand::usize(..servers.len().max(1));
        Ok(Self { args: args.clone(), name, servers, discovered: Vec::new(), tries })
    }

    /// Tries the next server. Secrets are read from their files each time: they may have been changed.
    ///
    /// # Errors
    /// If it can't be reached or lets nobody in.
    pub async fn dial(&mut self) -> io::Result<Opened> {
        let mut known = self.servers.iter().chain(&self.discovered);
        let next = self.tries % known.clone().count().max(1);
        self.tries += 1;
        let server = known.nth(next).ok_or(io::ErrorKind::NotFound)?.clone();
        let (info, opened) = timeout(PATIENCE, self.open(&server)).await??;
        self.discovered = info.connect_urls.iter().filter_map(|url| url.parse().ok()).collect();
        Ok(opened)
    }

    async fn open(&self, server: &ServerAddr) -> io::Result<(Info, Opened)> {
        let tcp = TcpStream::connect((server.host(), server.port())).await?;
        tcp.set_nodelay(true)?;
        let mut stream: Box<dyn Stream> = Box::new(tcp);
        let mut buffer = BytesMut::new();
        let info = loop {
            if let Some(info) = next(&mut stream, &mut buffer, |op| match op {
                Op::Info(info) => Some(*info),
                _ => None,
            })
            .await?
            {
                break info;
            }
        };
        let is_secret = self.args.nats_ca.is_some() || server.tls_required() || info.tls_required;
        if is_secret {
            let name = ServerName::try_from(server.host().to_owned()).map_err(io::Error::other)?;
            let config = tls(self.args.nats_ca.as_deref())?;
            let connector = TlsConnector::from(Arc::new(config));
            stream = Box::new(connector.connect(name, stream).await?);
        }
        let connect = self.connect(server, &info, is_secret)?;
        let hello = format!("CONNECT {}\r\nPING\r\n", serde_json::to_string(&connect)?);
        stream.write_all(hello.as_bytes()).await?;
        stream.flush().await?;
        // The answer to the ping is the proof of having been let in.
        loop {
            let is_in = next(&mut stream, &mut buffer, |op| match op {
                Op::Pong => Some(Ok(())),
                Op::Refused(why) => Some(Err(io::Error::other(why.to_owned()))),
                _ => None,
            });
            if let Some(is_in) = is_in.await? {
                let max_payload = info.max_payload;
                return is_in.map(|()| (info, Opened { stream, read: buffer, max_payload }));
            }
        }
    }

    fn connect<'a>(
        &'a self,
        server: &ServerAddr,
        info: &Info,
        tls_required: bool,
    ) -> io::Result<Connect<'a>> {
        let mut connect = Connect {
            tls_required,
            lang: "rust",
            version: env!("CARGO_PKG_VERSION"),
            protocol: 1,
            headers: true,
            no_responders: true,
            echo: true,
            name: &self.name,
            ..Connect::default()
        };
        if let Some(path) = &self.args.nats_creds {
            let (jwt, seed) = credentials(&std::fs::read_to_string(path)?)?;
            let key = KeyPair::from_seed(&seed).map_err(io::Error::other)?;
            let nonce = info.nonce.as_deref().unwrap_or_default();
            let signature = key.sign(nonce.as_bytes()).map_err(io::Error::other)?;
            connect.jwt = Some(jwt);
            connect.sig = Some(URL_SAFE_NO_PAD.encode(signature));
        } else if let (Some(user), Some(path)) =
            (&self.args.nats_user, &self.args.nats_password_file)
        {
            let password = std::fs::read_to_string(path)?;
            connect.user = Some(user.clone());
            connect.pass = Some(password.trim_end().to_owned());
        } else if let Some(user) = server.username() {
            match server.password() {
                Some(password) => {
                    connect.user = Some(user.to_owned());
                    connect.pass = Some(password.to_owned());
                }
                None => connect.auth_token = Some(user.to_owned()),
            }
        }
        Ok(connect)
    }
}

/// Reads the next thing the server says; what `take` makes of it.
async fn next<T>(
    stream: &mut Box<dyn Stream>,
    buffer: &mut BytesMut,
    take: impl FnOnce(Op<'_>) -> Option<T>,
) -> io::Result<Option<T>> {
    loop {
        if let Some((op, used)) = parse(buffer).map_err(io::Error::other)? {
            let taken = take(op);
            buffer.advance(used);
            return Ok(taken);
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The user's JWT and the seed of the user's key, from a credentials file.
fn credentials(text: &str) -> io::Result<(String, String)> {
    let after = |title: &str| {
        let mut lines = text.lines().skip_while(|line| !line.contains(title)).skip(1);
        lines.next().map(|line| line.trim().to_owned())
    };
    after("BEGIN NATS USER JWT")
        .zip(after("BEGIN USER NKEY SEED"))
        .ok_or_else(|| io::Error::other("the credentials file lacks a user JWT or an nkey seed"))
}

/// Trusts the certificates in `ca`, or else the system's.
fn tls(ca: Option<&Path>) -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca {
        for certificate in CertificateDer::pem_file_iter(path).map_err(io::Error::other)? {
            let certificate = certificate.map_err(io::Error::other)?;
            roots.add(certificate).map_err(io::Error::other)?;
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credentials_file_has_a_jwt_and_a_seed() {
        let text = "-----BEGIN NATS USER JWT-----\r\neyJ0\r\n------END NATS USER JWT------\r\n\r\n\
            -----BEGIN USER NKEY SEED-----\r\nSUAA\r\n------END USER NKEY SEED------\r\n";
        assert_eq!(credentials(text).unwrap(), ("eyJ0".to_owned(), "SUAA".to_owned()));
        assert!(credentials("nothing").is_err());
    }
}
