//! Programs that come in Debian's packages: taken out of them, into the cache, without installing anything.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::wheel::install;

/// A package, in the version that this machine's Debian has.
pub(super) struct Deb {
    pub(super) package: &'static str,
}

impl Deb {
    /// Unpacks the package unless it is there, and gives what `check` finds in its folder.
    pub(super) fn install<T>(&self, check: impl Fn(&Path) -> Result<T>) -> Result<T> {
        install(&format!("debian-{}", self.package), |folder| self.unpack(folder), check)
    }

    fn unpack(&self, folder: &Path) -> Result<()> {
        let downloads = tempfile::tempdir()?;
        let download = || run("apt-get", &["download", "-qq", self.package], downloads.path());
        // A machine that has never asked for Debian's lists has to do that first.
        download().or_else(|_| {
            run("apt-get", &["update", "-qq"], downloads.path())?;
            download()
        })?;
        let file = downloads.path().read_dir()?.next().context("apt-get has downloaded nothing")?;
        let (file, folder) = (file?.path(), folder.as_os_str().to_owned());
        let (file, folder) = (file.display().to_string(), folder.display().to_string());
        run("dpkg-deb", &["--extract", &file, &folder], downloads.path())
    }
}

fn run(program: &str, arguments: &[&str], folder: &Path) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output();
    let Ok(output) = output else { bail!("{program} can't be run: this is no Debian") };
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), said.trim());
    Ok(())
}
