//! Bytes that are no WebSocket, or one that breaks its rules, end their own connection and nothing else.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use herald_tests::{Backend, Cluster, Options};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

const GENEROUS: Duration = Duration::from_secs(60);
const CONNECTIONS: u64 = 400;

/// One of the ways to break RFC 6455, or bytes by chance.
fn garbage(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut chance = |most: usize| -> Vec<u8> {
        let length = random.usize(1..most);
        std::iter::repeat_with(|| random.u8(..)).take(length).collect()
    };
    let bytes = chance(2000);
    let broken: [&[u8]; 9] = [
        // Not masked, as every client's frame must be.
        b"\x81\x02{}",
        // Reserved bits, reserved opcodes.
        b"\xf1\x80\0\0\0\0",
        b"\x83\x80\0\0\0\0",
        // A continuation of nothing; a message that never ends, and another one in it.
        b"\x80\x80\0\0\0\0",
        b"\x01\x81\0\0\0\0{\x81\x81\0\0\0\0{",
        // Control frames in pieces, or too long.
        b"\x09\x80\0\0\0\0",
        b"\x89\xfe\x00\x7e\0\0\0\0",
        // As long as a length can say.
        b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0",
        // A text that is not UTF-8.
        b"\x81\x82\0\0\0\0\xff\xfe",
    ];
    match random.usize(..broken.len() * 2) {
        n if n < broken.len() => [broken[n], &bytes].concat(),
        _ => bytes,
    }
}

/// Connects, perhaps as a WebSocket, sends garbage, and waits for the end.
async fn visit(gateway: SocketAddr, seed: u64) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut stream = TcpStream::connect(gateway).await?;
    if random.u8(..) < 200 {
        let request = format!(
            "GET /ws?userId=garbage{seed} HTTP/1.1\r\nHost: {gateway}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
    }
    // The gateway may be done with it before everything is sent.
    let _ = stream.write_all(&garbage(&mut random)).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let end = timeout(GENEROUS, stream.read_to_end(&mut answer)).await;
    end.with_context(|| format!("garbage {seed} is still listened to"))?.ok();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_ends_its_own_connection_and_nothing_else() -> Result<()> {
    let cluster = Cluster::start(Backend::Sqlite, Options::default()).await?;
    let address = cluster.gateways[0].address;
    let (mut user1, mut user2) = (cluster.connect("User1").await?, cluster.connect("User2").await?);
    let visits = stream::iter(0..CONNECTIONS).map(|seed| visit(address, seed)).buffer_unordered(20);
    visits.try_collect::<Vec<()>>().await?;
    let new = json!({"chatId": "User2", "clientMessageId": "k", "message": "still here"});
    assert_eq!(user1.request("new", new).await?["payload"]["messageId"], 1);
    assert_eq!(user2.event("new").await?["payload"]["message"], "still here");
    user2.nothing_more().await
}
