//! Faults under load, `cargo run -p herald-tests --bin chaos -- --minutes 20`; `--help` says what it can do.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use herald_tests::chaos::{args::Args, mix};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let outcome = Box::pin(mix::run(&args)).await?;
    println!("\n{outcome}");
    Ok(if outcome.verdict.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
