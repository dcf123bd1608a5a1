//! Whether the machine keeps its pace. A virtual one shares its processors with others, and can lose most of its speed for
//! tens of milliseconds at a time. None of its own counters needs to tell, but every percentile does.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::time::{ClockId, clock_gettime};

/// Does a little work now and then, always the same, and takes down what processor time it needs.
pub struct Probe {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Duration>>,
}

/// How often. A piece of work takes about a hundredth of it.
const EVERY: Duration = Duration::from_millis(5);
/// Steps of a piece of work.
const STEPS: u32 = 40_000;
/// How many times as long as the quickest a piece takes that tells of a slow machine: a cold cache, or another thread on
/// the same core, makes less of it.
const SLOW: u32 = 3;

impl Probe {
    /// Starts a thread.
    ///
    /// # Errors
    /// If the system has none to give.
    pub fn start() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let work = move || {
            let mut took = Vec::new();
            loop {
                took.extend(piece());
                if stopped.load(Relaxed) {
                    return took;
                }
                thread::sleep(EVERY);
            }
        };
        let thread = thread::Builder::new().name("slowdown".into()).spawn(work);
        Ok(Self { stop, thread: thread.context("a thread that watches the machine's speed")? })
    }

    /// Ends it; what has to be known of figures that were measured meanwhile.
    pub fn end(self) -> Option<String> {
        self.stop.store(true, Relaxed);
        note(&self.thread.join().ok()?)
    }
}

/// The processor time that a piece of work takes; `None` where that can't be told.
fn piece() -> Option<Duration> {
    let now = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).ok();
    let begun = now()?;
    let worked = (0..STEPS).fold(1_u32, |n, step| n.wrapping_mul(1_664_525) ^ black_box(step));
    black_box(worked);
    now()?.checked_sub(begun)
}

fn note(took: &[Duration]) -> Option<String> {
    let quickest = *took.iter().min()?;
    let slow = took.iter().filter(|took| **took > quickest * SLOW).count();
    let share =
        100.0 * f64::from(u32::try_from(slow).ok()?) / f64::from(u32::try_from(took.len()).ok()?);
    (share >= 0.5).then(|| {
        format!(
            "for {share:.1} % of the time the machine had less than a third of its speed (others' work, most likely): \
             no percentile beyond {:.0} is the service's",
            100.0 - share
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(slow: usize, of: usize) -> Option<String> {
        let quick = std::iter::repeat_n(Duration::from_micros(50), of - slow);
        note(
            &quick.chain(std::iter::repeat_n(Duration::from_micros(500), slow)).collect::<Vec<_>>(),
        )
    }

    #[test]
    fn a_machine_that_is_slow_for_some_of_the_time_is_told_of() {
        assert!(told(7, 100).is_some_and(|note| note.starts_with("for 7.0 % of the time")));
        assert_eq!(told(0, 100), None);
        assert_eq!(told(1, 1000), None, "that happens");
        assert_eq!(note(&[]), None);
        assert_eq!(note(&[Duration::from_micros(50), Duration::from_micros(140)]), None);
    }

    #[test]
    fn a_probe_works_until_it_is_ended() {
        let probe = Probe::start().unwrap();
        probe.stop.store(true, Relaxed);
        let took = probe.thread.join().unwrap();
        assert!(!took.is_empty() && took.iter().all(|took| !took.is_zero()), "{took:?}");
    }
}
