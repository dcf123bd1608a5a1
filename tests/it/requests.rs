//! A gateway's requests come into their stream in order, and who has sent one that is not confirmed is told so.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::{
    self,
    stream::{Config, DiscardPolicy, Stream},
};
use clap::Parser as _;
use herald_gateway::{
    config,
    inbox::{Delivery, Inbox},
    metrics::Metrics,
    publisher::Publisher,
};
use herald_proto::{
    Chat, ClientMessageId, RequestId, UserId,
    frame::Request,
    link::{Link, dial::Dialer},
    payload::{Mark, New},
    topology::Topology,
    wire::{Bundle, Command},
};
use herald_tests::{
    Broker, eventually,
    proxy::{Mode, Proxy},
};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);
/// More requests than this are refused.
const CAPACITY: usize = 1000;

/// A publisher, and the session of its only client.
struct Line {
    publisher: Arc<Publisher>,
    inbox: Arc<Inbox>,
    tap: Arc<Link>,
    proxy: Proxy,
    broker: Broker,
    stop: CancellationToken,
}

impl Line {
    async fn start() -> Result<Self> {
        let broker = Broker::start().await?;
        let proxy = Proxy::start(broker.address()).await?;
        let url = format!("nats://{}", proxy.address());
        let flags = ["herald-gateway", "--insecure-auth", "--nats-url", &url];
        let config = config::Config::try_parse_from(flags)?;
        let (tap, metrics) = (Arc::new(Link::new("tap")), Arc::<Metrics>::default());
        let topology = Topology { partitions: 4, event_streams: 1 };
        let inbox = Arc::new(Inbox::new(1, metrics.clone()));
        let publisher =
            Arc::new(Publisher::new(tap.clone(), topology, "g".into(), CAPACITY, metrics));
        let stop = CancellationToken::new();
        tokio::spawn({
            let (tap, publisher, stop) = (tap.clone(), publisher.clone(), stop.clone());
            let dialer = Dialer::new(&config.broker, "tap".into())?;
            async move { tap.run(dialer, &*publisher, stop).await }
        });
        let line = Self { publisher, inbox, tap, proxy, broker, stop };
        line.connected().await?;
        Ok(line)
    }

    async fn connected(&self) -> Result<()> {
        eventually("the tap is connected", PATIENCE, async || {
            ensure!(self.tap.is_connected());
            Ok(())
        })
        .await
    }

    /// The stream that takes the requests.
    async fn stream(&self, config: Config) -> Result<Stream> {
        let jetstream = jetstream::new(async_nats::connect(self.broker.url()).await?);
        let subjects = vec!["frames.>".to_owned()];
        Ok(jetstream.create_stream(Config { name: "FRAMES".into(), subjects, ..config }).await?)
    }

    /// Sends a request in one chat on its way.
    fn submit(&self, id: usize) -> Result<(), RequestId> {
        self.send(id, Request::Read(Mark { chat_id: peer(), message_id: None }))
    }

    fn send(&self, id: usize, request: Request) -> Result<(), RequestId> {
        let (user, peer) = (UserId::new("User1").unwrap(), peer());
        let command = Command {
            from: user.clone(),
            session: 1,
            id: RequestId::new(id.to_string()).unwrap(),
            sent_at: 1,
            received_at: 2,
            traceparent: None,
            request,
        };
        let chat = Chat::between(&user, &peer).unwrap();
        self.publisher.submit(&chat, command, None, &self.inbox)
    }

    /// The next requests of which the session is told that they are not confirmed.
    async fn unconfirmed(&self) -> Result<Vec<String>> {
        tokio::time::timeout(PATIENCE, self.inbox.arrived()).await.context("nothing is told")?;
        let ids = self.inbox.take().into_iter().map(|delivery| match delivery {
            Delivery::Unconfirmed(id) => Ok(id.to_string()),
            other => anyhow::bail!("{other:?}"),
        });
        ids.collect()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn peer() -> UserId {
    UserId::new("User2").unwrap()
}

/// Waits until the stream holds so many requests, and returns their ids, in order.
async fn stored(stream: &mut Stream, count: usize) -> Result<Vec<String>> {
    let mut found = Vec::new();
    eventually("all requests are stored", PATIENCE, async || {
        found.clear();
        for sequence in 1..=stream.info().await?.state.last_sequence {
            let message = stream.get_raw_message(sequence).await?;
            let bundle: Bundle = serde_json::from_slice(&message.payload)?;
            ensure!(bundle.gateway == "g");
            found.extend(bundle.commands.into_iter().map(|command| command.id.to_string()));
        }
        ensure!(found.len() >= count, "{} so far", found.len());
        Ok(())
    })
    .await?;
    Ok(found)
}

fn ids(ids: std::ops::Range<usize>) -> Vec<String> {
    ids.map(|id| id.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_a_chat_lie_in_the_stream_in_the_order_in_which_they_came() -> Result<()> {
    let line = Line::start().await?;
    let mut stream = line.stream(Config::default()).await?;
    for id in 0..CAPACITY {
        line.submit(id).unwrap();
    }
    assert_eq!(stored(&mut stream, CAPACITY).await?, ids(0..CAPACITY));
    eventually("there is a place again", PATIENCE, async || {
        line.submit(CAPACITY).map_err(|id| anyhow::anyhow!("{id} is refused"))
    })
    .await?;
    assert_eq!(stored(&mut stream, CAPACITY + 1).await?, ids(0..CAPACITY + 1));
    assert!(line.inbox.take().is_empty(), "all of them are confirmed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_not_confirmed_in_time_is_told_so_and_the_next_one_goes_its_way()
-> Result<()> {
    let line = Line::start().await?;
    let mut stream = line.stream(Config::default()).await?;
    line.proxy.set(Mode::Hole);
    line.submit(0).unwrap();
    assert_eq!(line.unconfirmed().await?, ["0"]);
    line.submit(1).unwrap();
    line.proxy.set(Mode::Pass);
    assert_eq!(stored(&mut stream, 2).await?, ["0", "1"], "the first one has come after all");
    line.submit(2).unwrap();
    assert_eq!(stored(&mut stream, 3).await?, ["0", "1", "2"]);
    assert!(line.inbox.take().is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_on_their_way_when_the_connection_breaks_are_told_so() -> Result<()> {
    let line = Line::start().await?;
    let mut stream = line.stream(Config::default()).await?;
    line.proxy.set(Mode::Hole);
    line.submit(0).unwrap();
    line.proxy.set(Mode::Cut);
    let refused = eventually("a request is refused", PATIENCE, async || match line.submit(9) {
        Err(id) => Ok(id),
        Ok(()) => anyhow::bail!("it is taken"),
    });
    assert_eq!(refused.await?.to_string(), "9");
    assert_eq!(line.unconfirmed().await?[0], "0");
    line.proxy.set(Mode::Pass);
    line.connected().await?;
    line.submit(1).unwrap();
    eventually("the next one is stored", PATIENCE, async || {
        // The first one may have come through at the last moment.
        ensure!(stored(&mut stream, 1).await?.ends_with(&["1".to_owned()]));
        Ok(())
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_no_stream_takes_is_told_so() -> Result<()> {
    let line = Line::start().await?;
    line.submit(0).unwrap();
    assert_eq!(line.unconfirmed().await?, ["0"], "there is none");
    let full = Config { max_messages: 1, discard: DiscardPolicy::New, ..Config::default() };
    let mut stream = line.stream(full).await?;
    line.submit(1).unwrap();
    assert_eq!(stored(&mut stream, 1).await?, ["1"]);
    line.submit(2).unwrap();
    assert_eq!(line.unconfirmed().await?, ["2"], "it is full");
    Ok(())
}

/// The broker ends a connection on which it is sent more than it takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_larger_than_the_broker_takes_is_refused_alone() -> Result<()> {
    let line = Line::start().await?;
    let mut stream = line.stream(Config::default()).await?;
    let connects = line.tap.connects();
    line.submit(0).unwrap();
    let new = |bytes: usize| {
        Request::New(New {
            chat_id: peer(),
            client_message_id: ClientMessageId::new("k").unwrap(),
            message: Some("x".repeat(bytes)),
            attachments: vec![],
        })
    };
    assert_eq!(line.send(1, new(line.tap.max_payload())).unwrap_err().to_string(), "1");
    line.send(2, new(line.tap.max_payload() - 2000)).unwrap();
    line.submit(3).unwrap();
    assert_eq!(stored(&mut stream, 3).await?, ["0", "2", "3"]);
    assert_eq!(line.tap.connects(), connects);
    assert!(line.inbox.take().is_empty());
    Ok(())
}
