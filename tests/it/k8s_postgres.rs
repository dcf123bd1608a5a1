//! PostgreSQL by TLS, as the production overlay reaches it: the URL in a file, the server's certificate checked in full.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use herald_tests::{
    Binaries, PostgresServer, eventually,
    manifests::{Manifests, secret},
    owner::Owner,
};
use sea_orm::ConnectionTrait as _;

/// A certificate for 127.0.0.1, its key, and its CA, as `secrets.sh` makes them.
async fn certificates(folder: &Path) -> Result<()> {
    let unused = folder.join("unused");
    fs::write(&unused, "{}")?;
    let unused = unused.to_str().context("not UTF-8")?;
    let env = [
        ("SAN", "IP:127.0.0.1"),
        ("DATABASE_URL", "postgres://unused"),
        ("DATABASE_CA", unused),
        ("JWKS", unused),
    ];
    let secrets = Manifests::secrets("prod", &env).await?;
    let tls = secrets.get("Secret", "herald-nats-tls")?;
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        fs::write(folder.join(name), secret(tls, name)?)?;
    }
    Ok(())
}

/// Makes a server that speaks TLS, and nothing else.
async fn server(certificates: &Path) -> Result<PostgresServer> {
    let server = PostgresServer::start().await?;
    let data = server.data_dir().join("data");
    for name in ["tls.crt", "tls.key"] {
        let file = data.join(name);
        fs::copy(certificates.join(name), &file)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        if let Some(owner) = Owner::instead_of_root()? {
            owner.take(&file)?;
        }
    }
    let connection = sea_orm::Database::connect(server.url("postgres")).await?;
    for sql in [
        "ALTER SYSTEM SET ssl_cert_file = 'tls.crt'",
        "ALTER SYSTEM SET ssl_key_file = 'tls.key'",
        "ALTER SYSTEM SET ssl = on",
    ] {
        connection.execute_unprepared(sql).await?;
    }
    fs::write(data.join("pg_hba.conf"), "hostssl all all all trust\n")?;
    connection.execute_unprepared("SELECT pg_reload_conf()").await?;
    Ok(server)
}

/// Whether the migration runs with these parameters of the URL; what it says if not.
async fn migrates(server: &PostgresServer, folder: &Path, parameters: &str) -> Result<()> {
    let file = folder.join("url");
    fs::write(&file, format!("{}?{parameters}\n", server.url("postgres")))?;
    let output = tokio::process::Command::new(Binaries::build(false).await?.worker)
        .arg("migrate")
        .env("HERALD_DATABASE_URL_FILE", &file)
        .output()
        .await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_database_is_reached_by_tls_and_only_if_it_is_the_right_one() -> Result<()> {
    let own = tempfile::tempdir()?;
    certificates(own.path()).await?;
    let other = tempfile::tempdir()?;
    certificates(other.path()).await?;
    let server = server(own.path()).await?;
    let verified =
        |ca: &Path| format!("sslmode=verify-full&sslrootcert={}", ca.join("ca.crt").display());
    eventually("the server speaks TLS", Duration::from_secs(30), async || {
        migrates(&server, own.path(), &verified(own.path())).await
    })
    .await?;
    let refusal = migrates(&server, own.path(), "sslmode=disable").await.unwrap_err().to_string();
    assert!(refusal.contains("no encryption"), "{refusal}");
    let refusal = migrates(&server, own.path(), &verified(other.path())).await.unwrap_err();
    assert!(refusal.to_string().contains("certificate"), "{refusal}");
    Ok(())
}
