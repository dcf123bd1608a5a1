//! The load generator, `cargo run --release -p herald-tests --bin load`; `--help` says what it can do.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use herald_tests::load::{self, args::Args, compare::Comparison};

// One thread: it shares the machine with what it measures.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if let [before, after] = args.compare.as_slice() {
        println!("{}", Comparison::read(before, after)?);
        return Ok(ExitCode::SUCCESS);
    }
    let report = Box::pin(load::run(&args)).await?;
    println!("{report}");
    Ok(if report.clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
