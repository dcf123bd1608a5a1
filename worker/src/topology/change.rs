//! Changing the number of partitions: which partition a chat falls into changes with it, so nothing may be under way.
//!
//! What is left in `FRAMES` then has been applied and answered, and is dropped: under the new number its subjects would
//! mean other partitions. New workers create the consumers that are missing.

use std::io::Write as _;

use anyhow::{Context as _, bail, ensure};
use async_nats::{
    Client,
    jetstream::{
        self, Context,
        stream::{ConsumerError, ConsumerErrorKind},
    },
};
use herald_proto::{
    broker::{self, BrokerArgs},
    subject,
    topology::Topology,
};

use super::{stored, traffic::Traffic};
use crate::{
    config::{self, TopologyArgs},
    error::Error,
};

/// What an operator works on.
struct Desk {
    client: Client,
    jetstream: Context,
    /// What the service runs with.
    found: Topology,
}

/// Does what an operator asks.
///
/// # Errors
/// If the broker can't be reached or refuses; if what is asked for can't be done, now or ever.
pub async fn run(command: config::Topology) -> anyhow::Result<()> {
    match command {
        config::Topology::Show(broker) => {
            let desk = Desk::open(&broker).await?;
            writeln!(std::io::stdout(), "{}", desk.found)?;
            writeln!(std::io::stdout(), "{}", desk.look().await?)?;
        }
        config::Topology::Plan(args) => {
            let desk = Desk::open(&args.broker).await?;
            let wanted = desk.wanted(&args)?;
            writeln!(std::io::stdout(), "{}", desk.plan(wanted))?;
            let traffic = desk.look().await?;
            writeln!(std::io::stdout(), "{traffic}")?;
            writeln!(std::io::stdout(), "{}", verdict(&traffic))?;
        }
        config::Topology::Apply(args) => {
            let desk = Desk::open(&args.broker).await?;
            let wanted = desk.wanted(&args)?;
            writeln!(std::io::stdout(), "{}", desk.plan(wanted))?;
            if wanted != desk.found {
                let traffic = desk.look().await?;
                ensure!(traffic.is_at_rest(), "{traffic}\n{}", verdict(&traffic));
                desk.apply(wanted).await?;
                writeln!(std::io::stdout(), "done: the service runs with {wanted}")?;
            }
        }
    }
    Ok(())
}

fn verdict(traffic: &Traffic) -> String {
    if traffic.is_at_rest() {
        return "nothing is under way: apply may change it now".into();
    }
    let mut first = Vec::new();
    if traffic.gateways > 0 {
        first.push("stop the gateways (their leases run out within seconds)");
    }
    if traffic.frames > 0 {
        first.push("let the workers finish what waits");
    }
    if traffic.workers > 0 {
        first.push("stop the workers");
    }
    format!("apply may not change it now: first {}", first.join(", then "))
}

fn is_gone(error: &ConsumerError) -> bool {
    matches!(error.kind(), ConsumerErrorKind::JetStream(error)
        if error.error_code() == jetstream::ErrorCode::CONSUMER_NOT_FOUND)
}

impl Desk {
    async fn open(broker: &BrokerArgs) -> anyhow::Result<Self> {
        let name = "herald-worker topology";
        let client = broker::connect(broker, name, subject::OPERATOR_INBOX).await?;
        let jetstream = jetstream::new(client.clone());
        let found = super::current(&jetstream).await?;
        let found = found.context("there is no topology yet: the first worker writes it")?;
        Ok(Self { client, jetstream, found })
    }

    async fn look(&self) -> Result<Traffic, Error> {
        Traffic::look(&self.client, &self.jetstream, self.found).await
    }

    fn wanted(&self, args: &TopologyArgs) -> anyhow::Result<Topology> {
        let wanted = Topology {
            partitions: args.partitions.unwrap_or(self.found.partitions),
            event_streams: args.event_streams.unwrap_or(self.found.event_streams),
        };
        if wanted.event_streams != self.found.event_streams {
            bail!(
                "--event-streams: there are {}, and that can't be changed: users' logs lie in them, and the ids of \
                 their events",
                self.found.event_streams
            );
        }
        Ok(wanted)
    }

    fn plan(&self, wanted: Topology) -> String {
        let (before, after) = (self.found.partitions, wanted.partitions);
        match after {
            after if after == before => format!("{wanted}, as it is: there is nothing to change"),
            after if after > before => {
                format!(
                    "{before} -> {after} partitions: FRAMES is emptied of what is answered; workers create consumers {} to {}",
                    subject::consumer(before),
                    subject::consumer(after - 1)
                )
            }
            after => {
                format!(
                    "{before} -> {after} partitions: FRAMES is emptied of what is answered, consumers {} to {} are removed",
                    subject::consumer(after),
                    subject::consumer(before - 1)
                )
            }
        }
    }

    /// Whoever is interrupted in between has changed nothing that workers do not mend, and can do it again.
    async fn apply(&self, wanted: Topology) -> anyhow::Result<()> {
        let bucket = self.jetstream.get_key_value(subject::TOPOLOGY).await;
        let bucket = bucket.map_err(Error::broker("open TOPOLOGY"))?;
        let entry = bucket.entry(subject::TOPOLOGY_KEY).await;
        let entry = entry.map_err(Error::broker("read the topology"))?;
        let entry = entry.context("the topology is gone")?;
        ensure!(stored(&bucket).await? == Some(self.found), "someone else has just changed it");
        let frames = self.jetstream.get_stream_no_info(subject::FRAMES).await;
        let frames = frames.map_err(Error::broker("get FRAMES"))?;
        frames.purge().await.map_err(Error::broker("empty FRAMES"))?;
        for partition in wanted.partitions..self.found.partitions {
            match frames.delete_consumer(&subject::consumer(partition)).await {
                Err(error) if !is_gone(&error) => {
                    return Err(Error::broker("remove a consumer")(error).into());
                }
                _ => {}
            }
        }
        let text = serde_json::to_vec(&wanted)?;
        let written = bucket.update(subject::TOPOLOGY_KEY, text.into(), entry.revision).await;
        written.map_err(Error::broker("write the topology"))?;
        let traffic = Traffic::look(&self.client, &self.jetstream, wanted).await?;
        ensure!(
            traffic.workers == 0 && traffic.gateways == 0,
            "someone has started meanwhile and may run with {}: stop it and start it again\n{traffic}",
            self.found
        );
        Ok(())
    }
}
