//! Users who do nothing but be there: what a rolling update does to them.

use std::time::Instant;

use anyhow::Result;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    Gateways,
    load::{
        connection::Connection,
        wire::{self, Frame, Id},
    },
};

/// The users, each with a session.
pub(super) struct Crowd {
    stop: CancellationToken,
    tasks: JoinSet<Result<Seen>>,
}

/// What they have seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// When they were connected again.
    pub(super) back_at: Vec<Instant>,
    /// How sessions ended.
    pub(super) ends: Vec<String>,
    /// The events `online` and `offline`. After all had come, nobody came or went.
    pub(super) presence: Vec<(Instant, String)>,
}

/// Logins under way at once.
const LOGINS: usize = 32;

impl Crowd {
    /// Connects that many users, two and two in a chat: each would be told if the other went.
    pub(super) async fn gather(gateways: &Gateways, users: usize) -> Result<Self> {
        let names: Vec<String> = (0..users).map(|number| format!("idle-{number}")).collect();
        let logins = names.iter().enumerate().map(async |(number, name)| {
            let mut connection = gateways.login(name).await?;
            // The second of two writes: both are there.
            if number % 2 == 1 {
                let peer = format!("idle-{}", number - 1);
                let ended = connection.send(&mut vec![wire::new(0, &peer, "hi")]).await;
                ended.map_err(|ended| anyhow::anyhow!(ended.why))?;
            }
            Ok::<_, anyhow::Error>((name.clone(), connection))
        });
        let connections: Vec<(String, Connection)> =
            futures::stream::iter(logins).buffered(LOGINS).try_collect().await?;
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for (name, connection) in connections {
            tasks.spawn(be(gateways.clone(), name, connection, stop.clone()));
        }
        Ok(Self { stop, tasks })
    }

    /// Ends all sessions.
    pub(super) async fn leave(mut self) -> Result<Seen> {
        self.stop.cancel();
        let mut all = Seen::default();
        while let Some(seen) = self.tasks.join_next().await {
            let seen = seen??;
            all.back_at.extend(seen.back_at);
            all.ends.extend(seen.ends);
            all.presence.extend(seen.presence);
        }
        Ok(all)
    }
}

async fn be(
    gateways: Gateways,
    user: String,
    mut connection: Connection,
    stop: CancellationToken,
) -> Result<Seen> {
    let mut seen = Seen::default();
    let (mut batch, mut acks) = (Vec::new(), Vec::new());
    loop {
        let ended = tokio::select! {
            received = connection.receive(&mut batch) => received.err(),
            () = stop.cancelled() => {
                connection.close().await;
                return Ok(seen);
            }
        };
        for text in batch.drain(..) {
            let is_presence =
                [r#""offline""#, r#""online""#].iter().any(|event| text.contains(event));
            if is_presence {
                seen.presence.push((Instant::now(), text.to_string()));
            }
            let frame: Frame<'_> = serde_json::from_str(&text)?;
            if let Id::Number(id) = frame.id {
                acks.push(wire::ack(id));
            }
        }
        let ended = match ended {
            None => connection.send(&mut acks).await.err(),
            ended => ended,
        };
        if let Some(ended) = ended {
            connection = gateways.login_again(&user, &ended).await?;
            seen.back_at.push(Instant::now());
            seen.ends.push(ended.why);
            acks.clear();
        }
    }
}
