//! Messages for users who are not there, sent as fast as a few writers can: what devices later come back to.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, Result, bail};
use futures::future::try_join_all;
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{
    args::Args,
    chat::run_name,
    connection::Connection,
    login::Entrances,
    wire::{self, Answered, Frame},
};

/// Who writes: few, so that each stays below a session's rate limit and the rest of the machine is busy.
const WRITERS: usize = 32;
/// How many requests each has open.
const OPEN: usize = 32;
/// How long to wait after an error that does not say how long.
const PAUSE: Duration = Duration::from_millis(100);

/// Sends each user so many messages; each is answered when this returns.
///
/// # Errors
/// If a writer can't connect, or gets no answers for `--patience`.
pub async fn run(args: &Args, urls: &[String], users: &[String], events: u32) -> Result<()> {
    let name = run_name();
    let text = "x".repeat(usize::try_from(args.size)?);
    let entrances = Entrances::new(0, urls);
    let writers = (0..WRITERS).map(|number| {
        let mine = users.iter().skip(number).step_by(WRITERS);
        // Round by round: a user's messages are spread over the time.
        let messages: Vec<&String> = (0..events).flat_map(|_| mine.clone()).collect();
        let writer = format!("fill-{name}-{number}");
        let (entrances, text) = (&entrances, text.as_str());
        async move {
            if messages.is_empty() {
                return Ok(());
            }
            let connection =
                entrances.login(number, &writer, "default")?.come_in().await?.connection;
            write(connection, &messages, text, args.patience).await
        }
    });
    try_join_all(writers).await?;
    // The system would write it to the disk half a minute later, in the middle of what is measured: whatever waits for
    // the disk then would wait behind it.
    spawn_blocking(nix::unistd::sync).await?;
    eprintln!("{events} events wait for each of {} devices", users.len());
    Ok(())
}

/// Sends the messages, under the keys 0, 1, 2 …, and what is refused again.
async fn write(
    mut connection: Connection,
    messages: &[&String],
    text: &str,
    patience: Duration,
) -> Result<()> {
    let mut next = (0_u64..).zip(messages);
    let (mut open, mut out, mut batch) = (HashMap::new(), Vec::new(), Vec::new());
    loop {
        while open.len() < OPEN
            && let Some((key, peer)) = next.next()
        {
            out.push(wire::new(key, peer, text));
            open.insert(key, *peer);
        }
        if open.is_empty() {
            connection.close().await;
            return Ok(());
        }
        connection.send(&mut out).await?;
        timeout(patience, connection.receive(&mut batch)).await.context("no answers")??;
        let mut pause = Duration::ZERO;
        for frame in batch.drain(..) {
            let frame: Frame<'_> = serde_json::from_str(&frame)?;
            let Some(Answered::New(key)) = frame.id.answers() else { continue };
            match &frame.error {
                None => {
                    open.remove(&key);
                }
                Some(failure) if failure.code == "bad_request" => {
                    bail!("a message was refused: {:?}", failure.message);
                }
                Some(failure) => {
                    pause = failure.retry_after.map_or(PAUSE, Duration::from_millis);
                    let peer = open.get(&key).context("an answer to nothing")?;
                    out.push(wire::new(key, peer, text));
                }
            }
        }
        sleep(pause).await;
    }
}
