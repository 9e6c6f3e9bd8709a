//! Files and kernel block devices through io_uring.
//!
//! ```text
//!   submit ──► entry in the ring   commit ──► one io_uring_enter   poll ──► completions, no system call
//! ```
//!
//! All I/O is direct: a backend that is buffered would wait for the page cache of the kernel, which
//! may be waiting for the very device we serve. One queue is one ring, with the file and the whole
//! pool registered; on a device whose completions can be polled (`queue/io_poll`) reads and writes
//! have a second ring set up with `IOPOLL`.
//!
//! # What a request becomes
//!
//! | request | entry |
//! |---|---|
//! | read, write of frames that follow each other | `READ_FIXED`, `WRITE_FIXED` |
//! | read, write of scattered frames | `READV_FIXED`, `WRITEV_FIXED`; before Linux 6.15 `READV`, `WRITEV` |
//! | write with FUA | the same with `RWF_DSYNC` |
//! | flush | `FSYNC` with `DATASYNC` (fdatasync) |
//! | discard | `FALLOCATE`, punching a hole |
//! | write-zeroes | a hole if it may unmap, else `FALLOC_FL_ZERO_RANGE`; where the file system has neither, writes of zeroes |
//!
//! A short transfer goes on where it stopped. The end of a file that was truncated under us is an
//! error, never zeroes. A block device without Write Zeroes is not discarded.
//!
//! # Durability
//!
//! A file always counts as having a volatile cache. Discards and zeroes are stable after the next
//! flush. Creating a file syncs it and the directory that names it.
//!
//! # Time
//!
//! There is no deadline of our own: the kernel's drivers have theirs, and what they have begun cannot
//! be taken back. A dropped queue waits 30 s for them, then leaks its frames.

mod open;
mod progress;
mod queue;
mod ring;
mod sysfs;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use self::open::Opened;
use self::queue::UringQueue;
use self::ring::SubmitThread;
use crate::block::{BlockDevice, Capabilities, Geometry, Health, IoQueue, QueueOptions};
use crate::dma::DmaPool;
use crate::error::{DeviceError, IoError};

const QUEUES_MAX: u16 = 64;
const DEPTH_MAX: u16 = 1024;

/// What is to be opened, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UringOptions {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// Create the file, sparse, of this size in bytes, synced with its directory. It must not exist;
    /// when opening it fails afterwards it is removed again.
    pub create_bytes: Option<u64>,
    /// Open for reading only. A file can be shared by several readers.
    pub read_only: bool,
    /// The block size in bytes; `None` for the smallest that direct I/O takes.
    pub block_size: Option<u32>,
    /// Poll for the completions of a device that can be polled. A queue with reads or writes in
    /// flight cannot sleep then.
    pub polled: bool,
    /// Has a thread of the kernel submit (`IORING_SETUP_SQPOLL`, io_uring_setup(2)), which sleeps after
    /// this long, rounded up to a millisecond, without anything to do. `commit` then enters the kernel only to
    /// wake it: worth it where starting a command takes long, as in a virtual machine that leaves for its host
    /// each time, and a processor is to spare; where none is, everything takes longer. What is polled
    /// for is still submitted by the caller. When the kernel gives none, there is a warning and the caller
    /// submits.
    pub sqpoll_idle: Option<Duration>,
}

impl UringOptions {
    /// An existing file or device, for reading and writing, polled if it can be.
    pub fn existing(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self {
            path,
            create_bytes: None,
            read_only: false,
            block_size: None,
            polled: true,
            sqpoll_idle: None,
        }
    }

    /// A new sparse file of `size_bytes` bytes.
    pub fn create(path: impl Into<PathBuf>, size_bytes: u64) -> Self {
        Self { create_bytes: Some(size_bytes), ..Self::existing(path) }
    }
}

/// What the device and its queues share.
struct Shared {
    name: String,
    file: File,
    geometry: Geometry,
    capabilities: Capabilities,
    pool: DmaPool,
    /// Reads and writes go to a ring that polls.
    polled: bool,
    submit_thread: Option<SubmitThread>,
    /// Cleared once the file did not take `FALLOC_FL_ZERO_RANGE`, to spare the next ones the try.
    zero_range: AtomicBool,
    failure: OnceLock<IoError>,
    queues: AtomicU16,
    closed: AtomicBool,
    warnings: Mutex<Vec<String>>,
}

impl Shared {
    /// The device has failed for good; the first error stays.
    fn fail(&self, error: IoError) {
        let _ = self.failure.set(error);
    }

    fn warn_unregistered(&self, error: &std::io::Error) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if !warnings.iter().any(|warning| warning.contains("RLIMIT_MEMLOCK")) {
            warnings.push(format!(
                "{}: the memory could not be registered with io_uring, so every request pins its own \
                 pages, which costs time: {error} (raise RLIMIT_MEMLOCK, ulimit -l)",
                self.name
            ));
        }
    }
}

/// A file or a kernel block device as a block device of ours. It is locked for us (`flock`) or
/// claimed (`O_EXCL`) until the device is dropped.
pub struct UringDevice {
    shared: Arc<Shared>,
}

impl UringDevice {
    /// Opens it. Blocks for as long as the file system does.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Invalid`] when it is of the wrong kind, size or block size, or on a file system
    /// without direct I/O; [`DeviceError::Os`] with EBUSY when it is locked or mounted, or with what
    /// else the kernel said.
    pub fn open(options: &UringOptions, pool: DmaPool) -> Result<Self, DeviceError> {
        let Opened { file, geometry, volatile_cache, fua, polls } = Opened::open(options)?;
        let capabilities = Capabilities {
            volatile_cache,
            fua,
            read_only: options.read_only,
            queues_max: QUEUES_MAX,
            depth_max: DEPTH_MAX,
        };
        let name = format!("file:{}", options.path.display());
        let mut warnings = Vec::new();
        let submit_thread = options.sqpoll_idle.and_then(|idle| {
            let started = SubmitThread::start(idle);
            started
                .inspect_err(|error| {
                    warnings.push(format!(
                        "{name}: there is no thread of the kernel to submit, so the caller does: {error}"
                    ));
                })
                .ok()
        });
        let shared = Arc::new(Shared {
            name,
            file,
            geometry,
            capabilities,
            pool,
            polled: options.polled && polls,
            submit_thread,
            zero_range: AtomicBool::new(true),
            failure: OnceLock::new(),
            queues: AtomicU16::new(0),
            closed: AtomicBool::new(false),
            warnings: Mutex::new(warnings),
        });
        Ok(Self { shared })
    }

    /// Whether reads and writes are polled for.
    pub fn is_polled(&self) -> bool {
        self.shared.polled
    }

    /// What works worse than it could, one line each, for whoever started this to be told. Filled as
    /// queues are opened.
    pub fn warnings(&self) -> Vec<String> {
        self.shared.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for UringDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UringDevice")
            .field("name", &self.shared.name)
            .field("geometry", &self.shared.geometry)
            .field("capabilities", &self.shared.capabilities)
            .field("polled", &self.shared.polled)
            .finish_non_exhaustive()
    }
}

impl BlockDevice for UringDevice {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn geometry(&self) -> Geometry {
        self.shared.geometry
    }

    fn capabilities(&self) -> Capabilities {
        self.shared.capabilities
    }

    fn pool(&self) -> &DmaPool {
        &self.shared.pool
    }

    fn health(&self) -> Health {
        self.shared.failure.get().map_or(Health::Good, |error| Health::Failed(*error))
    }

    fn open_queue(&self, options: QueueOptions) -> Result<Box<dyn IoQueue>, DeviceError> {
        let shared = &self.shared;
        if options.depth == 0 || options.depth > DEPTH_MAX {
            return Err(DeviceError::Invalid(format!(
                "a queue depth of {} is not possible: take 1 to {DEPTH_MAX}",
                options.depth
            )));
        }
        if shared.closed.load(Ordering::Acquire) {
            return Err(DeviceError::Failed {
                device: shared.name.clone(),
                reason: "it has been closed".to_owned(),
            });
        }
        shared
            .queues
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                (count < QUEUES_MAX).then_some(count + 1)
            })
            .map_err(|max| DeviceError::NoMoreQueues { max })?;
        // From here on the count is the queue's to give back, when it is dropped.
        match UringQueue::open(Arc::clone(shared), options.depth) {
            Ok(queue) => Ok(Box::new(queue)),
            Err(error) => {
                shared.queues.fetch_sub(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    fn close(&self) -> Result<(), DeviceError> {
        let shared = &self.shared;
        let open = shared.queues.load(Ordering::Relaxed);
        if open > 0 {
            return Err(DeviceError::Failed {
                device: shared.name.clone(),
                reason: format!("{open} of its queues are still open"),
            });
        }
        if shared.closed.swap(true, Ordering::AcqRel) || shared.capabilities.read_only {
            return Ok(());
        }
        shared.file.sync_data().map_err(|source| DeviceError::Os {
            what: format!("{}: fdatasync at close", shared.name),
            source,
        })
    }
}
