//! Herald's own programs, built by cargo.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::{process::Command, sync::OnceCell};

/// Variables that cargo sets for what it runs. Build scripts watch some of them, so a cargo that inherits them
/// would build their packages again each time.
const OF_THE_OUTER_CARGO: [&str; 5] =
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_PACKAGE"];

static DEBUG: OnceCell<Binaries> = OnceCell::const_new();
static RELEASE: OnceCell<Binaries> = OnceCell::const_new();

/// Where the programs lie.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// `herald-gateway`.
    pub gateway: PathBuf,
    /// `herald-worker`.
    pub worker: PathBuf,
}

impl Binaries {
    /// Builds the workspace's programs with cargo, once a process and profile; what cargo says goes to stderr.
    ///
    /// # Errors
    /// If they don't build.
    pub async fn build(release: bool) -> Result<Self> {
        let cell = if release { &RELEASE } else { &DEBUG };
        cell.get_or_try_init(|| run_cargo(release)).await.cloned()
    }
}

/// The root of the workspace.
pub fn workspace() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

async fn run_cargo(release: bool) -> Result<Binaries> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--workspace", "--bins", "--message-format=json-render-diagnostics"])
        .args(release.then_some("--release"))
        .current_dir(workspace())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    for (name, _) in std::env::vars_os() {
        if OF_THE_OUTER_CARGO.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    let cargo = command.spawn().context("running cargo")?;
    let output = cargo.wait_with_output().await?;
    ensure!(
        output.status.success(),
        "cargo build failed ({}): see what it said above",
        output.status
    );
    let messages = String::from_utf8_lossy(&output.stdout);
    let executable = |name: &str| {
        let mut messages =
            messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        messages
            .find_map(|message| {
                let is_it = message.pointer("/target/name")?.as_str()? == name;
                is_it.then(|| message.get("executable")?.as_str().map(PathBuf::from)).flatten()
            })
            .with_context(|| format!("cargo built no program {name}"))
    };
    Ok(Binaries { gateway: executable("herald-gateway")?, worker: executable("herald-worker")? })
}
