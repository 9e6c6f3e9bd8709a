//! Cargo, driven for what goes into guests: programs, examples and test binaries.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::lab::{target_dir, workspace_dir};
use crate::process;

/// How a binary is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// For tests in a guest: optimised, but checking everything it can, and quickly built.
    Checked,
    /// As users get it, for the demo and for measuring.
    Release,
}

/// A file that cargo built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The name of the target.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// Builds the programs of `package`.
///
/// # Errors
///
/// When cargo fails.
pub fn programs(package: &str, profile: Profile) -> Result<Vec<Built>> {
    build(&["build", "--bins", "--package", package], profile)
}

/// Builds the example `name` of `package`.
///
/// # Errors
///
/// When cargo fails.
pub fn example(package: &str, name: &str, profile: Profile) -> Result<Vec<Built>> {
    build(&["build", "--package", package, "--example", name], profile)
}

/// Builds the test binaries of `package`: one for the library, and one for each file in its `tests`.
///
/// # Errors
///
/// When cargo fails.
pub fn tests(package: &str, profile: Profile) -> Result<Vec<Built>> {
    build(&["test", "--no-run", "--lib", "--tests", "--package", package], profile)
}

/// Installs the peer `NAME@VERSION` below the target folder, without its default features, and returns its programs.
///
/// A peer is run and never linked with.
///
/// # Errors
///
/// When it cannot be had.
pub fn peer(crate_version: &str) -> Result<Vec<Built>> {
    let root = target_dir().join("peers").join(crate_version);
    if !root.join("bin").is_dir() {
        eprintln!("installing the peer {crate_version} (minutes, once)");
        let mut cargo = command();
        cargo.args(["install", "--quiet", "--locked", "--no-default-features", "--root"]);
        process::quiet(cargo.arg(&root).arg(crate_version))?;
    }
    let mut programs = Vec::new();
    for file in std::fs::read_dir(root.join("bin"))? {
        let file = file?;
        programs.push(Built {
            name: file.file_name().to_string_lossy().into_owned(),
            path: file.path(),
        });
    }
    Ok(programs)
}

/// Runs cargo and collects the executables it names.
fn build(args: &[&str], profile: Profile) -> Result<Vec<Built>> {
    let mut cargo = command();
    cargo.args(args).args(["--quiet", "--message-format=json-render-diagnostics"]);
    match profile {
        Profile::Release => cargo.arg("--release"),
        Profile::Checked => cargo.args(["--profile", "checked"]).args(
            [
                "inherits='release'",
                "lto=false",
                "codegen-units=16",
                "incremental=true",
                "opt-level=2",
                "debug-assertions=true",
                "overflow-checks=true",
            ]
            .iter()
            .flat_map(|set| ["--config".to_string(), format!("profile.checked.{set}")]),
        ),
    };
    let messages = process::output(&mut cargo)?;
    let built = executables(&messages)?;
    if built.is_empty() {
        bail!("cargo {} built nothing that runs", args.join(" "));
    }
    Ok(built)
}

/// Cargo as the one that runs us, in the workspace.
pub fn command() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace_dir());
    cargo
}

/// The executables among cargo's JSON messages.
fn executables(messages: &str) -> Result<Vec<Built>> {
    let mut built = Vec::new();
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line).context("cargo's messages")?;
        if let (Some(path), Some(name)) =
            (message["executable"].as_str(), message["target"]["name"].as_str())
        {
            built.push(Built { name: name.to_string(), path: path.into() });
        }
    }
    Ok(built)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_with_an_executable_count() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"dep"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"aioctl"},"executable":"/t/aioctl"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(
            executables(messages).unwrap(),
            [Built { name: "aioctl".into(), path: "/t/aioctl".into() }]
        );
        assert!(executables("not json").is_err());
    }
}
