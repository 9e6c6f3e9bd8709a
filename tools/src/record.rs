//! What a server leaves under /run/uaio for others to find it: `N.json`, `N.sock`, `N.log`.
//!
//! The directory is root's, readable by all; the sockets are root's alone. A record tells which
//! process serves the device; whether that process still lives is decided by its number *and* its
//! start time, because numbers are used again.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cli::{DeviceId, Mode};
use crate::exit::{Exit, Failure};
use crate::system::{System, read_bounded};

/// The form of a record; one of another form is left alone.
const VERSION: u32 = 1;

/// Who serves a device, and what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The form of this record.
    pub(crate) version: u32,
    /// The number of the ublk device.
    pub(crate) id: u32,
    /// The server.
    pub(crate) pid: u32,
    /// When it started, in clock ticks since boot.
    pub(crate) start_time_ticks: u64,
    /// What it serves.
    pub(crate) backend: String,
    /// Size of the device.
    pub(crate) size_bytes: u64,
    /// Size of a logical block.
    pub(crate) block_size_bytes: u32,
    /// How writes are acknowledged.
    pub(crate) mode: Mode,
    /// Memory of the cache; 0 without one.
    pub(crate) cache_bytes: u64,
    /// Where the server writes its log; absent where that is its stderr.
    #[serde(default)]
    pub(crate) log: Option<String>,
}

/// The directory of the records.
#[derive(Clone, Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
}

impl RunDir {
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory if it is not there; one that is there is not changed.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check), or that it cannot be made.
    pub(crate) fn create(&self) -> Result<(), Failure> {
        let text = self.path.display();
        let failed = |error| Failure::os(format!("create {text}"), error);
        if let Some(parent) = self.path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        match fs::create_dir(&self.path) {
            // Whatever the umask: the records are for all to read.
            Ok(()) => fs::set_permissions(&self.path, fs::Permissions::from_mode(0o755))
                .map_err(|error| Failure::os(format!("chmod {text}"), error)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => self.check(),
            Err(error) => Err(failed(error)),
        }
    }

    /// Refuses a directory that others may write: whoever can put a socket there can answer in our
    /// name. One that is not there is no failure.
    ///
    /// # Errors
    ///
    /// Whose it is, or that it is none.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        const OTHERS_WRITE: u32 = 0o022;
        let text = self.path.display();
        let is = match fs::metadata(&self.path) {
            Ok(is) => is,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Failure::os(format!("stat {text}"), error)),
        };
        let (exit, what) = if !is.is_dir() {
            (Exit::Usage, "is not a directory")
        } else if is.uid() != rustix::process::geteuid().as_raw() {
            (Exit::Permission, "belongs to another user")
        } else if is.mode() & OTHERS_WRITE != 0 {
            (Exit::Permission, "can be written by others")
        } else {
            return Ok(());
        };
        let hint = match exit {
            Exit::Permission if is.is_dir() && !rustix::process::geteuid().is_root() => {
                "try again as root, or choose another --run-dir"
            }
            _ => "choose another --run-dir",
        };
        Err(Failure::new(exit, format!("{text} {what}"), hint))
    }

    pub(crate) fn socket(&self, id: DeviceId) -> PathBuf {
        self.path.join(format!("{}.sock", id.0))
    }

    pub(crate) fn record(&self, id: DeviceId) -> PathBuf {
        self.path.join(format!("{}.json", id.0))
    }

    pub(crate) fn log(&self, id: DeviceId) -> PathBuf {
        self.path.join(format!("{}.log", id.0))
    }

    /// The log of a server that has no device yet.
    pub(crate) fn log_of_start(&self, pid: u32) -> PathBuf {
        self.path.join(format!("starting-{pid}.log"))
    }

    /// Writes a record whole or not at all.
    pub(crate) fn write(&self, record: &Record) -> Result<(), Failure> {
        let path = self.record(DeviceId(record.id));
        let temporary = path.with_extension("json.new");
        let text = serde_json::to_string(record).expect("a record is made of numbers and strings");
        let failed = |error| Failure::os(format!("write {}", path.display()), error);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(&temporary)
            .map_err(failed)?;
        // The umask of a server lets nobody else read: the record is for all.
        file.set_permissions(fs::Permissions::from_mode(0o644)).map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        fs::rename(&temporary, &path).map_err(failed)
    }

    /// The records there are, by number. What is no record of ours is left alone.
    pub(crate) fn records(&self) -> Vec<Record> {
        self.ids().into_iter().filter_map(|id| self.read(id)).collect()
    }

    /// What is named as a record is and cannot be read as one: damaged, or of another aioctl. There
    /// may be a server behind it all the same.
    pub(crate) fn unreadable(&self) -> Vec<DeviceId> {
        // One that has just been removed is nothing to report.
        let there = |id: &DeviceId| self.record(*id).exists();
        self.ids().into_iter().filter(|&id| self.read(id).is_none()).filter(there).collect()
    }

    fn ids(&self) -> Vec<DeviceId> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let id = |name: &str| name.strip_suffix(".json")?.parse().ok();
        let mut ids: Vec<u32> =
            entries.filter_map(|entry| entry.file_name().to_str().and_then(id)).collect();
        ids.sort_unstable();
        ids.into_iter().map(DeviceId).collect()
    }

    /// The record of one device.
    pub(crate) fn read(&self, id: DeviceId) -> Option<Record> {
        let text = read_bounded(&self.record(id), 64 << 10).ok()?;
        let record: Record = serde_json::from_str(&text).ok()?;
        (record.version == VERSION && record.id == id.0).then_some(record)
    }

    /// Removes what a server left. Its log stays if it says why the server died.
    pub(crate) fn remove(&self, id: DeviceId) {
        for path in [self.record(id), self.socket(id)] {
            let _ = fs::remove_file(path);
        }
        if fs::metadata(self.log(id)).is_ok_and(|log| log.len() == 0) {
            let _ = fs::remove_file(self.log(id));
        }
    }
}

impl Record {
    /// The record of this process.
    pub(crate) fn of_this_process(system: &System, id: DeviceId) -> Self {
        let pid = std::process::id();
        Self {
            version: VERSION,
            id: id.0,
            pid,
            start_time_ticks: system.start_time(pid).unwrap_or(0),
            backend: String::new(),
            size_bytes: 0,
            block_size_bytes: 0,
            mode: Mode::None,
            cache_bytes: 0,
            log: None,
        }
    }

    /// Where its log is, in words.
    pub(crate) fn log_name(&self) -> String {
        log_name(self.log.as_deref())
    }

    /// Whether the process that wrote it still runs.
    pub(crate) fn is_alive(&self, system: &System) -> bool {
        system.start_time(self.pid) == Some(self.start_time_ticks)
    }
}

/// Where the log of a server is, in words: a file, or the stderr of one in the foreground.
pub(crate) fn log_name(log: Option<&str>) -> String {
    log.map_or_else(|| "what it wrote to stderr".into(), |path| format!("its log, {path}"))
}

/// Whether `path` is a socket left by a server that is gone: there, and nobody listens.
pub(crate) fn is_stale_socket(path: &Path) -> bool {
    use std::io::ErrorKind::ConnectionRefused;
    path.exists()
        && matches!(std::os::unix::net::UnixStream::connect(path),
            Err(error) if error.kind() == ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: u32, pid: u32, start_time_ticks: u64) -> Record {
        let system = System::new("/nonexistent");
        let record = Record::of_this_process(&system, DeviceId(id));
        Record { pid, start_time_ticks, backend: "ram:1G".into(), ..record }
    }

    #[test]
    fn a_record_comes_back_as_it_was_written_and_rubbish_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let run = RunDir::new(directory.path().join("uaio"));
        run.create().expect("the directory");
        assert_eq!(run.records(), []);
        run.write(&record(3, 7, 9)).expect("a record");
        run.write(&record(12, 8, 9)).expect("a record");
        fs::write(run.record(DeviceId(4)), "{\"version\":1").expect("a file");
        fs::write(run.record(DeviceId(5)), vec![b'['; 100_000]).expect("a file");
        fs::write(directory.path().join("uaio/x.json"), "{}").expect("a file");
        // A record under another number is not believed.
        fs::copy(run.record(DeviceId(3)), run.record(DeviceId(6))).expect("a copy");
        assert_eq!(run.records(), [record(3, 7, 9), record(12, 8, 9)]);
        assert_eq!(run.unreadable(), [4, 5, 6].map(DeviceId));
        run.remove(DeviceId(3));
        assert_eq!(run.records(), [record(12, 8, 9)]);
        let mode = |path: PathBuf| fs::metadata(path).expect("a file").permissions().mode() & 0o777;
        assert_eq!(mode(run.record(DeviceId(12))), 0o644);
        assert_eq!(mode(directory.path().join("uaio")), 0o755);
    }

    #[test]
    fn a_directory_that_is_there_keeps_its_mode_and_one_that_others_may_write_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("shared");
        fs::create_dir(&path).expect("a directory");
        let run = RunDir::new(&path);
        for (mode, refused) in
            [(0o1777, true), (0o775, true), (0o757, true), (0o755, false), (0o700, false)]
        {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
            let result = run.create();
            let exit = result.as_ref().err().map(|failure| failure.exit);
            assert_eq!(exit, refused.then_some(Exit::Permission), "{mode:o}: {result:?}");
            let is = fs::metadata(&path).expect("a directory").permissions().mode();
            assert_eq!(is & 0o7777, mode);
        }
        assert_eq!(fs::read_dir(&path).expect("a directory").count(), 0);
    }

    #[test]
    fn a_socket_that_nobody_listens_on_is_stale() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("0.sock");
        assert!(!is_stale_socket(&path));
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        assert!(!is_stale_socket(&path));
        drop(listener);
        assert!(is_stale_socket(&path));
    }
}
