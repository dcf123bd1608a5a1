//! Rehearses a rolling update with the manifests' timings, and prints what it was like.

use std::{path::PathBuf, time::Duration};

use clap::Parser;
use herald_tests::rollout::{Plan, rehearse};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Rolls gateways and workers, one by one, under load. Ends with 1 if anything was lost, doubled or out of order.
#[derive(Debug, Parser)]
#[command(name = "roll")]
struct Args {
    /// Gateways.
    #[arg(long, default_value_t = 2)]
    gateways: usize,
    /// Workers.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Users who do nothing but be there.
    #[arg(long, default_value_t = 2000)]
    sessions: usize,
    /// Pairs of users who write all the time.
    #[arg(long, default_value_t = 20)]
    pairs: usize,
    /// Milliseconds that each of them pauses after a message.
    #[arg(long, default_value_t = 50)]
    pause: u64,
    /// Folder with the programs. [default: builds optimised ones]
    #[arg(long)]
    programs: Option<PathBuf>,
    /// The overlay whose timings are followed.
    #[arg(long, default_value = "prod")]
    overlay: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // A connection is a file, here and in the gateways, which inherit the limit.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let plan = Plan {
        gateways: args.gateways,
        workers: args.workers,
        sessions: args.sessions,
        pairs: args.pairs,
        pause: Duration::from_millis(args.pause),
        before: Duration::from_secs(15),
        release: true,
        programs: args.programs,
        overlay: args.overlay,
    };
    println!("{}", Box::pin(rehearse(&plan)).await?);
    Ok(())
}
