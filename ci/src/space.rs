//! Whether the disk has room for what a job makes, asked before it has run for minutes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::lab::target_dir;

/// What the target folder holds in the end: two profiles, documentation, the lab, drive images, in bytes.
const ALL: u64 = 10 << 30;
/// What one more run takes where all has been built before, in bytes.
const AGAIN: u64 = 2 << 30;

/// Fails when the disk that the target folder lies on has too little room.
///
/// # Errors
///
/// What is missing, and where.
pub fn ensure() -> Result<()> {
    let target = target_dir();
    fs::create_dir_all(&target).with_context(|| format!("cannot make {}", target.display()))?;
    let disk = rustix::fs::statvfs(&target)
        .with_context(|| format!("cannot ask how full the disk of {} is", target.display()))?;
    let needed = ALL.saturating_sub(bytes_in(&target)).max(AGAIN);
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < needed {
        bail!(
            "{} of disk is free where {} lies, and {} is needed: make room, or set CARGO_TARGET_DIR",
            gib(free),
            target.display(),
            gib(needed)
        );
    }
    Ok(())
}

/// What the files of a folder take on the disk; what cannot be looked at counts nothing.
fn bytes_in(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => bytes_in(&entry.path()),
            Ok(found) => found.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_in_gib() {
        assert_eq!(gib(ALL), "10.0 GiB");
        assert_eq!(gib(1 << 29), "0.5 GiB");
    }

    #[test]
    fn the_files_below_a_folder_are_summed() {
        let folder = target_dir().join(format!("tmp/space-{}", std::process::id()));
        fs::create_dir_all(folder.join("below")).unwrap();
        assert_eq!(bytes_in(&folder), 0);
        fs::write(folder.join("a"), vec![1; 1 << 20]).unwrap();
        fs::write(folder.join("below/b"), vec![1; 1 << 20]).unwrap();
        fs::File::open(folder.join("below/b")).unwrap().sync_all().unwrap();
        fs::File::open(folder.join("a")).unwrap().sync_all().unwrap();
        assert!((2 << 20..3 << 20).contains(&bytes_in(&folder)));
        fs::remove_dir_all(folder).unwrap();
    }
}
