//! Dead letters, for operators: which frames could not be applied and why, and how they get another try.

use std::io::Write;

use anyhow::{Context as _, bail};
use async_nats::{
    Client, HeaderMap,
    jetstream::{
        self, Context,
        message::{PublishMessage, StreamMessage},
        stream::{RawMessageErrorKind, Stream},
    },
};
use herald_proto::{
    Chat,
    broker::{self, BrokerArgs},
    header, subject,
    topology::Topology,
    wire::Bundle,
};
use serde::Serialize;
use time::format_description::well_known::Rfc3339;

use crate::{
    config::{Deadletter, ListArgs, RequeueArgs},
    error::Error,
    partition, topology,
};

/// A frame that could not be applied. Times are RFC 3339, sizes bytes.
#[derive(Debug, Serialize)]
struct Letter {
    /// Its sequence in `DEADLETTER`: what `requeue` takes.
    sequence: u64,
    /// The partition the frame came through.
    partition: Option<u16>,
    time: String,
    reason: String,
    /// The subject the frame came on.
    subject: String,
    size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
}

/// No session has this number: whoever waited for the answer has long been told to ask again.
const NO_SESSION: u64 = 0;

/// Does what an operator asks.
///
/// # Errors
/// If the broker can't be reached or refuses, or a letter asked for is not there.
pub async fn run(command: Deadletter) -> anyhow::Result<()> {
    match command {
        Deadletter::List(args) => list(args).await,
        Deadletter::Requeue(args) => requeue(args).await,
    }
}

async fn list(args: ListArgs) -> anyhow::Result<()> {
    let client = connect(&args.broker).await?;
    let letters = open(&jetstream::new(client)).await?;
    let mut out = std::io::stdout().lock();
    if !args.json {
        writeln!(out, "sequence\tpartition\ttime\treason\tsubject\tsize")?;
    }
    let mut from = 1;
    while let Some(message) = next(&letters, from).await? {
        from = message.sequence + 1;
        let letter = Letter::new(&message, args.body);
        if args.json {
            writeln!(out, "{}", serde_json::to_string(&letter)?)?;
        } else {
            writeln!(out, "{letter}")?;
        }
    }
    Ok(())
}

async fn requeue(args: RequeueArgs) -> anyhow::Result<()> {
    let client = connect(&args.broker).await?;
    let jetstream = jetstream::new(client);
    let letters = open(&jetstream).await?;
    let info = letters.get_info().await.map_err(Error::broker("get DEADLETTER"))?;
    let topology = topology::current(&jetstream).await?.context("there is no topology yet")?;
    let requeue = Requeue { jetstream, letters, epoch: partition::epoch(&info), topology };
    if args.all {
        // What dies again meanwhile comes after these, and waits for the next time.
        let (mut from, last) = (1, info.state.last_sequence);
        while let Some(message) = next(&requeue.letters, from).await? {
            if message.sequence > last {
                break;
            }
            from = message.sequence + 1;
            requeue.one(message).await?;
        }
        return Ok(());
    }
    let mut missing = Vec::new();
    for sequence in args.sequences {
        match next(&requeue.letters, sequence).await? {
            Some(message) if message.sequence == sequence => requeue.one(message).await?,
            _ => missing.push(sequence.to_string()),
        }
    }
    if !missing.is_empty() {
        bail!("there is no dead letter {}", missing.join(", "));
    }
    Ok(())
}

async fn connect(broker: &BrokerArgs) -> Result<Client, broker::Error> {
    broker::connect(broker, "herald-worker deadletter", subject::OPERATOR_INBOX).await
}

async fn open(jetstream: &Context) -> Result<Stream<()>, Error> {
    let letters = jetstream.get_stream_no_info(subject::DEADLETTER).await;
    letters.map_err(Error::broker("get DEADLETTER"))
}

/// The first letter from that sequence on.
async fn next(letters: &Stream<()>, from: u64) -> Result<Option<StreamMessage>, Error> {
    let get = letters.raw_message_builder().sequence(from).next_by_subject(subject::DEADLETTER_ALL);
    match get.send().await {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(Error::broker("read a dead letter")(error)),
    }
}

struct Requeue {
    jetstream: Context,
    letters: Stream<()>,
    /// When `DEADLETTER` was created: its sequences begin anew with it.
    epoch: i64,
    topology: Topology,
}

impl Requeue {
    /// Publishes the letter's frame, then drops the letter. Whoever is interrupted in between does it again: the broker
    /// drops a copy that comes soon, and a worker takes a frame that it has applied for a repeat.
    async fn one(&self, letter: StreamMessage) -> anyhow::Result<()> {
        let sequence = letter.sequence;
        let (subject, body) = match serde_json::from_slice::<Bundle>(&letter.payload) {
            Ok(bundle) => self.anew(bundle)?,
            // Not readable then and not now, but perhaps for the workers of another version.
            Err(_) => {
                let origin = letter.headers.get(header::ORIGIN).context("a letter of no origin")?;
                (origin.to_string(), letter.payload)
            }
        };
        let mut headers = HeaderMap::new();
        let id = format!("deadletter-{}-{sequence}", self.epoch);
        headers.insert(header::MESSAGE_ID, id.as_str());
        let message = PublishMessage::build().payload(body).headers(headers);
        let published = self.jetstream.send_publish(subject, message).await;
        published.map_err(Error::from)?.await.map_err(Error::from)?;
        let deleted = self.letters.delete_message(sequence).await;
        deleted.map_err(Error::broker("drop a dead letter"))?;
        writeln!(std::io::stdout(), "{sequence}")?;
        Ok(())
    }

    /// The frame as a fresh one: the number of partitions may be another by now.
    fn anew(&self, mut bundle: Bundle) -> anyhow::Result<(String, bytes::Bytes)> {
        let command = bundle.commands.first_mut().context("a letter without a frame")?;
        command.session = NO_SESSION;
        let chat = Chat::between(&command.from, command.request.peer());
        let partition = self.topology.partition(&chat.context("a chat with oneself")?);
        Ok((subject::frames(partition), serde_json::to_vec(&bundle)?.into()))
    }
}

impl Letter {
    fn new(message: &StreamMessage, with_body: bool) -> Self {
        let header = |name| message.headers.get(name).map_or_else(String::new, ToString::to_string);
        Self {
            sequence: message.sequence,
            partition: message.subject.rsplit('.').next().and_then(|last| last.parse().ok()),
            time: message.time.format(&Rfc3339).unwrap_or_default(),
            reason: header(header::REASON),
            subject: header(header::ORIGIN),
            size: message.payload.len(),
            body: with_body.then(|| String::from_utf8_lossy(&message.payload).into_owned()),
        }
    }
}

impl std::fmt::Display for Letter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { sequence, partition, time, reason, subject, size, body } = self;
        let partition = partition.map_or_else(|| "-".into(), |partition| partition.to_string());
        write!(f, "{sequence}\t{partition}\t{time}\t{}\t{subject}\t{size}", reason.escape_debug())?;
        match body {
            Some(body) => write!(f, "\t{}", body.escape_debug()),
            None => Ok(()),
        }
    }
}
