//! Linux can schedule each terminal session's processes as one (sched(7), "The autogroup feature"). PostgreSQL makes a
//! session for each of its own.

use std::fs;

/// What has to be known of figures that are measured here, if the kernel does that: beside a load generator that needs a
/// whole processor, PostgreSQL's processes were seen to wait half a second for theirs. Containers have groups of their own
/// instead.
pub fn note() -> Option<String> {
    // Not every kernel has it.
    note_on(&fs::read_to_string("/proc/sys/kernel/sched_autogroup_enabled").ok()?)
}

fn note_on(setting: &str) -> Option<String> {
    (setting.trim() != "0").then(|| {
        "the kernel lets PostgreSQL wait for a processor in a storm: `sysctl kernel.sched_autogroup_enabled=0` (as root) \
         before anything is measured"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_groups_sessions_is_told_of() {
        assert!(note_on("1\n").is_some_and(|note| note.contains("sched_autogroup_enabled=0")));
        assert_eq!(note_on("0\n"), None);
    }
}
