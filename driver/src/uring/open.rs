//! Opening a file or a kernel block device: what it is, what it can do, and that nobody else has it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, FallocateFlags, StatxFlags};

use super::UringOptions;
use super::sysfs::Limits;
use crate::block::Geometry;
use crate::dma::FRAME_SIZE;
use crate::error::DeviceError;

/// The most that one read or write carries, in bytes.
const TRANSFER_MAX_BYTES: u32 = 1 << 20;
/// The most that one discard or write-zeroes covers, in bytes: the kernel works on it without a
/// chance to stop it.
const RANGE_MAX_BYTES: u64 = 1 << 30;
const BLOCK_SIZE_MAX: u32 = 4096;

/// An opened file or device, and what was found out about it.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) geometry: Geometry,
    pub(super) volatile_cache: bool,
    pub(super) fua: bool,
    /// The device completes reads and writes by polling.
    pub(super) polls: bool,
}

/// What direct I/O asks of a file.
#[derive(Clone, Copy, Debug)]
struct Alignment {
    block_size: u32,
    limits: Option<Limits>,
}

impl Opened {
    pub(super) fn open(options: &UringOptions) -> Result<Self, DeviceError> {
        let path = options.path.as_path();
        let Some(size_bytes) = options.create_bytes else { return Self::open_existing(options) };
        if options.read_only {
            return Err(invalid(path, "cannot be created read-only"));
        }
        create(path, size_bytes)?;
        Self::open_existing(options).inspect_err(|_| {
            // Nothing half done. The file is ours: `create` made it, and nobody has used it.
            let _ = std::fs::remove_file(path);
        })
    }

    fn open_existing(options: &UringOptions) -> Result<Self, DeviceError> {
        let path = options.path.as_path();
        let metadata = std::fs::metadata(path).map_err(|source| os(path, "open", source))?;
        let is_device = metadata.file_type().is_block_device();
        if !is_device && !metadata.is_file() {
            return Err(invalid(path, "is neither a regular file nor a block device"));
        }
        let file = open_direct(path, options.read_only, is_device)?;
        let opened = file.metadata().map_err(|source| os(path, "stat", source))?;
        if opened.file_type() != metadata.file_type() {
            return Err(invalid(path, "was exchanged for something else while it was opened"));
        }
        if !is_device {
            lock(&file, path, options.read_only)?;
        }
        let alignment = match is_device {
            true => Alignment::of_device(&file, path, opened.rdev())?,
            false => Alignment::of_file(&file, path)?,
        };
        let size_bytes = match is_device {
            true => io::Seek::seek(&mut &file, io::SeekFrom::End(0))
                .map_err(|source| os(path, "find the size of", source))?,
            false => opened.len(),
        };
        let block_size = choose_block_size(path, options.block_size, alignment.block_size)?;
        let geometry = Geometry {
            block_size,
            blocks: count_blocks(path, size_bytes, block_size)?,
            transfer_max_bytes: alignment.transfer_max_bytes(),
            discard_max_blocks: 0,
            write_zeroes_max_blocks: (RANGE_MAX_BYTES / u64::from(block_size)) as u32,
        };
        try_read(&file, path, block_size)?;
        let discards = !options.read_only
            && match alignment.limits {
                Some(limits) => limits.discards,
                None => punches_holes(&file, size_bytes),
            };
        Ok(Self {
            geometry: Geometry {
                discard_max_blocks: if discards { geometry.write_zeroes_max_blocks } else { 0 },
                ..geometry
            },
            volatile_cache: alignment.limits.is_none_or(|limits| limits.volatile_cache),
            fua: alignment.limits.is_none_or(|limits| limits.fua),
            polls: alignment.limits.is_some_and(|limits| limits.polls),
            file,
        })
    }
}

/// Creates a sparse file of this size that survives a power failure: the file and the directory that
/// names it are synced.
fn create(path: &Path, size_bytes: u64) -> Result<(), DeviceError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| os(path, "create", source))?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let done = file
        .set_len(size_bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| File::open(parent)?.sync_all());
    done.map_err(|source| {
        let _ = std::fs::remove_file(path);
        os(path, "create", source)
    })
}

/// Opens with O_DIRECT: a server never waits for its own device, and the page cache of the kernel
/// under a buffered backend would write back through it. A block device is opened with O_EXCL, which
/// means "claimed by nobody else, mounts included" there (open(2)).
fn open_direct(path: &Path, read_only: bool, is_device: bool) -> Result<File, DeviceError> {
    let flags = libc::O_DIRECT | if is_device { libc::O_EXCL } else { 0 };
    let opened = OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(path);
    opened.map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL) => no_direct_io(path),
        Some(libc::EBUSY) => in_use(path, "is mounted or held by something else"),
        _ => os(path, "open", source),
    })
}

/// How often a file that is locked is looked at again, and how long apart: a second in all.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Takes the file for us (flock(2)): two servers on one file would overwrite each other. Readers
/// share it. A server that was killed lets go a moment after it has gone, because the kernel takes its
/// io_uring, which has the file too, down in the background: so this looks again for a second.
fn lock(file: &File, path: &Path, read_only: bool) -> Result<(), DeviceError> {
    let lock = || if read_only { file.try_lock_shared() } else { file.try_lock() };
    let mut tries = 1;
    let mut locked = lock();
    while tries < LOCK_TRIES && matches!(locked, Err(TryLockError::WouldBlock)) {
        std::thread::sleep(LOCK_PAUSE);
        locked = lock();
        tries += 1;
    }
    match locked {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(in_use(path, "is locked by another server")),
        Err(TryLockError::Error(source)) => Err(os(path, "lock", source)),
    }
}

impl Alignment {
    fn of_device(file: &File, path: &Path, number: u64) -> Result<Self, DeviceError> {
        let block_size = rustix::fs::ioctl_blksszget(file)
            .map_err(|errno| os(path, "ask for the block size of", errno.into()))?;
        let limits = Limits::of_device(Path::new("/sys"), number);
        Ok(Self { block_size, limits: Some(limits) })
    }

    /// The smallest block that direct I/O on this file takes: statx says since Linux 6.1, for the
    /// file systems that tell. For the others 512, and the first read shows whether it is right.
    fn of_file(file: &File, path: &Path) -> Result<Self, DeviceError> {
        let told = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
            .ok()
            .filter(|told| told.stx_mask & StatxFlags::DIOALIGN.bits() != 0)
            .map(|told| (told.stx_dio_offset_align, told.stx_dio_mem_align));
        let block_size = match told {
            // It takes O_DIRECT and then buffers all the same (data=journal, fs-verity).
            Some((0, _)) => return Err(no_direct_io(path)),
            Some((offset, memory)) => offset.max(memory).max(512),
            None => 512,
        };
        Ok(Self { block_size, limits: None })
    }

    fn transfer_max_bytes(&self) -> u32 {
        let limit = self.limits.map_or(TRANSFER_MAX_BYTES, |limits| limits.transfer_max_bytes);
        let frame = FRAME_SIZE as u32;
        (limit.min(TRANSFER_MAX_BYTES) / frame * frame).max(frame)
    }
}

fn choose_block_size(path: &Path, wanted: Option<u32>, least: u32) -> Result<u32, DeviceError> {
    if !least.is_power_of_two() || least > BLOCK_SIZE_MAX {
        return Err(invalid(
            path,
            &format!("needs blocks of {least} bytes; at most 4096 are possible"),
        ));
    }
    let least = least.max(512);
    match wanted {
        None => Ok(least),
        Some(size) if size.is_power_of_two() && (least..=BLOCK_SIZE_MAX).contains(&size) => {
            Ok(size)
        }
        Some(size) => Err(invalid(
            path,
            &format!(
                "cannot have blocks of {size} bytes: take a power of two from {least} to \
                 {BLOCK_SIZE_MAX}"
            ),
        )),
    }
}

fn count_blocks(path: &Path, size_bytes: u64, block_size: u32) -> Result<u64, DeviceError> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(u64::from(block_size)) {
        return Err(invalid(
            path,
            &format!(
                "has {size_bytes} bytes, which is not a positive multiple of the block size, \
                 {block_size} bytes"
            ),
        ));
    }
    Ok(size_bytes / u64::from(block_size))
}

/// Reads the first block as the queues will, to find out now what they would find out later.
fn try_read(file: &File, path: &Path, block_size: u32) -> Result<(), DeviceError> {
    #[repr(align(4096))]
    struct Page([u8; FRAME_SIZE]);
    let mut page = Box::new(Page([0; FRAME_SIZE]));
    match file.read_exact_at(&mut page.0[..block_size as usize], 0) {
        Ok(()) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(invalid(
            path,
            &format!("does no direct I/O in blocks of {block_size} bytes: try --block-size 4096"),
        )),
        Err(source) => Err(os(path, "read the first block of", source)),
    }
}

/// Whether the file system frees parts of files: asked for beyond the end, where there is nothing.
fn punches_holes(file: &File, size_bytes: u64) -> bool {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, flags, size_bytes, FRAME_SIZE as u64).is_ok()
}

fn no_direct_io(path: &Path) -> DeviceError {
    invalid(
        path,
        "is on a file system without direct I/O (O_DIRECT), and a backend is never buffered",
    )
}

fn in_use(path: &Path, how: &str) -> DeviceError {
    DeviceError::Os {
        what: format!("{} {how}", path.display()),
        source: io::Error::from_raw_os_error(libc::EBUSY),
    }
}

fn invalid(path: &Path, what: &str) -> DeviceError {
    DeviceError::Invalid(format!("{} {what}", path.display()))
}

fn os(path: &Path, verb: &str, source: io::Error) -> DeviceError {
    DeviceError::Os { what: format!("cannot {verb} {}", path.display()), source }
}
