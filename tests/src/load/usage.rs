//! What processes use, from `/proc`.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use nix::unistd::{SysconfVar, sysconf};

/// A process to be measured.
#[derive(Debug, Clone)]
pub struct Watched {
    /// What it is called in the result.
    pub name: String,
    /// Its id.
    pub pid: u32,
    /// Whether its children count as well, those that have ended too.
    pub with_children: bool,
}

/// What a process has used so far, and uses now.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Processor time, to the system's tick (10 ms as a rule).
    pub cpu: Duration,
    /// Resident memory in bytes. What several processes share counts once.
    pub memory: u64,
}

impl Watched {
    /// A process by itself.
    pub fn new(name: impl Into<String>, pid: u32) -> Self {
        Self { name: name.into(), pid, with_children: false }
    }

    /// Measures it.
    ///
    /// # Errors
    /// If it is gone.
    pub fn usage(&self) -> Result<Usage> {
        let Self { name, pid, with_children } = self;
        let own = stat(*pid).with_context(|| format!("{name} (pid {pid}) is gone"))?;
        let mut ticks = own.ticks;
        let mut memory = Memory::default();
        memory.add(status(*pid)?);
        if *with_children {
            ticks += own.ticks_of_ended_children;
            for child in children(*pid)? {
                // It may end while we look; then its time comes with the next look.
                let (Ok(stat), Ok(status)) = (stat(child), status(child)) else { continue };
                ticks += stat.ticks;
                memory.add(status);
            }
        }
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")?;
        let millis = ticks * 1000 / u64::try_from(per_second)?.max(1);
        Ok(Usage { cpu: Duration::from_millis(millis), memory: memory.total() })
    }
}

/// Measures all.
///
/// # Errors
/// If one is gone.
pub fn all(watched: &[Watched]) -> Result<Vec<Usage>> {
    watched.iter().map(Watched::usage).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    parent: u32,
    ticks: u64,
    ticks_of_ended_children: u64,
}

/// Resident memory by kind, in bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Memory {
    own: u64,
    files: u64,
    shared: u64,
}

impl Memory {
    /// Files and shared memory are taken for the same ones in all processes.
    fn add(&mut self, other: Self) {
        self.own += other.own;
        self.files = self.files.max(other.files);
        self.shared = self.shared.max(other.shared);
    }

    fn total(self) -> u64 {
        self.own + self.files + self.shared
    }
}

fn stat(pid: u32) -> Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).context("/proc/…/stat can't be read")
}

fn status(pid: u32) -> Result<Memory> {
    Ok(parse_status(&fs::read_to_string(format!("/proc/{pid}/status"))?))
}

fn children(parent: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        if stat(pid).is_ok_and(|stat| stat.parent == parent) {
            children.push(pid);
        }
    }
    Ok(children)
}

/// See proc_pid_stat(5). The name, in parentheses, may hold anything.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // The first of them is the third field of the line.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Stat {
        parent: u32::try_from(field(4)?).ok()?,
        ticks: field(14)? + field(15)?,
        ticks_of_ended_children: field(16)? + field(17)?,
    })
}

/// See proc_pid_status(5). A kernel without the three parts has the sum at least.
fn parse_status(text: &str) -> Memory {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
    };
    match (field("RssAnon"), field("RssFile"), field("RssShmem")) {
        (Some(own), Some(files), Some(shared)) => Memory { own, files, shared },
        _ => Memory { own: field("VmRSS").unwrap_or(0), files: 0, shared: 0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_stat_is_read_whatever_the_name() {
        let text = "42 (a) b (c)) S 7 42 42 0 -1 4194560 1 2 3 4 100 20 3 4 20 0 1 0 5 6 7";
        assert_eq!(
            parse_stat(text),
            Some(Stat { parent: 7, ticks: 120, ticks_of_ended_children: 7 })
        );
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn shared_memory_counts_once() {
        let text = "VmRSS:\t 600 kB\nRssAnon:\t 100 kB\nRssFile:\t 200 kB\nRssShmem:\t 300 kB\n";
        let mut memory = parse_status(text);
        assert_eq!(memory.total(), 600 * 1024);
        memory.add(Memory { own: 1024, files: 5, shared: 400 * 1024 });
        assert_eq!(memory.total(), (101 + 200 + 400) * 1024);
        assert_eq!(parse_status("VmRSS:\t 8 kB\n").total(), 8 * 1024);
    }

    #[test]
    fn this_process_uses_something_and_more_when_it_works() {
        let own = Watched::new("this", std::process::id());
        let before = own.usage().unwrap();
        assert!(before.memory > 100_000);
        let mut n = 0_u64;
        while own.usage().unwrap().cpu < before.cpu + Duration::from_millis(30) {
            n = (0..100_000).fold(n, |n, i| std::hint::black_box(n ^ i));
        }
    }

    #[test]
    fn a_child_counts_with_its_parent() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(children(std::process::id()).unwrap().contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
