//! A durable consumer per user against a log with a live tap per user, on a real nats-server:
//! `cargo bench -p herald-tests --bench consumers -- --users 1000,10000`.

use anyhow::Result;
use clap::Parser;
use herald_tests::consumers::{Cost, Plan, Way, run};

/// Prints what each way costs for as many users as asked for, by turns.
#[derive(Debug, Parser)]
struct Args {
    /// How many users.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000")]
    users: Vec<usize>,
    /// How many events, each to a user at random.
    #[arg(long, default_value_t = 50_000)]
    events: usize,
    /// Bytes of an event.
    #[arg(long, default_value_t = 200)]
    size: usize,
    /// Keeps streams and consumers in memory instead of files.
    #[arg(long)]
    in_memory: bool,
    /// What `cargo bench` gives to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

// One thread: it shares the machine with the server.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    println!(
        "{:<22}{:>9}{:>11}{:>13}{:>15}{:>15}{:>15}{:>15}",
        "",
        "users",
        "created/s",
        "delivered/s",
        "server us/ev",
        "client us/ev",
        "server B/user",
        "client B/user"
    );
    for users in args.users {
        for (name, way) in [("durable consumers", Way::Consumers), ("log and live taps", Way::Taps)]
        {
            let plan =
                Plan { users, events: args.events, size: args.size, on_disk: !args.in_memory };
            let cost = run(way, plan).await?;
            row(name, users, &cost);
        }
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn row(name: &str, users: usize, cost: &Cost) {
    let (each_user, events) = (users as f64, cost.delivered as f64);
    println!(
        "{name:<22}{users:>9}{:>11.0}{:>13.0}{:>15.1}{:>15.1}{:>15.0}{:>15.0}",
        each_user / cost.creating.as_secs_f64(),
        events / cost.delivering.as_secs_f64(),
        cost.server_cpu.as_secs_f64() * 1e6 / events,
        cost.client_cpu.as_secs_f64() * 1e6 / events,
        cost.server_memory as f64 / each_user,
        cost.client_memory as f64 / each_user,
    );
}
