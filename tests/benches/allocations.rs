//! How often the gateway asks for memory: `cargo bench -p herald-tests --bench allocations`.
//!
//! A whole gateway on one thread of its own, whose allocations are counted; nats-server, a worker and the clients run
//! elsewhere. So the NATS client, the WebSocket library and tokio count too, as they do in the program. The counts hardly
//! depend on how busy the machine is: they do depend on how many frames come at once, for those share a wake-up.

use anyhow::Result;
use herald_tests::allocations::{Counts, Plan, run};

fn main() -> Result<()> {
    println!("{:<34}{:>14}{:>14}", "a gateway, each", "allocations", "bytes");
    for (name, plan) in [
        ("full cycle, one at a time", Plan { messages: 500, in_flight: 1, receipts: true }),
        ("full cycle, 8 at a time", Plan { messages: 2000, in_flight: 8, receipts: true }),
        ("new only, 8 at a time", Plan { messages: 2000, in_flight: 8, receipts: false }),
    ] {
        let Counts { allocations, bytes, kept } = run(plan, |work| {
            let counted = allocation_counter::measure(work);
            Counts {
                allocations: counted.count_total,
                bytes: counted.bytes_total,
                kept: counted.bytes_current,
            }
        })?;
        let each = |count: u64| count / plan.messages;
        println!(
            "{name:<34}{:>14}{:>14}   ({kept} bytes kept in all)",
            each(allocations),
            each(bytes)
        );
    }
    Ok(())
}
