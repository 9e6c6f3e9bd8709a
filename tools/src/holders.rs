//! Who uses a block device or a file: mounts, swap, stacked devices, processes.
//!
//! Only /proc and /sys are read. Nothing is opened on the device asked about, and no inode is made to
//! fetch its attributes from a server, so this cannot wait for the device. It is what a person wants
//! to be told, and not a lock: the kernel's exclusive open (O_EXCL) and the lock on a file decide.
//! Two kinds of user leave no trace here: a mount namespace that no process is in, and a file that is
//! only registered with an io_uring.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags};

use crate::system::System;

/// The number of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DeviceNumber {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl std::str::FromStr for DeviceNumber {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.trim().split_once(':').ok_or(())?;
        Ok(Self { major: major.parse().or(Err(()))?, minor: minor.parse().or(Err(()))? })
    }
}

/// One user of a device or a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Holder {
    /// A filesystem on it is mounted.
    Mount {
        /// What of it: `ublkb0p1`.
        device: String,
        /// Where, in the mount namespace that it was found in.
        at: String,
    },
    /// The kernel swaps to it.
    Swap {
        /// What of it.
        device: String,
    },
    /// A block device stands on it: dm, md, bcache, a loop device.
    Stacked {
        /// What of it.
        device: String,
        /// The device on top.
        by: String,
    },
    /// A process has it open.
    Process {
        /// What of it.
        device: String,
        /// The process.
        pid: u32,
        /// Its name.
        comm: String,
    },
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount { device, at } => write!(f, "{device} is mounted on {at}"),
            Self::Swap { device } => write!(f, "{device} is swap space"),
            Self::Stacked { device, by } => write!(f, "{device} is held by {by}"),
            Self::Process { device, pid, comm } => {
                write!(f, "{device} is open in process {pid} ({comm})")
            }
        }
    }
}

/// The holders as one line; the first few, then how many more.
pub(crate) fn listed(holders: &[Holder]) -> String {
    const SHOWN: usize = 4;
    let mut text = holders.iter().take(SHOWN).map(Holder::to_string).collect::<Vec<_>>().join(", ");
    if holders.len() > SHOWN {
        text.push_str(&format!(" and {} more", holders.len() - SHOWN));
    }
    text
}

/// A block device and its partitions: names and numbers.
#[derive(Debug)]
struct Disk {
    parts: Vec<(String, DeviceNumber)>,
    /// Where sysfs has each of the parts.
    directories: Vec<String>,
}

impl Disk {
    fn find(system: &System, name: &str) -> Self {
        let mut disk = Self { parts: Vec::new(), directories: Vec::new() };
        // A partition is a directory of its disk and has, in class/block, a link of its own.
        let own = format!("sys/class/block/{name}");
        let inner = system
            .names(&own)
            .into_iter()
            .filter(|part| system.path(&own).join(part).join("partition").exists());
        let inner: Vec<String> = inner.map(|part| format!("{own}/{part}")).collect();
        for directory in std::iter::once(own.clone()).chain(inner) {
            let number = system.read(format!("{directory}/dev")).and_then(|dev| dev.parse().ok());
            let name = Path::new(&directory).file_name().unwrap_or_default().to_string_lossy();
            if let Some(number) = number {
                disk.parts.push((name.into_owned(), number));
            }
            disk.directories.push(directory);
        }
        disk
    }

    fn by_number(&self, number: DeviceNumber) -> Option<&str> {
        self.parts.iter().find(|(_, own)| *own == number).map(|(name, _)| name.as_str())
    }

    fn by_path(&self, path: &str) -> Option<&str> {
        let name = path.strip_prefix("/dev/")?;
        self.parts.iter().find(|(own, _)| own == name).map(|(name, _)| name.as_str())
    }
}

/// Who uses the block device `name` (as /sys/class/block names it) or a partition of it, except the
/// processes in `except`. Sorted, each once.
pub(crate) fn of_block_device(system: &System, name: &str, except: &[u32]) -> Vec<Holder> {
    let disk = Disk::find(system, name);
    let mut found = BTreeSet::new();
    mounts(system, &disk, &mut found);
    for source in swaps(system) {
        if let Some(device) = disk.by_path(&source) {
            found.insert(Holder::Swap { device: device.into() });
        }
    }
    for directory in &disk.directories {
        let device = Path::new(directory).file_name().unwrap_or_default().to_string_lossy();
        for by in system.names(format!("{directory}/holders")) {
            found.insert(Holder::Stacked { device: device.clone().into_owned(), by });
        }
    }
    for (by, file) in loops(system) {
        if let Some(device) = disk.by_path(&file) {
            found.insert(Holder::Stacked { device: device.into(), by });
        }
    }
    processes(system, except, &mut found, |stat, link, _| match stat {
        Some(stat) if FileType::from_raw_mode(stat.stx_mode.into()) == FileType::BlockDevice => {
            disk.by_number(DeviceNumber { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor })
                .map(String::from)
        }
        Some(_) => None,
        None => disk.by_path(link).map(String::from),
    });
    found.into_iter().collect()
}

/// Who uses the file at `path` in a way that its blocks must not be served: swap, a loop device, a
/// process that has it open for writing; except the processes in `except`.
pub(crate) fn of_file(system: &System, path: &Path, except: &[u32]) -> Vec<Holder> {
    let mut found = BTreeSet::new();
    let device = path.display().to_string();
    let Ok(own) = stat(path, AtFlags::empty()) else { return Vec::new() };
    let same = |other: &str| {
        stat(Path::new(other), AtFlags::empty())
            .is_ok_and(|other| identity(&other) == identity(&own))
    };
    if swaps(system).iter().any(|source| same(source)) {
        found.insert(Holder::Swap { device: device.clone() });
    }
    for (by, file) in loops(system) {
        if same(&file) {
            found.insert(Holder::Stacked { device: device.clone(), by });
        }
    }
    processes(system, except, &mut found, |stat, _, writes| {
        let same = stat.is_some_and(|stat| identity(stat) == identity(&own));
        (same && writes()).then(|| device.clone())
    });
    found.into_iter().collect()
}

/// Which processes have `path` open, such as /dev/vfio/3; except the processes in `except`.
pub(crate) fn of_node(system: &System, path: &str, except: &[u32]) -> Vec<Holder> {
    let mut found = BTreeSet::new();
    processes(system, except, &mut found, |_, link, _| (link == path).then(|| path.to_string()));
    found.into_iter().collect()
}

fn identity(stat: &Statx) -> (u32, u32, u64) {
    (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino)
}

/// Attributes as the kernel has them, without asking a network server for newer ones.
fn stat(path: &Path, flags: AtFlags) -> rustix::io::Result<Statx> {
    let flags = flags | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::BASIC_STATS)
}

/// Mounts of the disk in every mount namespace that a process is in.
fn mounts(system: &System, disk: &Disk, found: &mut BTreeSet<Holder>) {
    let mut seen = BTreeSet::new();
    for pid in system.pids() {
        // One process of each namespace is enough. Where the link cannot be read, neither can the
        // table, save for our own.
        let namespace = system.link_name(format!("proc/{pid}/ns/mnt"));
        if namespace.is_some() && !seen.insert(namespace) {
            continue;
        }
        let table = system.read(format!("proc/{pid}/mountinfo")).unwrap_or_default();
        for line in table.lines() {
            if let Some((device, at)) = mount_of(disk, line) {
                found.insert(Holder::Mount { device, at });
            }
        }
    }
}

/// Reads a line of proc_pid_mountinfo(5):
/// `36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/sda1 rw`.
fn mount_of(disk: &Disk, line: &str) -> Option<(String, String)> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut fields = mount.split(' ');
    let number = fields.nth(2)?;
    let at = fields.nth(1)?;
    let source = filesystem.split(' ').nth(1)?;
    // btrfs and the like show a number of their own instead of the device's: go by the source too.
    let by_number = number.parse().ok().and_then(|number| disk.by_number(number));
    let device = by_number.or_else(|| disk.by_path(&unescaped(source)))?;
    Some((device.to_string(), unescaped(at)))
}

/// Undoes `\040` and the like, which the kernel writes for blanks in paths.
fn unescaped(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'\\').then(|| bytes.get(at + 1..at + 4)).flatten();
        let code = code
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(code.unwrap_or(bytes[at]));
        at += if code.is_some() { 4 } else { 1 };
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// What the kernel swaps to.
fn swaps(system: &System) -> Vec<String> {
    let table = system.read("proc/swaps").unwrap_or_default();
    // The first line is the header.
    table.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(unescaped).collect()
}

/// The loop devices in use and the file behind each.
fn loops(system: &System) -> Vec<(String, String)> {
    let names = system.names("sys/block").into_iter().filter(|name| name.starts_with("loop"));
    names
        .filter_map(|name| {
            let file = system.read(format!("sys/block/{name}/loop/backing_file"))?;
            Some((name, file))
        })
        .collect()
}

/// Looks at every descriptor of every process; `matches(attributes, link, is it open for writing)`
/// says what of the disk it is.
fn processes(
    system: &System,
    except: &[u32],
    found: &mut BTreeSet<Holder>,
    matches: impl Fn(Option<&Statx>, &str, &dyn Fn() -> bool) -> Option<String>,
) {
    for pid in system.pids().filter(|pid| !except.contains(pid)) {
        for fd in system.names(format!("proc/{pid}/fd")) {
            let path = system.path(format!("proc/{pid}/fd/{fd}"));
            let Ok(link) = std::fs::read_link(&path) else { continue };
            let link = link.to_string_lossy();
            // Pipes, sockets and anonymous inodes have no path.
            if !link.starts_with('/') {
                continue;
            }
            let stat = stat(&path, AtFlags::empty()).ok();
            let writes = || open_for_writing(system, pid, &fd);
            if let Some(device) = matches(stat.as_ref(), &link, &writes) {
                found.insert(Holder::Process { device, pid, comm: system.comm(pid) });
            }
        }
    }
}

/// The flags that proc_pid_fdinfo(5) shows in octal. One that cannot be read counts as a writer.
fn open_for_writing(system: &System, pid: u32, fd: &str) -> bool {
    let info = system.read(format!("proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_none_or(|flags| flags & rustix::fs::OFlags::ACCMODE.bits() != 0)
}

#[cfg(test)]
mod tests;
