//! Where the kernel tells about itself: /proc, /sys and /dev, or a copy of them for tests.

use std::io::Read;
use std::path::{Path, PathBuf};

/// The root under which `proc`, `sys` and `dev` are looked for.
#[derive(Clone, Debug)]
pub(crate) struct System {
    root: PathBuf,
}

impl System {
    /// `/` is the machine itself; anything else is a fixture.
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// `path` is relative to the root: `proc/swaps`.
    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// The text of a small file without its last newline; `None` when it cannot be read.
    pub(crate) fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        read_bounded(&self.path(path), 16 << 20).ok().map(|text| text.trim_end().to_string())
    }

    /// The last component of what a link points to, such as the driver of a device.
    pub(crate) fn link_name(&self, path: impl AsRef<Path>) -> Option<String> {
        let target = std::fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// The names in a directory, sorted; none when there is no such directory.
    pub(crate) fn names(&self, path: impl AsRef<Path>) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The processes that there are now.
    pub(crate) fn pids(&self) -> impl Iterator<Item = u32> {
        self.names("proc").into_iter().filter_map(|name| name.parse().ok())
    }

    /// What a process calls itself.
    pub(crate) fn comm(&self, pid: u32) -> String {
        self.read(format!("proc/{pid}/comm")).unwrap_or_else(|| "?".into())
    }

    /// When a process started, in clock ticks since boot: with its number, its identity, because
    /// numbers are used again (proc_pid_stat(5), field 22). `None` when there is no such process.
    pub(crate) fn start_time(&self, pid: u32) -> Option<u64> {
        let stat = self.read(format!("proc/{pid}/stat"))?;
        // The name in parentheses may contain anything, parentheses and spaces too: the fields go on
        // after the last one, with field 3.
        let (_, fields) = stat.rsplit_once(") ")?;
        let mut fields = fields.split(' ');
        // A zombie serves nobody, even if its parent has not looked at it yet.
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        fields.nth(22 - 4)?.parse().ok()
    }
}

/// Reads a file of at most `limit` bytes as text: what is in it is somebody else's.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(std::io::Error::other("the file is too large"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_number_and_start_time_whatever_its_name() {
        let root = tempfile::tempdir().expect("a directory");
        let system = System::new(root.path());
        let write = |pid: u32, stat: &str| {
            std::fs::create_dir_all(root.path().join(format!("proc/{pid}"))).expect("a directory");
            std::fs::write(root.path().join(format!("proc/{pid}/stat")), stat).expect("a file");
        };
        let fields = "1 5 5 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2";
        write(5, &format!("5 (a) b) c) S {fields}\n"));
        write(6, &format!("6 (dead) Z {fields}\n"));
        write(7, "7 (cut");
        assert_eq!(system.start_time(5), Some(98765));
        assert_eq!(system.start_time(6), None);
        assert_eq!(system.start_time(7), None);
        assert_eq!(system.start_time(8), None);
        let me = System::new("/");
        assert!(me.start_time(std::process::id()).is_some());
    }
}
