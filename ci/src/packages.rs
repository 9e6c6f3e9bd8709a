//! The Debian packages that the jobs need on the host: installed when we may, named in one line when not.

use std::process::Command;

use anyhow::{Result, bail};

use crate::process;

/// Building the workspace: libublk generates its bindings with libclang.
pub const BUILD: &[&str] = &["gcc", "libc6-dev", "libclang-dev", "pkg-config"];

/// Booting guests: QEMU, the root file system and the images.
pub const GUEST: &[&str] = &[
    "qemu-system-x86",
    "mmdebstrap",
    "debian-archive-keyring",
    "e2fsprogs",
    "kmod",
    "util-linux",
    "binutils",
    "tar",
];

/// Running programs of packages that are unpacked and not installed, and watching their system calls.
pub const PROGRAMS: &[&str] = &["strace", "debian-archive-keyring", "util-linux", "procps"];

/// Counting instructions, and watching over memory.
pub const COUNT: &[&str] = &["valgrind"];

/// Counting instructions and measuring peers.
pub const BENCH: &[&str] = &["valgrind", "fio"];

/// Installs what is missing of `wanted`.
///
/// # Errors
///
/// When something is missing and this user may not install it, or the installation fails. The error is one line that
/// says what to run.
pub fn ensure(wanted: &[&str]) -> Result<()> {
    let missing = missing(wanted)?;
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if process::output(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!("needs packages; as root run: apt-get install --no-install-recommends {list}");
    }
    eprintln!("installing {list}");
    let mut update = Command::new("apt-get");
    process::quiet(update.args(["-q", "update"]))?;
    let mut install = Command::new("apt-get");
    install
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-q", "install", "-y", "--no-install-recommends"])
        .args(&missing);
    process::quiet(&mut install)
}

/// Those of `wanted` that dpkg does not have installed.
///
/// # Errors
///
/// When this is no Debian machine.
pub fn missing<'a>(wanted: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${Package} ${db:Status-Status}\n", "*"]);
    let Ok(known) = process::output(&mut query) else {
        bail!(
            "not a Debian machine (dpkg-query does not run); it needs what these packages hold: {}",
            wanted.join(" ")
        );
    };
    Ok(not_installed(&known, wanted))
}

/// Filters `wanted` by dpkg's `package status` lines.
fn not_installed<'a>(known: &str, wanted: &[&'a str]) -> Vec<&'a str> {
    wanted
        .iter()
        .copied()
        .filter(|want| !known.lines().any(|line| line.split_once(' ') == Some((want, "installed"))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_installed_is_asked_for() {
        let known = "kmod installed\nfio config-files\ngcc-12 installed\n";
        assert_eq!(not_installed(known, &["kmod", "fio", "gcc"]), ["fio", "gcc"]);
    }
}
