//! Keeps the programs of a running Herald alive, for people who work on it.

use std::{
    fmt::Display,
    io::Write as _,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;
use futures::future::{join_all, try_join_all};
use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    broker, eventually, http,
    process::{Process, Program, describe},
};

/// How long a program may take until it is ready for the first time.
const START: Duration = Duration::from_secs(60);
/// How long a program may take to end before it is killed.
const PATIENCE: Duration = Duration::from_secs(15);
/// The pause before a program that died is started again: doubled each time up to the longest, and short again once it
/// has run for a while.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const STEADY: Duration = Duration::from_secs(30);

/// How a program shows that it is ready.
#[derive(Debug, Clone)]
pub enum Ready {
    /// It is the NATS server with its store in that folder, and serves JetStream on that port of 127.0.0.1.
    Nats(u16, PathBuf),
    /// Its `/readyz` answers 200 there.
    Http(SocketAddr),
}

impl Ready {
    async fn wait(self) -> Result<()> {
        match self {
            Self::Nats(port, data_dir) => broker::ready(port, &data_dir).await,
            Self::Http(address) => {
                let what = format!("http://{address}/readyz answers 200");
                eventually(&what, START, async || http::ready(address).await).await
            }
        }
    }
}

/// Programs that are started and stopped together, and each started again when it dies.
#[derive(Debug)]
pub struct Group {
    stop: CancellationToken,
    keepers: Vec<JoinHandle<()>>,
}

impl Group {
    /// Starts the programs and waits until all are ready.
    ///
    /// # Errors
    /// If one ends or is not ready in time; then none is left running.
    pub async fn start(programs: Vec<(Program, Ready)>) -> Result<Self> {
        let starts = programs.into_iter().map(async |(program, ready)| {
            let mut process = Process::spawn(&program)?;
            process.until(ready.wait()).await?;
            anyhow::Ok(process)
        });
        let processes = try_join_all(starts).await?;
        let stop = CancellationToken::new();
        let keepers = processes
            .into_iter()
            .map(|process| tokio::spawn(keep(process, stop.clone())))
            .collect();
        Ok(Self { stop, keepers })
    }

    /// Ends all programs with SIGTERM, and with SIGKILL those that are still there after 15 s.
    pub async fn stop(self) {
        self.stop.cancel();
        join_all(self.keepers).await;
    }
}

/// Prints a line. Nobody may be reading, which is no reason to stop.
pub fn say(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

async fn keep(mut process: Process, stop: CancellationToken) {
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        let ended = tokio::select! {
            ended = process.wait() => ended.map_or_else(|error| error.to_string(), describe),
            () = stop.cancelled() => return end(process).await,
        };
        if started.elapsed() > STEADY {
            pause = FIRST_PAUSE;
        }
        let died = format!("{} (pid {}) died: {ended}", process.program().name(), process.pid());
        process = loop {
            tokio::select! {
                () = sleep(pause) => {}
                () = stop.cancelled() => return say(died),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            match Process::spawn(process.program()) {
                Ok(fresh) => {
                    say(format_args!("{died}; started again as pid {}", fresh.pid()));
                    break fresh;
                }
                Err(error) => say(format_args!("{died}; it can't be started again yet: {error:#}")),
            }
        };
    }
}

async fn end(mut process: Process) {
    let name = process.program().name().to_owned();
    match process.shut_down(PATIENCE).await {
        Ok(status) if status.success() => say(format_args!("{name} stopped")),
        Ok(status) => say(format_args!("{name} stopped with {}", describe(status))),
        Err(error) => say(format_args!("{name} could not be stopped: {error:#}")),
    }
}
