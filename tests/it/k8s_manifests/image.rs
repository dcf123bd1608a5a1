//! The image can be built: what the Dockerfile keeps of the sources is a workspace that Cargo takes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use herald_tests::program::workspace;
use tokio::process::Command;

/// The files that `.dockerignore` lets in. It names whole folders and single files, and leaves out every `target`.
fn context_of_the_build() -> Result<Vec<PathBuf>> {
    let rules = fs::read_to_string(workspace().join(".dockerignore"))?;
    let mut files = Vec::new();
    for name in rules.lines().filter_map(|line| line.strip_prefix('!')) {
        add(Path::new(name), &mut files)?;
    }
    Ok(files)
}

fn add(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let here = workspace().join(path);
    if here.is_file() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(&here).with_context(|| here.display().to_string())? {
        let name = entry?.file_name();
        if name != "target" {
            add(&path.join(name), files)?;
        }
    }
    Ok(())
}

/// The shell script of a stage's only RUN.
fn script(dockerfile: &str, stage: &str) -> Result<String> {
    let from = format!("FROM toolchain AS {stage}\n");
    let (_, rest) = dockerfile.split_once(&from).with_context(|| format!("no stage {stage}"))?;
    let stage = rest.split("\nFROM ").next().unwrap_or_default();
    let (_, run) = stage.split_once("\nRUN ").context("it runs nothing")?;
    Ok(run.replace("\\\n", " "))
}

#[tokio::test]
async fn what_the_image_is_built_from_is_a_workspace() -> Result<()> {
    let dockerfile = fs::read_to_string(workspace().join("Dockerfile"))?;
    let source = tempfile::tempdir()?;
    for file in context_of_the_build()? {
        let copy = source.path().join(&file);
        fs::create_dir_all(copy.parent().context("no folder")?)?;
        fs::copy(workspace().join(file), copy)?;
    }
    let script = script(&dockerfile, "recipe")?;
    // What `cargo build` does first. (`cargo metadata` minds no target whose file is missing.) For this machine alone: of
    // the others' dependencies nothing may be here.
    let cargo = "cargo fetch --locked --offline --target \"$(rustc -vV | sed -n 's/^host: //p')\"";
    for (what, command) in [("the recipe", script.as_str()), ("cargo", cargo)] {
        let output = Command::new("sh")
            .args(["-euc", command])
            .current_dir(source.path())
            .env_remove("CARGO_MANIFEST_DIR")
            .output()
            .await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{what}: {said}");
    }
    Ok(())
}
