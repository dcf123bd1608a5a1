//! Devices for which events wait come back, all at once or after they were away: how long until each has taken all.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::{sync::Semaphore, time::sleep};

use super::{
    args::{Args, Mode},
    arrivals::Arrivals,
    aside::Aside,
    chat::run_name,
    connection::Connection,
    faults::Faults,
    fill,
    login::{Entrances, Login},
    report::{
        Measured, Process,
        figure::{self, Figure},
    },
    returner::{self, Returned},
    stats::Latency,
    target::Target,
    usage,
};

/// Lets the devices come back and measures until the last has caught up, or nothing more comes.
///
/// # Errors
/// If something could not be set up, a measured process is gone, or more are to come back than there are.
pub async fn run(args: &Args, target: &Target) -> Result<Measured> {
    ensure!(args.returning() <= args.connections, "--returning is more than --connections");
    let urls = target.urls.as_slice();
    let mut crowd = logins(args, urls)?;
    // A new device's log begins when it first connects.
    for device in come_in(args, &crowd).await? {
        device.close().await;
    }
    let users: Vec<String> = crowd.iter().map(|login| login.user.clone()).collect();
    let mut lives: Vec<Arrivals> = crowd.iter().map(|_| Arrivals::default()).collect();
    if args.acked > 0 {
        fill::run(args, urls, &users, args.acked).await?;
        let returned = come_back(args, &crowd, lives, args.acked, FIRST_LOGINS).await?;
        let taken: u64 = returned.iter().map(|device| device.events).sum();
        let expected = u64::from(args.connections) * u64::from(args.acked);
        ensure!(taken == expected, "{taken} of {expected} first events came");
        lives = returned.into_iter().map(|device| device.arrivals).collect();
    }
    fill::run(args, urls, &users, args.events).await?;
    let returning = usize::try_from(args.returning())?;
    crowd.truncate(returning);
    lives.truncate(returning);
    let aside = Aside::begin(args, target).await?;
    // They get what waits for them, and have not acked it when their connections are lost.
    let connected = match args.mode {
        Mode::Reconnect => {
            let connected = come_in(args, &crowd).await?;
            // What a gateway keeps in memory of a log just read for a crowd is not there when a network is lost.
            sleep(FORGOTTEN).await;
            connected
        }
        _ => Vec::new(),
    };
    let before = usage::all(&target.processes)?;
    aside.disturb()?;
    let begun = Instant::now();
    // Without a word, as when a network is lost.
    drop(connected);
    let returned = come_back(args, &crowd, lives, args.events, args.logins()).await?;
    aside.calm();
    let after = usage::all(&target.processes)?;
    let elapsed = begun.elapsed();
    let mut measured = told(args, begun, &returned)?;
    measured.processes = Process::of_all(&target.processes, &before, &after);
    measured.seconds = elapsed.as_secs_f64();
    aside.end(&mut measured).await?;
    Ok(measured)
}

/// How long after a crowd's return a gateway has nothing of its log in memory any more. Its events are not due again yet.
const FORGOTTEN: Duration = Duration::from_secs(10);
/// How many devices come in at once when nothing is measured yet.
const FIRST_LOGINS: usize = 64;

fn logins(args: &Args, urls: &[String]) -> Result<Vec<Login>> {
    let name = run_name();
    let entrances = Entrances::new(args.connections, urls);
    let login = |number| entrances.login(number, &format!("back-{name}-{number}"), "default");
    (0..usize::try_from(args.connections)?).map(login).collect()
}

async fn come_in(args: &Args, crowd: &[Login]) -> Result<Vec<Connection>> {
    let connections = stream::iter(crowd)
        .map(|login| async { anyhow::Ok(login.come_in().await?.connection) })
        .buffered(args.logins().min(FIRST_LOGINS))
        .try_collect()
        .await?;
    eprintln!("{} devices are connected", crowd.len());
    Ok(connections)
}

/// Lets each device come in and take so many events, in the crowd's order.
async fn come_back(
    args: &Args,
    crowd: &[Login],
    lives: Vec<Arrivals>,
    events: u32,
    at_once: usize,
) -> Result<Vec<Returned>> {
    let turns = Arc::new(Semaphore::new(at_once));
    let tasks = crowd.iter().zip(lives).map(|(login, life)| {
        let (login, turns, patience) = (login.clone(), turns.clone(), args.patience);
        tokio::spawn(returner::run(login, life, events.into(), patience, turns))
    });
    // All are spawned before one is waited for.
    let tasks: Vec<_> = tasks.collect();
    let (mut returned, mut said) = (Vec::new(), Instant::now());
    for task in tasks {
        returned.push(task.await?);
        if said.elapsed() > Duration::from_secs(1) {
            said = Instant::now();
            eprintln!("the first {} of {} have caught up", returned.len(), crowd.len());
        }
    }
    Ok(returned)
}

fn told(args: &Args, begun: Instant, returned: &[Returned]) -> Result<Measured> {
    let last = returned.iter().map(|device| device.caught_up_at).max().context("nobody")?;
    let in_at = returned.iter().filter_map(|device| device.in_at).max().unwrap_or(last);
    let events: u64 = returned.iter().map(|device| device.events).sum();
    let expected = u64::from(args.returning()) * u64::from(args.events);
    let seconds = (last - begun).as_secs_f64();
    let complete = returned.iter().filter(|device| device.events == u64::from(args.events));
    let mut figures = vec![
        Figure::count("devices caught up", u64::try_from(complete.count())?, "in all"),
        Figure::new("until the last is in", (in_at - begun).as_secs_f64(), "s"),
        Figure::new("until the last is caught up", seconds, "s"),
        Figure::new("events taken", figure::number(events) / seconds.max(1e-9), "/s"),
        Figure::count("events taken in all", events, ""),
        Figure::count(
            "told to come again later",
            returned.iter().map(|d| d.refused).sum(),
            "times",
        ),
        Figure::count("cut off", returned.iter().map(|d| d.cut_off).sum(), "times"),
    ];
    let took = returned.iter().map(|device| device.caught_up_at - begun);
    figures.extend(figure::percentiles("one device caught up", &Latency::of_all(took)?));
    let mut faults = Faults::default();
    returned.iter().for_each(|device| faults += device.faults);
    faults.lost_events += expected.saturating_sub(events);
    Ok(Measured { figures, per: (events, "event"), faults, ..Measured::default() })
}
