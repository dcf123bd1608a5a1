#![allow(missing_docs, clippy::all)]
use anyhow::{Result, bail, ensure};
use futures::{SinkExt, StreamExt};
use herald_tests::*;
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

async fn nats(url: &str, send: &str, want: &str) -> Result<String> {
    let s = tokio::net::TcpStream::connect(url.trim_start_matches("nats://")).await?;
    let mut s = tokio::io::BufReader::new(s);
    let mut line = String::new();
    s.read_line(&mut line).await?;
    s.write_all(format!("CONNECT {{\"verbose\":false}}\r\nSUB _I 1\r\n{send}PING\r\n").as_bytes())
        .await?;
    let mut all = String::new();
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        let mut l = String::new();
        if tokio::time::timeout(Duration::from_secs(5), s.read_line(&mut l)).await.is_err() {
            bail!("got {all}")
        }
        all += &l;
        if all.contains(want) {
            return Ok(all);
        }
    }
    bail!("got {all}")
}

#[tokio::main]
async fn main() -> Result<()> {
    let mode = std::env::args().nth(1).unwrap_or_default();
    match mode.as_str() {
        "tools" => {
            println!("{:?}", tools::nats_server().await?);
            println!("{:?}", tools::postgres().await?);
        }
        "nats" => println!("{:?}", tools::nats_server().await),
        "pg" => println!("{:?}", tools::postgres().await),
        "broker" => {
            let t = Instant::now();
            let mut b = Broker::start().await?;
            println!(
                "started {} pid {} in {:?} at {:?}",
                b.url(),
                b.pid(),
                t.elapsed(),
                b.data_dir()
            );
            let mk = r#"{"name":"T","subjects":["t.>"],"storage":"file"}"#;
            let r = nats(
                &b.url(),
                &format!(
                    "PUB $JS.API.STREAM.CREATE.T _I {}\r\n{mk}\r\nPUB t.1 _I 2\r\nhi\r\n",
                    mk.len()
                ),
                "\"seq\":1",
            )
            .await?;
            println!("published: {}", r.lines().last().unwrap());
            let pid = b.pid();
            b.kill().await?;
            ensure!(std::net::TcpStream::connect(b.address()).is_err(), "still listens");
            let t = Instant::now();
            b.restart().await?;
            println!("restarted in {:?}, pid {pid} -> {}", t.elapsed(), b.pid());
            let r =
                nats(&b.url(), "PUB $JS.API.STREAM.INFO.T _I 0\r\n\r\n", "\"messages\":1").await?;
            ensure!(r.contains("stream_info_response"));
            println!("message survived");
            b.restart().await?; // while running
            b.stop().await?;
            b.restart().await?;
            b.process().stop()?;
            tokio::time::sleep(Duration::from_millis(200)).await;
            let dir = b.data_dir().to_owned();
            let t = Instant::now();
            drop(b);
            println!("dropped a stopped one in {:?}; dir gone: {}", t.elapsed(), !dir.exists());
            let t = Instant::now();
            let many = futures::future::try_join_all((0..8).map(|_| Broker::start())).await?;
            println!("8 parallel in {:?}", t.elapsed());
            drop(many);
            let d = tempfile::tempdir()?;
            let b1 = Broker::start_at(port::free()?, d.path()).await?;
            let d2 = tempfile::tempdir()?;
            let e = Broker::start_at(b1.address().port(), d2.path()).await.err();
            println!("clash: {:#}", e.unwrap());
        }
        "postgres" => {
            let t = Instant::now();
            let a = Database::create(Backend::Postgres).await?;
            println!("{} in {:?}", a.url(), t.elapsed());
            let t = Instant::now();
            let all =
                futures::future::try_join_all((0..10).map(|_| Database::create(Backend::Postgres)))
                    .await?;
            println!("10 more in {:?}; last {}", t.elapsed(), all[9].url());
            use sea_orm::ConnectionTrait;
            let c = sea_orm::Database::connect(a.url()).await?;
            c.execute_unprepared("create table x(i int); insert into x values (1)").await?;
            let s = Database::create(Backend::Sqlite).await?;
            println!("{}", s.url());
            let c = sea_orm::Database::connect(s.url()).await?;
            c.execute_unprepared("create table x(i int)").await?;
            let t = Instant::now();
            let mut p = PostgresServer::start().await?;
            println!("own server in {:?} pid {} {:?}", t.elapsed(), p.pid(), p.data_dir());
            let url = p.create_database().await?;
            let c = sea_orm::Database::connect(&url).await?;
            c.execute_unprepared("create table x(i int); insert into x values (1)").await?;
            p.kill().await?;
            let t = Instant::now();
            p.restart().await?;
            println!("restarted in {:?} pid {}", t.elapsed(), p.pid());
            let c = sea_orm::Database::connect(&url).await?;
            println!(
                "{:?}",
                c.execute_unprepared("insert into x select i+1 from x").await?.rows_affected()
            );
            p.stop().await?;
            p.restart().await?;
            let dir = p.data_dir().to_owned();
            let t = Instant::now();
            drop(p);
            println!("dropped in {:?}, gone {}", t.elapsed(), !dir.exists());
        }
        "linger" => {
            let _b = Broker::start().await?;
            let _d = Database::create(Backend::Postgres).await?;
            println!("ready {}", _b.pid());
            tokio::time::sleep(Duration::from_secs(600)).await;
        }
        "client" => {
            use tokio_tungstenite::tungstenite::{
                Message,
                protocol::{CloseFrame, frame::coding::CloseCode},
            };
            let l = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
            let addr = l.local_addr()?;
            tokio::spawn(async move {
                while let Ok((s, _)) = l.accept().await {
                    tokio::spawn(async move {
                        let mut ws = tokio_tungstenite::accept_async(s).await.unwrap();
                        while let Some(m) = ws.next().await {
                            let m = match m {
                                Ok(m) => m,
                                Err(e) => {
                                    println!("server saw: {e}");
                                    return;
                                }
                            };
                            match m {
                                Message::Text(t) => {
                                    let v: serde_json::Value = serde_json::from_str(&t).unwrap();
                                    if v["type"] == "request" {
                                        for (i, e) in ["a", "b", "a"].iter().enumerate() {
                                            ws.send(Message::text(
                                                json!({"type":"event","eventType":e,"id":i+1})
                                                    .to_string(),
                                            ))
                                            .await
                                            .unwrap();
                                        }
                                        ws.send(Message::text(
                                            json!({"type":"response","id":v["id"]}).to_string(),
                                        ))
                                        .await
                                        .unwrap();
                                    } else if v["type"] == "ack" {
                                        ws.send(Message::text(
                                            json!({"type":"response","id":v["id"].to_string()})
                                                .to_string(),
                                        ))
                                        .await
                                        .unwrap();
                                    } else {
                                        ws.close(Some(CloseFrame {
                                            code: CloseCode::from(4400),
                                            reason: "abuse".into(),
                                        }))
                                        .await
                                        .unwrap();
                                    }
                                }
                                Message::Close(_) => println!("server saw close"),
                                _ => {}
                            }
                        }
                    });
                }
            });
            let url = format!("ws://{addr}/ws");
            let mut c = Client::connect(&url).await?;
            println!("{}", c.request("new", json!({})).await?);
            println!("{}", c.event("b").await?);
            println!("{:#}", c.nothing_more().await.unwrap_err());
            println!("{}", c.next_event().await?);
            println!("{}", c.recv().await?);
            c.nothing_more().await?;
            c.send(&json!({"type":"x"})).await?;
            println!("{:?}", c.expect_close().await?);
            println!("after close: {:#}", c.recv().await.unwrap_err());
            Client::connect_with(&url, &[("authorization", "Bearer x")]).await?.close().await?;
            drop(Client::connect(&url).await?);
            tokio::time::sleep(Duration::from_millis(200)).await;
            let e = eventually("three is four", Duration::from_millis(300), async || {
                ensure!(3 == 4, "3 is {}", 3);
                Ok(())
            })
            .await
            .unwrap_err();
            println!("{e:#}");
        }
        _ => bail!("mode"),
    }
    Ok(())
}
