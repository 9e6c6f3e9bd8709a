//! What the kernel says about a block device's queue (Documentation/ABI/stable/sysfs-block).

use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Limits and abilities of a block device. What the kernel does not tell is assumed to be the worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) transfer_max_bytes: u32,
    /// It discards by `FALLOC_FL_PUNCH_HOLE`, which for a block device is a write of zeroes that may
    /// unmap and never falls back to writing (`blkdev_fallocate` in block/fops.c).
    pub(super) discards: bool,
    pub(super) volatile_cache: bool,
    pub(super) fua: bool,
    pub(super) polls: bool,
}

impl Limits {
    /// Of the device with this number (`st_rdev`), under the root of a sysfs.
    pub(super) fn of_device(sysfs: &Path, number: u64) -> Self {
        let (major, minor) = (libc::major(number), libc::minor(number));
        let device = sysfs.join(format!("dev/block/{major}:{minor}"));
        // A partition has no queue of its own; its directory lies in its disk's. The link must be
        // resolved before `..` can be.
        let device = device.canonicalize().unwrap_or(device);
        let whole = device.join("queue");
        let queue = match (whole.is_dir(), device.parent()) {
            (false, Some(disk)) => disk.join("queue"),
            _ => whole,
        };
        Self::of_queue(&queue)
    }

    fn of_queue(queue: &Path) -> Self {
        let flag = |name| attribute::<u64>(queue.join(name)).is_some_and(|value| value != 0);
        let transfer_max_kib = attribute::<u32>(queue.join("max_sectors_kb")).unwrap_or(0);
        let write_cache = attribute::<String>(queue.join("write_cache"));
        Self {
            transfer_max_bytes: transfer_max_kib.saturating_mul(1024),
            discards: flag("discard_max_bytes") && flag("write_zeroes_max_bytes"),
            volatile_cache: write_cache.as_deref() != Some("write through"),
            fua: flag("fua"),
            polls: flag("io_poll"),
        }
    }
}

fn attribute<T: FromStr>(path: PathBuf) -> Option<T> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uring::tests::Scratch;

    fn sysfs(attributes: &[(&str, &str)], at: &str) -> (Scratch, PathBuf) {
        let scratch = Scratch::new();
        let root = scratch.path("sys");
        let queue = root.join("devices/disk/queue");
        std::fs::create_dir_all(&queue).unwrap();
        std::fs::create_dir_all(root.join("devices/disk/part1")).unwrap();
        std::fs::create_dir_all(root.join("dev/block")).unwrap();
        std::os::unix::fs::symlink(format!("../../devices/{at}"), root.join("dev/block/8:1"))
            .unwrap();
        for (name, value) in attributes {
            std::fs::write(queue.join(name), format!("{value}\n")).unwrap();
        }
        (scratch, root)
    }

    const DISK: [(&str, &str); 6] = [
        ("max_sectors_kb", "512"),
        ("discard_max_bytes", "2147450880"),
        ("write_zeroes_max_bytes", "65536"),
        ("write_cache", "write through"),
        ("fua", "1"),
        ("io_poll", "1"),
    ];

    #[test]
    fn a_partition_has_the_limits_of_its_disk() {
        let expected = Limits {
            transfer_max_bytes: 512 << 10,
            discards: true,
            volatile_cache: false,
            fua: true,
            polls: true,
        };
        for at in ["disk", "disk/part1"] {
            let (_scratch, root) = sysfs(&DISK, at);
            assert_eq!(Limits::of_device(&root, libc::makedev(8, 1)), expected, "{at}");
        }
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_assumed_to_be_the_worse() {
        let (_scratch, root) = sysfs(&[("io_poll", "perhaps")], "disk");
        let expected = Limits {
            transfer_max_bytes: 0,
            discards: false,
            volatile_cache: true,
            fua: false,
            polls: false,
        };
        assert_eq!(Limits::of_device(&root, libc::makedev(8, 1)), expected);
        assert_eq!(Limits::of_device(&root, libc::makedev(9, 9)), expected);
    }
}
