//! The guest's root file system, and the small images that carry files into a guest.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::Lab;
use super::apt::Mirrors;
use super::kernels::{Kernel, Series};
use crate::process;

/// The Debian release inside the guest.
const SUITE: &str = "trixie";

/// What is in it beside the essential packages.
const PACKAGES: &[&str] = &[
    "btrfs-progs",
    "e2fsprogs",
    "fio",
    "iproute2",
    "jq",
    "kmod",
    "nvme-cli",
    "pciutils",
    "procps",
    "psmisc",
    "python3-minimal",
    "strace",
    "stress-ng",
    "util-linux",
    "xfsprogs",
];

/// Files that only take room.
const EXCLUDED: &[&str] = &["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"];

/// The first stage of the guest's init: all it does is hand over to the images.
const STAGE_1: &str = include_str!("../../guest/stage1.sh");

/// The size of the root disk; sparse, so only what is written counts.
const ROOT_SIZE: u64 = 4 << 30;

/// Where the partition starts.
const PARTITION_OFFSET: u64 = 1 << 20;

/// The signature in the partition table. The kernel finds its root by it, whatever number the drive gets.
const DISK_SIGNATURE: u32 = 0x7561_696f;

/// What the kernel is told to mount as root.
pub fn root_parameter() -> String {
    format!("root=PARTUUID={DISK_SIGNATURE:08x}-01")
}

/// Returns the root disk, making it when the lab has none.
///
/// # Errors
///
/// When it cannot be made.
pub fn root_disk(lab: &Lab) -> Result<PathBuf> {
    let mut kernels = Vec::new();
    for series in Series::ALL {
        kernels.push(Kernel::get(lab, series)?);
    }
    let releases: Vec<&str> = kernels.iter().map(|k| k.release.as_str()).collect();
    let made_from = format!("{SUITE} {PACKAGES:?} {EXCLUDED:?} {STAGE_1} {releases:?} {ROOT_SIZE}");
    let dir = lab.entry("root", &made_from, |dir| {
        let tree = dir.join("tree");
        debootstrap(dir, &tree)?;
        for kernel in &kernels {
            let to = tree.join("usr/lib/modules").join(&kernel.release);
            fs::create_dir_all(to.parent().context("no parent")?)?;
            process::quiet(Command::new("cp").arg("-a").arg(&kernel.modules).arg(to))?;
        }
        let init = tree.join("sbin/uaio-stage1");
        fs::write(&init, STAGE_1)?;
        process::quiet(Command::new("chmod").arg("755").arg(&init))?;
        fs::create_dir_all(tree.join("uaio"))?;
        eprintln!("making the guest's root disk");
        partitioned(&tree, &dir.join("root.img"))?;
        fs::remove_dir_all(&tree)?;
        Ok(())
    })?;
    Ok(dir.join("root.img"))
}

/// Bootstraps Debian into the folder `tree`.
fn debootstrap(dir: &Path, tree: &Path) -> Result<()> {
    eprintln!("bootstrapping the guest's {SUITE} (about a minute)");
    let mirror = Mirrors::of_this_machine()?.line(SUITE);
    let tar = dir.join("root.tar");
    let mut bootstrap = Command::new("mmdebstrap");
    bootstrap.args(["--quiet", "--variant=apt", "--architectures=amd64"]);
    bootstrap.arg(format!("--include={}", PACKAGES.join(",")));
    for path in EXCLUDED {
        bootstrap.arg(format!("--dpkgopt=path-exclude={path}"));
    }
    bootstrap.args([SUITE.as_ref(), tar.as_os_str()]).arg(mirror);
    process::quiet(&mut bootstrap)?;
    fs::create_dir_all(tree)?;
    let mut unpack = Command::new("tar");
    // Device nodes come from devtmpfs, and only root could make them here.
    unpack.args(["--extract", "--exclude=./dev/*", "--file"]);
    process::quiet(unpack.arg(&tar).arg("--directory").arg(tree))?;
    fs::remove_file(&tar)?;
    // The guest has no use for package lists.
    process::quiet(
        Command::new("rm")
            .arg("-rf")
            .arg(tree.join("var/lib/apt/lists"))
            .arg(tree.join("var/cache/apt")),
    )
}

/// Makes a disk image at `image` with one partition holding an ext4 of the folder `tree`.
fn partitioned(tree: &Path, image: &Path) -> Result<()> {
    let mut file = sparse(image, ROOT_SIZE)?;
    file.seek(SeekFrom::Start(440))?;
    file.write_all(&DISK_SIGNATURE.to_le_bytes())?;
    let first = u32::try_from(PARTITION_OFFSET / 512)?;
    let count = u32::try_from((ROOT_SIZE - PARTITION_OFFSET) / 512)?;
    file.seek(SeekFrom::Start(446))?;
    // One entry: inactive, no cylinders, type Linux, first sector and count of sectors; at the end the table's mark.
    let mut entry = [0, 0, 0, 0, 0x83, 0, 0, 0].to_vec();
    entry.extend(first.to_le_bytes());
    entry.extend(count.to_le_bytes());
    file.write_all(&entry)?;
    file.seek(SeekFrom::Start(510))?;
    file.write_all(&[0x55, 0xaa])?;
    drop(file);
    let kib = (ROOT_SIZE - PARTITION_OFFSET) / 1024;
    let mut mke2fs = mke2fs(tree);
    mke2fs.arg("-E").arg(format!("offset={PARTITION_OFFSET},root_owner=0:0,lazy_itable_init=1"));
    process::quiet(mke2fs.arg(image).arg(format!("{kib}k")))
}

/// Makes an image at `image` that is one ext4 of the folder `tree` with `spare` bytes of room left.
///
/// # Errors
///
/// When it cannot be made.
pub fn plain(tree: &Path, image: &Path, spare: u64) -> Result<()> {
    let used = process::output(Command::new("du").arg("-sk").arg(tree))?;
    let used_kib: u64 = used.split_whitespace().next().unwrap_or("0").parse()?;
    let kib = used_kib + used_kib / 8 + 4096 + spare / 1024;
    sparse(image, kib * 1024)?;
    let mut mke2fs = mke2fs(tree);
    mke2fs.args(["-E", "root_owner=0:0", "-O", "^has_journal"]);
    process::quiet(mke2fs.arg(image).arg(format!("{kib}k")))
}

/// A sparse file of `len` bytes.
///
/// # Errors
///
/// Those of the file system.
pub fn sparse(path: &Path, len: u64) -> Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .with_context(|| format!("cannot make {}", path.display()))?;
    file.set_len(len)?;
    Ok(file)
}

/// An mke2fs that fills the file system from `tree`.
fn mke2fs(tree: &Path) -> Command {
    let mut command = Command::new("mke2fs");
    // Off the PATH of users who are not root.
    if Path::new("/sbin/mke2fs").exists() {
        command = Command::new("/sbin/mke2fs");
    }
    command.args(["-q", "-F", "-t", "ext4", "-m", "0", "-d"]).arg(tree);
    command
}
