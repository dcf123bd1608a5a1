//! What every process tells about itself, by the names that Prometheus' own clients use, and its tokio runtime.
//! What the system does not tell is left out.

use std::{fs, path::Path};

use nix::{
    sys::resource::{Resource, UsageWho, getrlimit, getrusage},
    unistd::{SysconfVar, sysconf},
};
use tokio::runtime::Handle;

use super::{Kind, Registry};
use crate::telemetry::dropped_spans;

#[expect(clippy::cast_precision_loss, reason = "Prometheus' numbers are f64")]
/// Registers the process, its build and the runtime that this is called in.
pub fn register(registry: &mut Registry, program: &'static str) {
    registry.read_each(
        "herald_build_info",
        "The program and its version.",
        Kind::Gauge,
        move |sample| {
            let version = env!("CARGO_PKG_VERSION").to_owned();
            sample(vec![("program", program.to_owned()), ("version", version)], 1.0);
        },
    );
    optional(registry, "process_cpu_seconds", "CPU time used.", Kind::Counter, cpu_seconds);
    optional(
        registry,
        "process_resident_memory_bytes",
        "Memory that is in RAM.",
        Kind::Gauge,
        || memory_bytes(1),
    );
    optional(
        registry,
        "process_virtual_memory_bytes",
        "Memory that is mapped.",
        Kind::Gauge,
        || memory_bytes(0),
    );
    optional(registry, "process_open_fds", "Open file descriptors.", Kind::Gauge, open_fds);
    optional(
        registry,
        "process_max_fds",
        "File descriptors that may be open.",
        Kind::Gauge,
        max_fds,
    );
    let started = start_seconds();
    optional(
        registry,
        "process_start_time_seconds",
        "When the process began, in seconds since the Unix epoch.",
        Kind::Gauge,
        move || started,
    );
    registry.read(
        "herald_dropped_spans",
        "Spans that were not sent: there were too many, or nobody took them.",
        Kind::Counter,
        || dropped_spans() as f64,
    );
    runtime(registry, &Handle::current());
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus' numbers are f64")]
fn runtime(registry: &mut Registry, handle: &Handle) {
    let metrics = handle.metrics();
    let workers = metrics.num_workers();
    registry.read("tokio_workers", "Threads that run tasks.", Kind::Gauge, move || workers as f64);
    let asked = metrics.clone();
    registry.read("tokio_alive_tasks", "Tasks that have not ended.", Kind::Gauge, move || {
        asked.num_alive_tasks() as f64
    });
    let asked = metrics.clone();
    registry.read(
        "tokio_global_queue_depth",
        "Tasks that wait for a thread to take them.",
        Kind::Gauge,
        move || asked.global_queue_depth() as f64,
    );
    registry.read(
        "tokio_workers_busy_seconds",
        "Time that threads have spent running tasks, all together.",
        Kind::Counter,
        move || {
            let busy = |worker| metrics.worker_total_busy_duration(worker).as_secs_f64();
            (0..workers).map(busy).sum()
        },
    );
}

fn optional(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
    kind: Kind,
    read: impl Fn() -> Option<f64> + Send + Sync + 'static,
) {
    registry.read_each(name, help, kind, move |sample| {
        if let Some(value) = read() {
            sample(vec![], value);
        }
    });
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus' numbers are f64")]
fn cpu_seconds() -> Option<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Some(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// A field of `/proc/self/statm`, which counts pages.
#[expect(clippy::cast_precision_loss, reason = "Prometheus' numbers are f64")]
fn memory_bytes(field: usize) -> Option<f64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: f64 = statm.split(' ').nth(field)?.parse().ok()?;
    Some(pages * sysconf(SysconfVar::PAGE_SIZE).ok()?? as f64)
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus' numbers are f64")]
fn open_fds() -> Option<f64> {
    // The folder itself is open while it is read.
    Some(fs::read_dir(Path::new("/proc/self/fd")).ok()?.count().saturating_sub(1) as f64)
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus' numbers are f64")]
fn max_fds() -> Option<f64> {
    Some(getrlimit(Resource::RLIMIT_NOFILE).ok()?.0 as f64)
}

/// From `/proc/self/stat` (field 22, in ticks after the boot) and `/proc/stat` (`btime`).
#[expect(clippy::cast_precision_loss, reason = "Prometheus' numbers are f64")]
fn start_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field, the program's name, may hold spaces and brackets.
    let (_, after_name) = stat.rsplit_once(") ")?;
    let ticks: f64 = after_name.split(' ').nth(19)?.parse().ok()?;
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
    Some(boot + ticks / sysconf(SysconfVar::CLK_TCK).ok()?? as f64)
}
