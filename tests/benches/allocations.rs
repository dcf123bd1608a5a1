//! How often Herald asks for memory: `cargo bench -p herald-tests --bench allocations`.
//!
//! First the pure code, for which the counts are exact. Then a whole gateway on one thread of its own, whose allocations
//! are counted; nats-server, a worker and the clients run elsewhere. So the NATS client, the WebSocket library and tokio
//! count too, as they do in the program. Those counts depend on how many frames share a wake-up, and so a little on the
//! machine.

use allocation_counter::{AllocationInfo, measure};
use anyhow::Result;
use herald_proto::frame::{ClientFrame, to_text};
use herald_tests::{
    allocations::{Counts, Plan, run},
    hot::{self, REPLY, SENDER, Session},
    load::wire,
};
use tokio_tungstenite::tungstenite::Utf8Bytes;

fn main() -> Result<()> {
    println!("{:<30}{:>12}{:>10}{:>16}", "", "allocations", "bytes", "a client frame");
    pure()?;
    println!();
    for (name, plan) in [
        ("gateway: cycle, 1 in flight", Plan { messages: 500, in_flight: 1, receipts: true }),
        ("gateway: cycle, 8 in flight", Plan { messages: 2000, in_flight: 8, receipts: true }),
        ("gateway: new, 8 in flight", Plan { messages: 2000, in_flight: 8, receipts: false }),
    ] {
        let counts = run(plan, |work| {
            let counted = measure(work);
            Counts { allocations: counted.count_total, bytes: counted.bytes_total }
        })?;
        row(name, counts, plan.messages, plan.frames());
    }
    Ok(())
}

fn pure() -> Result<()> {
    let (new, ack) = (hot::new(), wire::ack(1_234_567));
    let (dlvrd, reply) = (wire::dlvrd(125, SENDER), Utf8Bytes::from_static(REPLY));
    for (name, text) in [("parse new", &new), ("parse dlvrd", &dlvrd), ("parse ack", &ack)] {
        exact(name, 1, || drop(ClientFrame::parse(text)));
    }
    let (stored, event) = (hot::stored()?, hot::event()?);
    exact("write response", 1, || drop(to_text(&stored)));
    exact("write event", 1, || drop(to_text(&event)));
    let body = to_text(&event)?;
    let mut session = Session::begin()?;
    // What a session keeps for all its life is there once it has done everything.
    for turn in ["", "session: new, answer"] {
        exact(turn, 2, || {
            session.text(&new);
            session.reply("n7", reply.clone());
            session.out.clear();
        });
    }
    for turn in ["", "session: event, ack"] {
        let ack = wire::ack(if turn.is_empty() { 1 } else { 2 });
        exact(turn, 3, || {
            session.live(body.as_bytes());
            session.text(&ack);
            session.out.clear();
        });
    }
    Ok(())
}

/// Counts what one call allocates; says so if it has a name.
fn exact(name: &str, frames: u64, work: impl FnOnce()) {
    let AllocationInfo { count_total, bytes_total, .. } = measure(work);
    if !name.is_empty() {
        row(name, Counts { allocations: count_total, bytes: bytes_total }, 1, frames);
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn row(name: &str, counts: Counts, times: u64, frames: u64) {
    let each = |count: u64, by: u64| count as f64 / by as f64;
    println!(
        "{name:<30}{:>12.1}{:>10.0}{:>16.1}",
        each(counts.allocations, times),
        each(counts.bytes, times),
        each(counts.allocations, times * frames),
    );
}
