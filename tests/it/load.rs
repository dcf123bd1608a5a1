//! The load generator and the benchmarks measure what they say: each mode, small.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;
use herald_tests::{
    Backend, Binaries, Cluster, Options, allocations, consumers,
    load::{self, args::Args, compare::Comparison, login::Login, report::Report},
};

on_both! {
    a_chat_that_is_long_already_goes_on_with_the_next_message
    workers_that_were_away_apply_everything_once_and_in_order
}

/// Moments, not seconds: what is measured here is of no interest.
const SHORT: [&str; 5] = ["--warmup=0.1", "--settle=0.1", "--size=20", "--events=3", "--logins=8"];
const MOMENT: &str = "--seconds=0.3";

async fn run(flags: &[&str], more: &[String]) -> Result<Report> {
    let flags = ["load"].iter().chain(&SHORT).chain(flags).map(ToString::to_string);
    let args = Args::try_parse_from(flags.chain(more.iter().cloned()))?;
    let report = Box::pin(load::run(&args)).await?;
    ensure!(report.clean, "{report}");
    Ok(report)
}

fn figure(report: &Report, name: &str) -> Result<f64> {
    let figure = report.figures.iter().find(|figure| figure.name == name);
    Ok(figure.with_context(|| format!("no figure {name}: {report}"))?.value)
}

fn urls(cluster: &Cluster) -> Result<Vec<String>> {
    let flag = |gateway| anyhow::Ok(["--url".to_owned(), cluster.url(gateway)?]);
    Ok([flag(0)?, flag(1)?].concat())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_counted_and_two_runs_compared() -> Result<()> {
    let cluster = Cluster::start(Backend::Sqlite, Options::of(2, 1)).await?;
    let urls = urls(&cluster)?;
    let files = ["a.json", "b.json"].map(|name| cluster.scratch().join(name));
    let [before, after] = files.each_ref().map(|file| format!("--json={}", file.display()));
    let flags = ["--mode=cycle", "--pairs=3", "--messages=40"];
    run(&[&flags[..], &[&before]].concat(), &urls).await?;
    let report = run(&[&flags[..], &["--devices=3", &after]].concat(), &urls).await?;
    let (messages, events) = (figure(&report, "messages")?, figure(&report, "events delivered")?);
    ensure!(
        (events / messages - 3.0).abs() < 1e-6,
        "one event for each of three devices: {report}"
    );
    let comparison = Comparison::read(&files[0], &files[1])?.to_string();
    ensure!(comparison.contains("server CPU of an event"), "{comparison}");

    let report = run(&["--mode=new", "--pairs=3", "--rate=100", MOMENT], &urls).await?;
    ensure!(figure(&report, "messages")? > 0.0, "{report}");
    let report = run(&["--mode=growth-users", "--steps=4,10", "--rate=100", MOMENT], &urls).await?;
    figure(&report, "10 users: messages").map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_come_in_come_back_and_catch_up() -> Result<()> {
    let cluster = Cluster::start(Backend::Sqlite, Options::of(2, 1)).await?;
    let urls = urls(&cluster)?;
    run(&["--mode=idle", "--connections=20"], &urls).await?;
    let other = Some(Ipv4Addr::new(127, 0, 0, 2).into());
    let login =
        Login { source: other, ..Login::new(&cluster.url(0)?, "from-elsewhere", "default") };
    login.come_in().await?.connection.close().await;
    let chat = ["--pairs=2", "--rate=50", MOMENT];
    let report = run(&[&["--mode=storm", "--connections=30"], &chat[..]].concat(), &urls).await?;
    for window in ["before", "during", "after"] {
        let name = format!("chat {window}: send -> receipt p99");
        // A storm that small may be over before a message is due.
        ensure!(window == "during" || figure(&report, &name)? > 0.0, "{report}");
    }
    for mode in ["--mode=reconnect", "--mode=catch-up"] {
        for (crowd, events) in
            [(&["--connections=20"][..], 60.0), (&["--connections=20", "--returning=2"], 6.0)]
        {
            let report = run(&[&[mode], crowd, &chat[..]].concat(), &urls).await?;
            ensure!(figure(&report, "events taken in all")?.round() == events, "{report}");
        }
    }
    let too_many = ["--mode=catch-up", "--connections=2", "--returning=3"];
    let error = run(&too_many, &urls).await.err().context("more come back than there are")?;
    ensure!(error.to_string().contains("--returning"), "{error:#}");
    Ok(())
}

/// What was written into the database behind the workers' backs counts as any other message.
async fn a_chat_that_is_long_already_goes_on_with_the_next_message(backend: Backend) -> Result<()> {
    let cluster = Cluster::start(backend, Options::of(2, 1)).await?;
    let flags =
        ["--mode=growth-chat", "--steps=10,1000", MOMENT, "--database-url", cluster.database.url()];
    let report = run(&flags, &urls(&cluster)?).await?;
    ensure!(figure(&report, "1000 messages: messages")? > 0.0, "{report}");
    Ok(())
}

async fn workers_that_were_away_apply_everything_once_and_in_order(backend: Backend) -> Result<()> {
    let gateway = Binaries::build(false).await?.gateway;
    let programs = gateway.parent().context("no folder")?.display().to_string();
    let backend = format!("--backend={backend}");
    let flags = ["--mode=backlog", "--frames=600", "--pairs=7", "--bundle=4", "--workers=2"];
    let report = run(&[&flags[..], &[&backend, "--programs", &programs]].concat(), &[]).await?;
    ensure!(figure(&report, "events in logs")?.round() == 600.0, "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_and_taps_both_deliver_every_event() -> Result<()> {
    let plan = consumers::Plan { users: 20, events: 200, size: 20, on_disk: true };
    for way in [consumers::Way::Consumers, consumers::Way::Taps] {
        ensure!(consumers::run(way, plan).await?.delivered == 200, "{way:?}");
    }
    Ok(())
}

#[test]
fn a_gateway_alone_on_a_thread_serves_what_is_counted() -> Result<()> {
    let plan = allocations::Plan { messages: 30, in_flight: 4, receipts: true };
    let mut was_measured = false;
    allocations::run(plan, |work| {
        work();
        was_measured = true;
        allocations::Counts::default()
    })?;
    ensure!(was_measured, "nothing was measured");
    Ok(())
}
