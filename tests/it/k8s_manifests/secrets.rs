//! `secrets.sh` can be run again: it keeps what the cluster has, and makes anew what it is told to.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use herald_tests::{
    manifests::{Manifests, secret, text},
    tools,
};
use tempfile::TempDir;
use tokio::process::Command;

use super::sites;

/// A cluster that has these Secrets, as far as the script asks for them.
struct Fake {
    folder: TempDir,
}

const VERIFIED: &str = "postgres://db/herald?sslmode=verify-full";

impl Fake {
    async fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let program = folder.path().join("kubectl");
        let kubectl = tools::kubectl().await?;
        let script = format!(
            "#!/bin/sh\n\
             [ \"$1\" = get ] || exec {} \"$@\"\n\
             for key; do :; done\n\
             key=$(printf %s \"$key\" | sed 's/jsonpath={{.data.//; s/}}$//; s/\\\\//g')\n\
             [ ! -f {here}/$3/$key ] || openssl base64 -A -in {here}/$3/$key\n",
            kubectl.display(),
            here = folder.path().display(),
        );
        fs::write(&program, script)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        Ok(Self { folder })
    }

    fn file(&self, name: &str, content: &str) -> Result<String> {
        let file = self.folder.path().join(name);
        fs::write(&file, content)?;
        Ok(file.to_str().context("not UTF-8")?.to_owned())
    }

    /// Runs the script and applies what it makes.
    async fn run(&self, what: &str, env: &[(&str, &str)]) -> Result<Manifests> {
        let kubectl = self.folder.path().join("kubectl");
        let kubectl = kubectl.to_str().context("not UTF-8")?;
        let own = [("KUBECTL", kubectl), ("OFFLINE", ""), ("UNVERIFIED_DATABASE", "")];
        let made = Manifests::secrets(what, &[&own, env].concat()).await?;
        for object in &made.objects {
            let folder = self.folder.path().join(text(object, "/metadata/name"));
            fs::create_dir_all(&folder)?;
            let keys = object.get("data").and_then(|data| data.as_object()).context("no data")?;
            for key in keys.keys() {
                fs::write(folder.join(key), secret(object, key)?)?;
            }
        }
        Ok(made)
    }

    async fn run_prod(&self) -> Result<Manifests> {
        let file = self.file("given", &"x".repeat(10_000))?;
        let env = [("DATABASE_URL", VERIFIED), ("DATABASE_CA", &file), ("JWKS", &file)];
        self.run("prod", &env).await
    }
}

fn names(made: &Manifests) -> Vec<&str> {
    made.objects.iter().map(|object| text(object, "/metadata/name")).collect()
}

async fn openssl(folder: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("openssl").args(arguments).current_dir(folder).output().await?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test]
async fn a_second_run_keeps_all_there_is() -> Result<()> {
    let cluster = Fake::new().await?;
    let first = cluster.run("dev", &[]).await?;
    let second = cluster.run("dev", &[]).await?;
    assert_eq!(first.objects, second.objects);

    let cluster = Fake::new().await?;
    let first = cluster.run_prod().await?;
    let second = cluster.run("prod", &[]).await?;
    for object in &second.objects {
        assert_eq!(first.get("Secret", text(object, "/metadata/name"))?, object);
    }
    // The CA and the certificate are left where they are.
    assert_eq!(second.objects.len() + 2, first.objects.len());
    // A role whose Secret was lost gets a password, the others keep theirs.
    fs::remove_dir_all(cluster.folder.path().join("herald-nats-worker"))?;
    let third = cluster.run("prod", &[]).await?;
    for (role, is_kept) in [("gateway", true), ("worker", false), ("operator", true)] {
        let name = format!("herald-nats-{role}");
        assert_eq!(first.get("Secret", &name)? == third.get("Secret", &name)?, is_kept, "{role}");
    }
    Ok(())
}

#[tokio::test]
async fn certificates_are_renewed_by_the_ca_that_is_there() -> Result<()> {
    let cluster = Fake::new().await?;
    let first = cluster.run_prod().await?;
    let renewed = cluster.run("prod certificates", &[]).await?;
    assert_eq!(names(&renewed), ["herald-nats-tls"]);
    let key = |made: &Manifests, key| secret(made.get("Secret", "herald-nats-tls")?, key);
    assert_eq!(key(&first, "ca.crt")?, key(&renewed, "ca.crt")?);
    assert_ne!(key(&first, "tls.crt")?, key(&renewed, "tls.crt")?);
    assert_ne!(key(&first, "tls.key")?, key(&renewed, "tls.key")?);
    let tls = cluster.folder.path().join("herald-nats-tls");
    openssl(&tls, &["verify", "-CAfile", "ca.crt", "tls.crt"]).await?;

    // Certificates of a CA that is kept elsewhere.
    let own = tempfile::tempdir()?;
    for name in ["ca.crt", "ca.key"] {
        fs::rename(cluster.folder.path().join("herald-nats-ca").join(name), own.path().join(name))?;
    }
    let refusal = cluster.run("prod certificates", &[]).await.unwrap_err().to_string();
    assert!(refusal.contains("CA_CERT and CA_KEY"), "{refusal}");
    let file = |name| own.path().join(name).display().to_string();
    let env = [("CA_CERT", &*file("ca.crt")), ("CA_KEY", &*file("ca.key"))];
    let renewed = cluster.run("prod certificates", &env).await?;
    assert_eq!(names(&renewed), ["herald-nats-tls"]);
    openssl(&tls, &["verify", "-CAfile", "ca.crt", "tls.crt"]).await?;
    Ok(())
}

#[tokio::test]
async fn passwords_are_changed_for_nats_alone() -> Result<()> {
    let cluster = Fake::new().await?;
    let first = cluster.run_prod().await?;
    let changed = cluster.run("prod passwords", &[]).await?;
    let roles = ["gateway", "worker", "operator", "system"];
    let of_nats: Vec<String> =
        roles.iter().chain(&["users"]).map(|role| format!("herald-nats-{role}")).collect();
    assert_eq!(names(&changed), of_nats);
    let users = secret(changed.get("Secret", "herald-nats-users")?, "users.conf")?;
    let users = String::from_utf8(users)?;
    for name in of_nats.iter().take(roles.len()) {
        let key = |made: &Manifests, key| secret(made.get("Secret", name)?, key);
        let password = key(&changed, "password")?;
        assert_ne!(key(&first, "password")?, password);
        assert!(users.contains(&format!("\"{}\"", String::from_utf8(password)?)), "{name}");
        assert_eq!(key(&first, "ca.crt")?, key(&changed, "ca.crt")?);
    }
    let dev = Fake::new().await?;
    dev.run("dev", &[]).await?;
    assert_eq!(names(&dev.run("dev passwords", &[]).await?), of_nats);
    Ok(())
}

#[tokio::test]
async fn what_is_unsafe_is_refused() -> Result<()> {
    let cluster = Fake::new().await?;
    let file = cluster.file("given", "x")?;
    for url in ["postgres://db/herald", "postgres://db/herald?sslmode=verify-ca&sslmode=require"] {
        let mut env = vec![("DATABASE_URL", url), ("DATABASE_CA", &*file), ("JWKS", &*file)];
        let refusal = cluster.run("prod", &env).await.unwrap_err().to_string();
        assert!(refusal.contains("sslmode=verify-full"), "{refusal}");
        env.push(("UNVERIFIED_DATABASE", "1"));
        cluster.run("prod", &env).await?;
    }
    // A cluster that can't be asked may hold what must not be replaced.
    let away = [("OFFLINE", ""), ("KUBECTL", "false")];
    assert!(Manifests::secrets("dev", &away).await.is_err());
    Ok(())
}

#[tokio::test]
async fn the_servers_certificate_names_whom_clients_and_servers_ask_for() -> Result<()> {
    let sites = sites().await?;
    let site = sites.iter().find(|site| site.overlay == "prod").context("no prod")?;
    let folder = tempfile::tempdir()?;
    let tls = site.secrets.get("Secret", "herald-nats-tls")?;
    fs::write(folder.path().join("tls.crt"), secret(tls, "tls.crt")?)?;
    let said =
        openssl(folder.path(), &["x509", "-in", "tls.crt", "-noout", "-ext", "subjectAltName"]);
    let said = said.await?;
    let named: Vec<&str> =
        said.split([',', '\n']).filter_map(|n| n.trim().strip_prefix("DNS:")).collect();

    let conf = site.manifests.config_map("herald-nats")?;
    let conf = conf.get("nats.conf").context("no nats.conf")?;
    let mut urls: Vec<String> =
        conf.split('"').filter(|it| it.contains("://")).map(Into::into).collect();
    for map in ["herald-gateway", "herald-worker", "herald-operator"] {
        let map = site.manifests.config_map(map)?;
        let servers = map.get("HERALD_NATS_URL").context("no HERALD_NATS_URL")?;
        urls.extend(servers.split(',').map(ToOwned::to_owned));
    }
    assert_eq!(urls.len(), 3 + 3 * 3);
    for url in urls {
        let host = url.rsplit("//").next().and_then(|rest| rest.split(':').next());
        assert!(named.contains(&host.context("no host")?), "{url} is not in {named:?}");
    }
    Ok(())
}
