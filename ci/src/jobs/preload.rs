//! `cargo ci preload`: links libuaio_preload.so, and the folder that stands in for libaio.
//!
//! The library's symbols have versions, which rustc gives to none that it links itself; so cargo builds an archive, and
//! the C compiler links it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::lab::{target_dir, workspace_dir};
use crate::{cargo, process};

/// Where a program looks for libaio: Debian 13 and Ubuntu 24.04 have the second name.
const LIBAIO: &[&str] = &["libaio.so.1", "libaio.so.1t64"];

/// Builds libuaio_preload.so, for LD_PRELOAD, and target/preload/libaio, for LD_LIBRARY_PATH, in place of libaio.
#[derive(Debug, Args)]
pub struct Options {
    /// Not optimised, with what a debugger needs; to be found in target/preload-debug
    #[arg(long)]
    debug: bool,
}

/// Runs the job.
///
/// # Errors
///
/// When it cannot be built.
pub fn run(options: &Options) -> Result<i32> {
    let library = build(options.debug)?;
    println!("{}", library.display());
    Ok(0)
}

/// Builds and links it, and says where the library is.
///
/// # Errors
///
/// When cargo or the C compiler fails.
pub fn build(debug: bool) -> Result<PathBuf> {
    let mut cargo = cargo::command();
    cargo.args(["rustc", "--quiet", "--package=uaio-preload", "--lib", "--crate-type=staticlib"]);
    if !debug {
        cargo.arg("--release");
    }
    process::quiet(&mut cargo)?;
    let (profile, folder) = if debug { ("debug", "preload-debug") } else { ("release", "preload") };
    let archive = target_dir().join(profile).join("libuaio_preload.a");
    let folder = target_dir().join(folder);
    let drop_in = folder.join("libaio");
    std::fs::create_dir_all(&drop_in).with_context(|| drop_in.display().to_string())?;
    let library = folder.join("libuaio_preload.so");
    link(&archive, &library, "libuaio_preload.so")?;
    for name in LIBAIO {
        link(&archive, &drop_in.join(name), name)?;
    }
    Ok(library)
}

/// Links the archive as the library `soname`.
fn link(archive: &Path, library: &Path, soname: &str) -> Result<()> {
    let script = workspace_dir().join("aio-core/preload/link.sh");
    process::quiet(Command::new("sh").arg(script).arg(archive).arg(library).arg(soname))
}
