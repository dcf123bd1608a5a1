//! A storm of reconnects is let in at a pace that the gateway can bear, and everyone is in within moments.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use herald_tests::{Backend, Cluster, Options, load::connection::Connection};

const CLIENTS: usize = 60;
const RATE: u32 = 20;

/// Comes in as a client does that heeds hints; returns how long it took and how often it was told to come again.
async fn come_in(url: &str, user: String) -> Result<(Duration, usize)> {
    let begin = Instant::now();
    let mut refused = 0;
    loop {
        let mut connection = Connection::connect(url, &user, "default").await?;
        connection
            .send(&mut vec![herald_tests::load::wire::ack(0)])
            .await
            .map_err(|ended| anyhow::anyhow!(ended.why))?;
        match connection.receive(&mut Vec::new()).await {
            Ok(()) => return Ok((begin.elapsed(), refused)),
            Err(ended) => {
                ensure!(ended.why.starts_with("closed: 1013"), "{}", ended.why);
                let after = ended.retry_after.context("no hint")?;
                refused += 1;
                tokio::time::sleep(Duration::from_millis(after)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_clients_is_let_in_at_the_doors_pace() -> Result<()> {
    let rate = RATE.to_string();
    let options = Options::default().gateway_flags(&["--accept-rate", &rate]);
    let cluster = Cluster::start(Backend::Sqlite, options).await?;
    let url = cluster.url(0)?;
    let storm = (0..CLIENTS).map(|n| come_in(&url, format!("user{n}")));
    let took = try_join_all(storm).await?;
    let refused = took.iter().filter(|(_, refused)| *refused > 0).count();
    let last = took.iter().map(|(took, _)| *took).max().context("nobody came in")?;
    println!("{refused} of {CLIENTS} were told to come again, the last was in after {last:?}");
    // The bucket holds one second's worth, and fills while they come.
    ensure!((10..=40).contains(&refused), "{refused} were told to come again");
    ensure!(last < Duration::from_secs(20), "the last was in after {last:?}");
    Ok(())
}
