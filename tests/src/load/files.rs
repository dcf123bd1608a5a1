//! A connection is a file, here and in the gateways, which inherit the limit.

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Files that are open besides connections.
const SPARE: u64 = 500;

/// Raises the limit of open files as far as it goes.
///
/// # Errors
/// If that is not enough for so many connections.
pub fn allow(connections: u32) -> Result<()> {
    let needed = u64::from(connections) + SPARE;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // Beyond it only for who may.
    let limit = if needed > most && setrlimit(Resource::RLIMIT_NOFILE, needed, needed).is_ok() {
        needed
    } else {
        most
    };
    setrlimit(Resource::RLIMIT_NOFILE, limit, limit).context("raising the limit of open files")?;
    ensure!(
        limit >= needed,
        "{connections} connections need {needed} open files here, and no more than {limit} are allowed: raise the hard \
         limit (`ulimit -Hn {needed}` as root, `--ulimit nofile={needed}` for a container)"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_had_is_told_with_how_much_is_needed() {
        allow(0).unwrap();
        // More than Linux ever allows a process.
        let error = allow(u32::MAX).unwrap_err().to_string();
        assert!(error.contains("4294967795 open files"), "{error}");
    }
}
