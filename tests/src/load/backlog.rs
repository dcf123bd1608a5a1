//! Workers were away, and many stored requests wait for them: how fast they are applied once a worker starts, and
//! whether all are, once and in order.
//!
//! The requests are put into `FRAMES` as a gateway puts them there, and the answers go to a gateway that is none: to us.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_nats::{Client, Subscriber, jetstream};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use herald_proto::{
    Chat, ClientMessageId, RequestId, UserId,
    clock::now_ms,
    frame::Request,
    payload::New,
    subject,
    topology::Topology,
    wire::{Bundle, Command, Replies},
};
use tokio::time::timeout;

use super::{
    args::Args,
    audit,
    chat::run_name,
    faults::Faults,
    history,
    parts::Parts,
    report::{
        Measured, Process,
        figure::{self, Figure},
    },
    target::Target,
    usage::{self, Usage, Watched},
    wire::Frame,
};

/// How many bundles are on their way to the broker at once.
const UNDER_WAY: usize = 64;
/// Answers come in bundles: far more of them fit than wait here at once.
const CAPACITY: usize = 1 << 16;

/// The chats that wait: who writes to whom.
pub struct Waiting {
    /// The name of the gateway that is none.
    pub gateway: String,
    /// Sender and recipient of each chat.
    pub pairs: Vec<(UserId, UserId)>,
    /// How many requests wait in each chat.
    pub requests: Vec<u64>,
}

/// Stops the workers, stores the requests, starts the workers, and measures until all are answered.
///
/// # Errors
/// If something does not start, or no answer comes for `--patience`.
pub async fn run(args: &Args, parts: &mut Parts, target: &Target) -> Result<Measured> {
    parts.stop_workers().await?;
    let client = async_nats::ConnectOptions::new()
        .subscription_capacity(CAPACITY)
        .connect(parts.broker_url())
        .await?;
    let waiting = waiting(args)?;
    let answers = client.subscribe(subject::reply(&waiting.gateway)).await?;
    client.flush().await?;
    store(args, &client, &waiting).await?;

    let others: Vec<Watched> = target
        .processes
        .iter()
        .filter(|process| !process.name.contains("worker"))
        .cloned()
        .collect();
    let before = usage::all(&others)?;
    let begun = Instant::now();
    parts.start_workers().await?;
    let ready = begun.elapsed();
    let mut taken = take(args, answers, &waiting, begun).await?;
    let logged = audit::logged(args, &client).await?;
    let in_logs = begun.elapsed();
    let workers = parts.worker_processes();
    let after = usage::all(&others)?;
    let mut processes = Process::of_all(&others, &before, &after);
    // What a worker has used since it was started.
    let none = vec![Usage::default(); workers.len()];
    processes.extend(Process::of_all(&workers, &none, &usage::all(&workers)?));

    audit::events(&client, &waiting, &mut taken.faults).await?;
    let stored = Box::pin(history::messages(parts.database_url())).await?;
    taken.faults.unstored += u64::from(args.frames).saturating_sub(stored);
    let seconds = (taken.last - taken.first).as_secs_f64();
    let frames = u64::from(args.frames);
    let rate = figure::number(frames) / seconds.max(1e-9);
    let figures = vec![
        Figure::new("requests applied", rate, "/s from first to last answer"),
        Figure::new("first answer", (taken.first - begun).as_secs_f64(), "s after the start"),
        Figure::new("last answer", (taken.last - begun).as_secs_f64(), "s after the start"),
        Figure::new("last event in its log", in_logs.as_secs_f64(), "s after the start"),
        Figure::count("events in logs", logged, "in all"),
        Figure::new("workers ready", ready.as_secs_f64(), "s after the start"),
        Figure::count("answers that came again", taken.repeated, "in all"),
    ];
    Ok(Measured {
        figures,
        seconds: (taken.last - begun).as_secs_f64(),
        processes,
        per: (frames, "request"),
        faults: taken.faults,
        ..Measured::default()
    })
}

/// How the work is divided.
///
/// # Errors
/// If the first worker has not written it.
pub async fn topology(jetstream: &jetstream::Context) -> Result<Topology> {
    let bucket = jetstream.get_key_value(subject::TOPOLOGY).await?;
    let topology = bucket.get(subject::TOPOLOGY_KEY).await?.context("there is no topology")?;
    Ok(serde_json::from_slice(&topology)?)
}

fn waiting(args: &Args) -> Result<Waiting> {
    let name = run_name();
    let user = |number: u32, side: char| UserId::new(format!("wait-{name}-{number}-{side}"));
    let pairs: Vec<(UserId, UserId)> = (0..args.pairs.min(args.frames))
        .map(|number| Ok((user(number, 'a')?, user(number, 'b')?)))
        .collect::<Result<_>>()?;
    let chats = u64::try_from(pairs.len())?;
    let frames = u64::from(args.frames);
    let requests = (0..chats).map(|n| frames / chats + u64::from(n < frames % chats)).collect();
    Ok(Waiting { gateway: format!("load-{name}"), pairs, requests })
}

/// Stores all requests, chat by chat in turn, each partition's in bundles.
async fn store(args: &Args, client: &Client, waiting: &Waiting) -> Result<()> {
    let jetstream = jetstream::new(client.clone());
    let topology = topology(&jetstream).await?;
    let text = "x".repeat(usize::try_from(args.size)?);
    let mut bundles: Vec<(u16, Vec<Vec<u8>>)> = Vec::new();
    let mut open: Vec<Vec<Vec<u8>>> = vec![Vec::new(); usize::from(topology.partitions)];
    let rounds = waiting.requests.iter().max().copied().unwrap_or(0);
    for key in 1..=rounds {
        for (number, (pair, requests)) in (0_u64..).zip(waiting.pairs.iter().zip(&waiting.requests))
        {
            if key > *requests {
                continue;
            }
            let chat = Chat::between(&pair.0, &pair.1).context("one user")?;
            let partition = topology.partition(&chat);
            let bundle = open.get_mut(usize::from(partition)).context("no such partition")?;
            bundle.push(serde_json::to_vec(&command(number, key, pair, &text)?)?);
            if bundle.len() >= usize::from(args.bundle) {
                bundles.push((partition, std::mem::take(bundle)));
            }
        }
    }
    bundles.extend((0..).zip(open).filter(|(_, bundle)| !bundle.is_empty()));
    let messages = bundles.len();
    // One partition's bundles must be stored in order: `publish` sends before it returns, its ack is awaited later.
    let acks = stream::iter(bundles).then(|(partition, commands)| {
        let body = Bundle::join(&waiting.gateway, commands.iter().map(Vec::as_slice));
        jetstream.publish(subject::frames(partition), body.into())
    });
    acks.map_ok(|ack| async { anyhow::Ok(ack.await.map(drop)?) })
        .map_err(anyhow::Error::from)
        .try_buffered(UNDER_WAY)
        .try_for_each(async |()| Ok(()))
        .await?;
    eprintln!("{} requests are stored, in {messages} messages", args.frames);
    Ok(())
}

fn command(number: u64, key: u64, pair: &(UserId, UserId), text: &str) -> Result<Command> {
    let (from, chat_id) = pair.clone();
    let client_message_id = ClientMessageId::new(key.to_string())?;
    let message = Some(text.to_owned());
    let new = New { chat_id, client_message_id, message, attachments: Vec::new() };
    Ok(Command {
        from,
        session: number,
        id: RequestId::new(format!("n{key}"))?,
        sent_at: now_ms(),
        received_at: 0,
        traceparent: None,
        request: Request::New(new),
    })
}

/// What came of the answers.
struct Taken {
    first: Instant,
    last: Instant,
    repeated: u64,
    faults: Faults,
}

/// Takes the answers. Each chat's messages have one sender: they must be answered in the order of their keys, and as
/// that message of the chat.
async fn take(
    args: &Args,
    mut answers: Subscriber,
    waiting: &Waiting,
    begun: Instant,
) -> Result<Taken> {
    let mut taken = Taken { first: begun, last: begun, repeated: 0, faults: Faults::default() };
    let mut answered = vec![0_u64; waiting.pairs.len()];
    let (mut left, mut said) = (u64::from(args.frames), begun);
    while left > 0 {
        let Ok(message) = timeout(args.patience, answers.next()).await else {
            taken.faults.unanswered += left;
            break;
        };
        let message = message.context("the broker is gone")?;
        let now = Instant::now();
        let Replies(replies) = serde_json::from_slice::<Replies<'_>>(&message.payload)?;
        for reply in &replies {
            let chat = answered.get_mut(usize::try_from(reply.session)?).context("no such chat")?;
            let key: u64 = reply.id.trim_start_matches('n').parse()?;
            let frame: Frame<'_> = serde_json::from_str(reply.frame.get())?;
            if frame.error.is_some() {
                taken.faults.refused += 1;
            } else {
                taken.faults.mismatches += u64::from(frame.payload.message_id != Some(key));
            }
            match key {
                key if key == *chat + 1 => {
                    *chat = key;
                    left -= 1;
                }
                key if key <= *chat => taken.repeated += 1,
                _ => taken.faults.disordered_messages += 1,
            }
        }
        if taken.first == begun {
            taken.first = now;
        }
        taken.last = now;
        if said.elapsed() > Duration::from_secs(1) {
            said = now;
            eprintln!("{left} of {} requests have no answer yet", args.frames);
        }
    }
    ensure!(taken.first > begun, "no answer at all");
    Ok(taken)
}
