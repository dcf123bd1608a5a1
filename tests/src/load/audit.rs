//! What `backlog` has left in the users' logs: every message once, in order, with the right count.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use async_nats::{
    Client,
    jetstream::{self, consumer::pull},
};
use futures::StreamExt as _;
use herald_proto::{UserId, subject, topology::Topology};
use tokio::time::{sleep, timeout};

use super::{
    args::Args,
    backlog::{Waiting, topology},
    chat::LOOK,
    faults::Faults,
    wire::{EventType, Frame},
};

/// How long reading a log may stall.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until each of `--frames` requests has its event in a log, as long as there is something to hope for; how many
/// there are.
///
/// # Errors
/// If a stream can't be asked.
pub async fn logged(args: &Args, client: &Client) -> Result<u64> {
    let jetstream = jetstream::new(client.clone());
    let topology = topology(&jetstream).await?;
    let (mut hope, mut logged) = (Instant::now() + args.patience, 0);
    loop {
        let mut now_logged = 0;
        for stream in 0..topology.event_streams {
            let stream = jetstream.get_stream(subject::events(stream)).await?;
            now_logged += stream.cached_info().state.messages;
        }
        if now_logged > logged {
            (hope, logged) = (Instant::now() + args.patience, now_logged);
        }
        if logged >= u64::from(args.frames) || Instant::now() > hope {
            return Ok(logged);
        }
        sleep(LOOK).await;
    }
}

/// Reads the recipients' logs from their streams and counts what is wrong with them.
///
/// # Errors
/// If a stream can't be read.
pub async fn events(client: &Client, waiting: &Waiting, faults: &mut Faults) -> Result<()> {
    let jetstream = jetstream::new(client.clone());
    let topology = topology(&jetstream).await?;
    let mut seen: HashMap<String, u64> =
        waiting.pairs.iter().map(|(_, to)| (topology.event_subject(to), 0)).collect();
    for stream in 0..topology.event_streams {
        let stream = jetstream.get_stream(subject::events(stream)).await?;
        let mut left = stream.cached_info().state.messages;
        let config = pull::OrderedConfig::default();
        let mut messages = stream.create_consumer(config).await?.messages().await?;
        while left > 0 {
            let message = timeout(PATIENCE, messages.next()).await.context("the log stalls")?;
            let message = message.context("the log ends early")??;
            left -= 1;
            let Some(last) = seen.get_mut(message.subject.as_str()) else { continue };
            let frame: Frame<'_> = serde_json::from_slice(&message.payload)?;
            check(&frame, last, faults);
        }
    }
    for ((_, to), requests) in waiting.pairs.iter().zip(&waiting.requests) {
        faults.lost_events += requests - last(&seen, &topology, to).min(*requests);
    }
    Ok(())
}

fn last(seen: &HashMap<String, u64>, topology: &Topology, user: &UserId) -> u64 {
    seen.get(&topology.event_subject(user)).copied().unwrap_or(0)
}

/// The next event of a log whose last message was `last`.
fn check(frame: &Frame<'_>, last: &mut u64, faults: &mut Faults) {
    let payload = &frame.payload;
    let (EventType::New, Some(message_id)) = (frame.event_type, payload.message_id) else {
        faults.odd_frames += 1;
        return;
    };
    if message_id <= *last {
        faults.duplicate_messages += 1;
        return;
    }
    faults.disordered_messages += u64::from(message_id != *last + 1);
    faults.mismatches += u64::from(payload.key() != Some(message_id));
    faults.wrong_counts += u64::from(payload.missed != Some(message_id));
    *last = message_id;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(ids: &[u64]) -> (u64, Faults) {
        let (mut last, mut faults) = (0, Faults::default());
        for id in ids {
            let text = format!(
                r#"{{"type":"event","eventType":"new","payload":{{"chatId":"a","messageId":{id},"clientMessageId":"{id}","missed":{id}}}}}"#
            );
            check(&serde_json::from_str(&text).unwrap(), &mut last, &mut faults);
        }
        (last, faults)
    }

    #[test]
    fn a_log_without_holes_is_clean() {
        assert_eq!(checked(&[1, 2, 3]), (3, Faults::default()));
    }

    #[test]
    fn holes_and_repeats_in_a_log_are_seen() {
        let (last, faults) = checked(&[1, 3, 3, 2]);
        let expected =
            Faults { disordered_messages: 1, duplicate_messages: 2, ..Faults::default() };
        assert_eq!((last, faults), (3, expected));
    }
}
