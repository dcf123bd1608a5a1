//! A chat that goes on beside something else, and what that does to it: its latencies before, during and after.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::{
    runtime::{Builder, Runtime},
    time::sleep,
};

use super::{
    args::Args,
    chat::{self, Chat},
    report::{
        Measured,
        figure::{self, Figure},
    },
    stats::{Latency, Span, Window},
    target::Target,
};

/// A chat beside something else; none without `--rate`.
pub struct Aside {
    after: Duration,
    chat: Option<Chat>,
    /// A thread of its own: what waits for its turn there is not the service's doing.
    runtime: Option<Runtime>,
}

/// The windows, in order.
const WINDOWS: [&str; 3] = ["before", "during", "after"];

impl Aside {
    /// Begins to chat, if it is asked for, and measures for `--seconds` what it is like undisturbed.
    ///
    /// # Errors
    /// If the users can't connect.
    pub async fn begin(args: &Args, target: &Target) -> Result<Self> {
        let mut aside = Self { after: args.seconds, chat: None, runtime: None };
        if args.rate.is_none() {
            return Ok(aside);
        }
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let handle = aside.runtime.insert(runtime).handle().clone();
        let (args, target) = (args.clone(), target.clone());
        let (warmup, seconds) = (args.warmup, args.seconds);
        let begin = async move { Chat::begin(&args, &target, chat::pairs(&args)).await };
        let chat = aside.chat.insert(handle.spawn(begin).await??);
        sleep(warmup).await;
        chat.shared.stats().begin(Instant::now())?;
        sleep(seconds).await;
        chat.shared.stats().end(Instant::now());
        Ok(aside)
    }

    /// What disturbs begins.
    ///
    /// # Errors
    /// Never: the histograms' bounds are valid.
    pub fn disturb(&self) -> Result<()> {
        self.chat.as_ref().map_or(Ok(()), |chat| chat.shared.stats().begin(Instant::now()))
    }

    /// What disturbed is over.
    pub fn calm(&self) {
        if let Some(chat) = &self.chat {
            chat.shared.stats().end(Instant::now());
        }
    }

    /// Measures for `--seconds` what it is like afterwards, and adds everything to the result.
    ///
    /// # Errors
    /// If one of the tasks has panicked.
    pub async fn end(mut self, measured: &mut Measured) -> Result<()> {
        let Some(chat) = self.chat.take() else { return Ok(()) };
        chat.shared.stats().begin(Instant::now())?;
        sleep(self.after).await;
        chat.shared.stats().end(Instant::now());
        let shared = chat.shared.clone();
        measured.faults += chat.end().await?;
        let stats = shared.stats();
        measured.figures.extend(figures(stats.windows()));
        for (code, errors) in &stats.errors {
            measured.errors.insert(code.clone(), errors.clone());
        }
        measured.endings.extend(stats.endings.clone());
        Ok(())
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // To wait for it would not do inside another runtime.
            runtime.shutdown_background();
        }
    }
}

fn figures(windows: &[Window]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (name, window) in WINDOWS.iter().zip(windows) {
        for (span, what) in [
            (Span::Lag, "due -> send"),
            (Span::Event, "send -> event"),
            (Span::Receipt, "send -> receipt"),
        ] {
            let name = format!("chat {name}: {what}");
            figures.extend(figure::percentiles(&name, &window.latency(span)));
        }
        let name = format!("chat {name}, steady: send -> event");
        figures.extend(figure::percentiles(&name, &window.steady()));
    }
    if let [before, during, ..] = windows {
        let mut ratio = |name: &str, before: Latency, during: Latency| {
            // Of fewer there is no such percentile.
            if before.count.min(during.count) >= 100 {
                let ratio = figure::number(during.p99_us) / figure::number(before.p99_us.max(1));
                figures.push(Figure::new(name, ratio, "times"));
            }
        };
        let event = |window: &Window| window.latency(Span::Event);
        ratio("chat: event p99 during / before", event(before), event(during));
        ratio("chat, steady: event p99 during / before", before.steady(), during.steady());
    }
    figures
}
