//! A whole gateway on the caller's thread, so that what its messages allocate can be counted there.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Parser as _;
use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
};

use crate::{
    Backend, Cluster, Options,
    load::{
        args::Args,
        chat::{self, Chat, LOOK},
        slowdown::Slowdowns,
        target::Target,
    },
};

/// What is sent.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How many messages are counted.
    pub messages: u64,
    /// How many are on their way at once.
    pub in_flight: u32,
    /// Whether they are reported as delivered.
    pub receipts: bool,
}

/// What was counted, for all messages together.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    /// Allocations, and reallocations.
    pub allocations: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Plan {
    /// How many frames of clients a message takes, both ways: `new` and its answer, the event, its ack and the answer
    /// to that; and the same once more for the report and the receipt.
    pub fn frames(&self) -> u64 {
        if self.receipts { 10 } else { 5 }
    }
}

/// Messages before anything is counted: whatever is allocated once is there then.
const WARM_UP: u64 = 200;

/// Starts everything, and lets `measure` do the work that counts: all that the gateway does for the messages is done on
/// this thread, and nothing else is.
///
/// # Errors
/// If something does not start, or not every message came through.
pub fn run(plan: Plan, measure: impl FnOnce(&mut dyn FnMut()) -> Counts) -> Result<Counts> {
    let elsewhere = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let here = Builder::new_current_thread().enable_all().build()?;
    // No traces, no limits: neither is what every message costs.
    let flags = ["--trace-ratio", "0", "--rate", "1000000", "--burst", "1000000"];
    let options = Options::of(0, 1).gateway_flags(&flags);
    let cluster = elsewhere.block_on(Cluster::start(Backend::Sqlite, options))?;
    let gateway = here.block_on(cluster.gateway())?;
    let url = format!("ws://{}/ws", gateway.address);

    let (warm, is_warm) = oneshot::channel();
    let (begin, may_begin) = oneshot::channel();
    let (end, has_ended) = oneshot::channel();
    let (leave, may_leave) = oneshot::channel();
    let clients = thread::spawn(move || {
        Builder::new_current_thread().enable_all().build()?.block_on(async {
            let chat = clients(plan, &url).await?;
            let gone = |_| anyhow!("the gateway's thread is gone");
            send(&chat, WARM_UP).await?;
            warm.send(()).map_err(gone)?;
            may_begin.await?;
            let sent = send(&chat, plan.messages).await;
            end.send(()).map_err(gone)?;
            sent?;
            may_leave.await?;
            let faults = chat.end().await?;
            ensure!(faults.is_clean(), "{faults:?}");
            anyhow::Ok(())
        })
    });
    let counts = count(&here, measure, is_warm, begin, has_ended);
    let _ = leave.send(());
    // The clients' goodbyes want a gateway that listens.
    while !clients.is_finished() {
        here.block_on(async { tokio::time::sleep(LOOK).await });
    }
    clients.join().map_err(|_| anyhow!("the clients' thread has panicked"))??;
    here.block_on(gateway.stop())?;
    here.shutdown_timeout(Duration::from_secs(1));
    elsewhere.block_on(async { drop(cluster) });
    counts
}

fn count(
    here: &Runtime,
    measure: impl FnOnce(&mut dyn FnMut()) -> Counts,
    is_warm: oneshot::Receiver<()>,
    begin: oneshot::Sender<()>,
    has_ended: oneshot::Receiver<()>,
) -> Result<Counts> {
    here.block_on(is_warm).context("the clients did not get as far")?;
    begin.send(()).map_err(|()| anyhow!("the clients are gone"))?;
    let mut has_ended = Some(has_ended);
    Ok(measure(&mut || {
        if let Some(has_ended) = has_ended.take() {
            // If the clients are gone, that is told when they are joined.
            let _ = here.block_on(has_ended);
        }
    }))
}

async fn clients(plan: Plan, url: &str) -> Result<Chat> {
    let in_flight = plan.in_flight.to_string();
    let mode = if plan.receipts { "cycle" } else { "new" };
    let args = ["load", "--url", url, "--pairs", "1", "--in-flight", &in_flight, "--mode", mode];
    let args = Args::try_parse_from(args)?;
    let target = Target::new(&args, None, Slowdowns::default());
    let chat = Chat::begin(&args, &target, chat::pairs(&args)).await?;
    chat.shared.stop_sending();
    chat.settle().await;
    Ok(chat)
}

/// Sends so many messages and waits until they are through.
async fn send(chat: &Chat, messages: u64) -> Result<()> {
    let before = chat.shared.stats().completed;
    chat.shared.start_sending(i64::try_from(messages)?);
    chat.pairs.iter().for_each(|pair| pair.wake.notify_one());
    while chat.shared.is_sending() && !chat.is_deserted() {
        tokio::time::sleep(LOOK).await;
    }
    chat.settle().await;
    let through = chat.shared.stats().completed - before;
    ensure!(through == messages, "{through} of {messages} messages came through");
    Ok(())
}
