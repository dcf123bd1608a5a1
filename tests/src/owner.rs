//! Whom servers run as that refuse to run as root.

use std::{os::unix::process::CommandExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result};
use nix::unistd::{User, geteuid};

/// An unprivileged user of this machine.
#[derive(Debug, Clone)]
pub struct Owner {
    /// Its name, for messages.
    pub name: String,
    /// Its user id.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
}

impl Owner {
    /// The user to become if this process is root (`postgres` if there is one, else `nobody`); `None` if it is not.
    ///
    /// # Errors
    /// If the machine has neither user.
    pub fn instead_of_root() -> Result<Option<Self>> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        for name in ["postgres", "nobody"] {
            if let Some(user) =
                User::from_name(name).with_context(|| format!("looking up the user {name}"))?
            {
                return Ok(Some(Self {
                    name: user.name,
                    uid: user.uid.as_raw(),
                    gid: user.gid.as_raw(),
                }));
            }
        }
        anyhow::bail!(
            "PostgreSQL refuses to run as root, and there is neither a user `postgres` nor `nobody`"
        )
    }

    /// Makes the command run as this user.
    pub fn run_as<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.uid(self.uid).gid(self.gid)
    }

    /// Gives the file or folder to this user.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn take(&self, path: &Path) -> Result<()> {
        std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))
            .with_context(|| format!("giving {} to {}", path.display(), self.name))
    }
}
