//! What is logged can be changed while the programs run, and never holds what users write or who they prove to be.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use herald_tests::{
    Binaries, Broker, Client, Process, Program, eventually, http, port,
    site::{Setup, Site},
};
use jsonwebtoken::{EncodingKey, Header};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(30);
const SECRET: &[u8] = b"only for this test, but long enough";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_logged_can_be_changed_while_it_runs() -> Result<()> {
    let control = ([127, 0, 0, 1], port::free()?).into();
    let gateway_flags = vec!["--log-listen".into(), format!("{control}")];
    let site = Site::start(Setup { gateway_flags, ..Setup::default() }).await?;
    let log = site.logs().join("herald-gateway-2.log");
    assert_eq!(http::get(control, "/log").await?, (200, "info\n".into()));
    abuse(&site).await?;
    assert!(!std::fs::read_to_string(&log)?.contains("DEBUG"));

    let changed = http::put(control, "/log", "info,herald_gateway::session=debug").await?;
    assert_eq!(changed, (200, "herald_gateway::session=debug,info\n".into()));
    eventually("a line at DEBUG", PATIENCE, async || {
        abuse(&site).await?;
        let text = std::fs::read_to_string(&log)?;
        ensure!(text.contains("DEBUG herald_gateway::session: a session is closed"), "{text}");
        Ok(())
    })
    .await?;

    let (status, answer) = http::put(control, "/log", "herald=loud").await?;
    assert_eq!(status, 400, "{answer}");
    assert_eq!(http::get(control, "/log").await?, changed, "what does not parse changes nothing");
    assert_eq!(http::put(control, "/log", "").await?, (200, "info\n".into()));
    // Clients reach the other listener.
    assert_eq!(http::get(site.gateways[0].address(), "/log").await?.0, 404);
    Ok(())
}

/// Has a session closed, which is told at DEBUG.
async fn abuse(site: &Site) -> Result<()> {
    let mut client = Client::connect(&format!("{}?userId=User1", site.urls()[0])).await?;
    for _ in 0..4 {
        client.send_binary(b"x").await?;
    }
    assert_eq!(client.expect_close().await?.0, 4400);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_logged_can_be_changed_from_this_machine_alone() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let binaries = Binaries::build(false).await?;
    let gateway = Program::new("herald-gateway", &binaries.gateway, folder.path().join("log"))
        .args(["--insecure-auth", "--listen", "127.0.0.1:0", "--log-listen", "0.0.0.0:0"]);
    let error = gateway.run().await.unwrap_err().to_string();
    assert!(error.contains("--log-listen 0.0.0.0:0"), "{error}");
    Ok(())
}

/// Even when everything is logged, by whatever library.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_hold_no_message_and_no_token() -> Result<()> {
    const BODY: &str = "nobody-may-read-this";
    let site = Site::start(Setup {
        worker_flags: vec!["--log".into(), "trace".into()],
        ..Setup::default()
    })
    .await?;
    let log = site.logs().join("gateway.log");
    let secret = site.logs().join("secret");
    std::fs::write(&secret, SECRET)?;
    let (gateway, _process) = gateway(&site.broker, &log, &secret).await?;
    let mut tokens = Vec::new();
    let mut clients = Vec::new();
    for user in ["User1", "User2"] {
        let claims = json!({"sub": user, "exp": 4_000_000_000_u64});
        let token =
            jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET))?;
        let bearer = format!("Bearer {token}");
        let url = format!("ws://{gateway}/ws");
        let mut client =
            Client::connect_with(&url, &[("Authorization", &bearer)]).await?.without_presence();
        client.ack(0).await?;
        clients.push(client);
        tokens.push(token);
    }
    let [user1, user2] = &mut clients[..] else { panic!("two clients") };
    let new = json!({"chatId": "User2", "clientMessageId": "k", "message": BODY});
    let answer = user1.request("new", new).await?;
    assert!(answer.get("error").is_none(), "{answer}");
    let event = user2.event("new").await?;
    assert_eq!(event["payload"]["message"], BODY);
    user2.ack(event["id"].as_u64().context("no id")?).await?;
    // Frames that can't be taken are logged no more than others.
    user1.send_text(&format!("{{\"type\":\"request\",\"payload\":\"{BODY}\"")).await?;
    user1.recv().await?;
    for client in clients {
        client.close().await?;
    }
    for log in [log, site.logs().join("herald-worker-1.log")] {
        // A worker logs that it has settled a batch after its answers and events are out.
        let text = eventually("something at DEBUG is logged", PATIENCE, async || {
            let text = std::fs::read_to_string(&log)?;
            ensure!(text.contains("DEBUG"), "{} has too little in it", log.display());
            Ok(text)
        })
        .await?;
        let guilty = text
            .lines()
            .find(|line| line.contains(BODY) || tokens.iter().any(|token| line.contains(token)));
        assert_eq!(guilty, None, "{}", log.display());
        // What libraries tell below INFO are bytes that they send and receive, some of them encoded.
        let chatty = text.lines().find(|line| {
            let is_low = line.contains(" DEBUG ") || line.contains(" TRACE ");
            is_low && !line.contains(" herald_")
        });
        assert_eq!(chatty, None, "{}", log.display());
    }
    Ok(())
}

/// A gateway that authenticates, and logs all it can.
async fn gateway(
    broker: &Broker,
    log: &Path,
    secret: &Path,
) -> Result<(std::net::SocketAddr, Process)> {
    let binaries = Binaries::build(false).await?;
    let address = ([127, 0, 0, 1], port::free()?).into();
    let program = Program::new("herald-gateway", &binaries.gateway, log)
        .args(["--listen", &format!("{address}"), "--nats-url", &broker.url(), "--log", "trace"])
        .arg("--auth-hs256-secret-file")
        .arg(secret);
    let mut process = Process::spawn(&program)?;
    let ready = eventually("it is ready", PATIENCE, async || http::ready(address).await);
    process.until(ready).await?;
    Ok((address, process))
}
