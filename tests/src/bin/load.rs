//! The load generator, `cargo run --release -p herald-tests --bin load`; `--help` says what it can do.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use herald_tests::load::{self, args::Args};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

// One thread: it shares the machine with what it measures.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let args = Args::parse();
    allow_many_files()?;
    let report = Box::pin(load::run(&args)).await?;
    println!("{report}");
    Ok(if report.clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A connection is a file, here and in the gateways, which inherit the limit.
fn allow_many_files() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raising the limit of open files")
}
