//! Notices when a processor does not keep its pace: does a little work on each now and then, always the same, and looks
//! what processor time it needs.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::time::{ClockId, clock_gettime};

use super::slowdown::Slowdowns;

/// How often. A piece of work takes less than a hundredth of it.
const EVERY: Duration = Duration::from_millis(5);
/// Steps of a piece of work.
const STEPS: u32 = 20_000;
/// How many times as long as the quickest a piece takes that tells of a slow machine: a cold cache, or another thread on
/// the same core, makes less of it.
const SLOW: u32 = 3;

/// A thread for each processor; they end with it.
#[derive(Debug)]
pub struct Probe {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Probe {
    /// Starts the threads, which tell of slow times.
    ///
    /// # Errors
    /// If the system has none to give.
    pub fn start(slowdowns: &Slowdowns) -> Result<Self> {
        let mut probe = Self { stop: Arc::default(), threads: Vec::new() };
        for pin in pin::each() {
            let (stop, slowdowns) = (probe.stop.clone(), slowdowns.clone());
            let work = move || {
                pin();
                watch(&stop, &slowdowns);
            };
            let thread = thread::Builder::new().name("probe".into()).spawn(work);
            probe.threads.push(thread.context("a thread that watches the machine's speed")?);
        }
        Ok(probe)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        // One that has panicked has told so.
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn watch(stop: &AtomicBool, slowdowns: &Slowdowns) {
    let mut quickest = Duration::MAX;
    let mut last = Instant::now();
    while !stop.load(Relaxed) {
        let begun = Instant::now();
        let Some(took) = piece() else { return };
        quickest = quickest.min(took);
        // Once may be an interrupt: the system's own work counts as the thread's.
        if took > quickest * SLOW && piece().is_some_and(|again| again > quickest * SLOW) {
            // The thread may have waited for its processor before that, which is no one's fault.
            let from = last.max(begun.checked_sub(EVERY).unwrap_or(begun));
            slowdowns.slow(from, Instant::now());
        } else {
            slowdowns.kept_pace();
        }
        last = Instant::now();
        thread::sleep(EVERY);
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

#[cfg(target_os = "linux")]
mod pin {
    use nix::{
        sched::{CpuSet, sched_getaffinity, sched_setaffinity},
        unistd::Pid,
    };

    #[cfg(test)]
    pub(super) fn count() -> usize {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
        let ends = |range: &str| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            [first, last].map(|end| end.parse::<usize>().unwrap())
        };
        list.trim().split(',').map(ends).map(|[first, last]| last - first + 1).sum()
    }

    /// For each processor what keeps a thread on it.
    pub(super) fn each() -> Vec<impl FnOnce() + Send> {
        let this_thread = Pid::from_raw(0);
        let allowed = sched_getaffinity(this_thread).unwrap_or_default();
        let is_allowed = |processor: &usize| allowed.is_set(*processor).unwrap_or(false);
        let pin = |processor| {
            move || {
                let mut set = CpuSet::new();
                // Unless it is kept there, it tells of one processor or another.
                let _pinned =
                    set.set(processor).and_then(|()| sched_setaffinity(this_thread, &set));
            }
        };
        (0..CpuSet::count()).filter(is_allowed).map(pin).collect()
    }
}

#[cfg(not(target_os = "linux"))]
mod pin {
    #[cfg(test)]
    pub(super) fn count() -> usize {
        1
    }

    /// One thread, wherever it runs.
    pub(super) fn each() -> Vec<impl FnOnce() + Send> {
        vec![|| ()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_processor_is_watched_until_the_probe_is_gone() {
        let probe = Probe::start(&Slowdowns::default()).unwrap();
        let (threads, stop) = (probe.threads.len(), probe.stop.clone());
        assert_eq!(threads, pin::count());
        assert_eq!(Arc::strong_count(&stop), threads + 2);
        drop(probe);
        assert_eq!(Arc::strong_count(&stop), 1, "no thread is left");
        assert!(piece().is_some_and(|took| !took.is_zero()));
    }
}
