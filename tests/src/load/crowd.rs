//! Users who come in and do nothing.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures::{StreamExt as _, stream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    args::Args,
    chat::run_name,
    connection::Connection,
    login::{Entered, Entrances},
    report::Logins,
};

/// The users, connected.
pub struct Crowd {
    /// How fast they came in.
    pub logins: Logins,
    /// How long each of them took.
    pub took: Vec<Duration>,
    /// How often they were told to come again later.
    pub refused: u64,
    stop: CancellationToken,
    tasks: JoinSet<bool>,
}

impl Crowd {
    /// Connects `--connections` new users, `--logins` at once, and says now and then how it goes.
    ///
    /// # Errors
    /// If one is not let in.
    pub async fn gather(args: &Args, urls: &[String]) -> Result<Self> {
        let name = run_name();
        let entrances = Entrances::new(args.connections, urls);
        let begun = Instant::now();
        let logins = (0..usize::try_from(args.connections)?).map(async |number| {
            let login = entrances.login(number, &format!("idle-{name}-{number}"), "default")?;
            login.come_in().await
        });
        let (stop, mut tasks, mut took) = (CancellationToken::new(), JoinSet::new(), Vec::new());
        let (mut refused, mut said) = (0, begun);
        let mut logins = stream::iter(logins).buffer_unordered(args.logins());
        while let Some(entered) = logins.next().await {
            let Entered { connection, took: time, refused: times } = entered?;
            took.push(time);
            refused += times;
            tasks.spawn(hold(connection, stop.clone()));
            if said.elapsed() > Duration::from_secs(1) {
                said = Instant::now();
                eprintln!("{} of {} are in", took.len(), args.connections);
            }
        }
        let logins = Logins::new(u64::from(args.connections), begun.elapsed());
        eprintln!("{} logins in {:.2} s", logins.count, logins.seconds);
        Ok(Self { logins, took, refused, stop, tasks })
    }

    /// Lets all go; how many sessions had ended before.
    ///
    /// # Errors
    /// If one of the tasks has panicked.
    pub async fn leave(mut self) -> Result<u64> {
        self.stop.cancel();
        let mut ended_early = 0;
        while let Some(held) = self.tasks.join_next().await {
            ended_early += u64::from(!held?);
        }
        Ok(ended_early)
    }
}

/// Keeps a connection until the end; whether it lasted so long.
async fn hold(mut connection: Connection, stop: CancellationToken) -> bool {
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            received = connection.receive(&mut batch) => {
                batch.clear();
                if let Err(ended) = received {
                    eprintln!("an idle session has ended: {ended}");
                    return false;
                }
            }
            () = stop.cancelled() => {
                connection.close().await;
                return true;
            }
        }
    }
}
