//! A program that uses the block device: direct I/O, the ioctls, and a verified load.
#![expect(unsafe_code, reason = "ioctls of block devices and pwritev2 have no safe wrapper")]

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Bytes at an address that O_DIRECT takes.
pub(crate) struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    pub(crate) fn zeroed(len: usize) -> Self {
        let memory = vec![0u8; len + 4096];
        let start = memory.as_ptr().align_offset(4096);
        Self { memory, start, len }
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// Opens a block device for direct I/O.
pub(crate) fn direct(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path).unwrap()
}

/// BLKDISCARD over a range of bytes (linux/fs.h).
pub(crate) fn discard(file: &File, start: u64, len: u64) -> io::Result<()> {
    range_ioctl(file, 0x1277, start, len)
}

/// BLKZEROOUT over a range of bytes (linux/fs.h).
pub(crate) fn zero_out(file: &File, start: u64, len: u64) -> io::Result<()> {
    range_ioctl(file, 0x127f, start, len)
}

fn range_ioctl(file: &File, request: libc::c_ulong, start: u64, len: u64) -> io::Result<()> {
    let range = [start, len];
    // SAFETY: both requests read two u64 from the pointer.
    match unsafe { libc::ioctl(file.as_raw_fd(), request as _, range.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A write that is stable when it returns.
pub(crate) fn write_dsync(file: &File, data: &[u8], offset: u64) -> io::Result<usize> {
    let part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let (fd, offset) = (file.as_raw_fd(), offset as libc::off_t);
    // SAFETY: one iovec over `data`, which the call only reads.
    let written = unsafe { libc::pwritev2(fd, &part, 1, offset, libc::RWF_DSYNC) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// Random reads and writes of a part of the device, checked against what was acknowledged. Ends when
/// told, with how many requests there were, or with the first error.
pub(crate) fn load(path: &Path, part: Range<u64>, seed: u64, end: &AtomicBool) -> io::Result<u64> {
    let file = direct(path);
    let mut random = fastrand::Rng::with_seed(seed);
    // What each page holds; `None` when a write of it was not acknowledged.
    let mut expected = vec![None; ((part.end - part.start) / 4096) as usize];
    let mut data = Aligned::zeroed(64 << 10);
    let mut done = 0;
    while !end.load(Ordering::Relaxed) {
        let pages = random.usize(1..=16);
        let first = random.usize(..expected.len() - pages);
        let offset = part.start + first as u64 * 4096;
        let data = &mut data[..pages * 4096];
        let stamps = expected[first..first + pages].iter_mut().zip(data.chunks_exact_mut(4096));
        if random.bool() {
            let stamp = random.u8(..);
            stamps.enumerate().for_each(|(index, (expected, page))| {
                *expected = None;
                page.fill(stamp.wrapping_add(index as u8));
            });
            file.write_all_at(data, offset)?;
            for (index, expected) in expected[first..first + pages].iter_mut().enumerate() {
                *expected = Some(stamp.wrapping_add(index as u8));
            }
        } else {
            stamps.for_each(|(expected, page)| page.fill(!expected.unwrap_or(0)));
            file.read_exact_at(data, offset)?;
            for (index, page) in data.chunks_exact(4096).enumerate() {
                let Some(stamp) = expected[first + index] else { continue };
                assert!(
                    page.iter().all(|&byte| byte == stamp),
                    "seed {seed}, page {first}+{index}"
                );
            }
        }
        done += 1;
    }
    Ok(done)
}

/// Starts `threads` loads, each on its own part of the device's `size` bytes.
pub(crate) fn spawn_load(
    path: &Path,
    size: u64,
    threads: u64,
    end: &Arc<AtomicBool>,
) -> Vec<JoinHandle<io::Result<u64>>> {
    let seed = fastrand::u64(..) / 2;
    println!("load with seed {seed}");
    let part = size / threads / 4096 * 4096;
    (0..threads)
        .map(|index| {
            let (path, end) = (path.to_owned(), Arc::clone(end));
            let part = index * part..(index + 1) * part;
            std::thread::spawn(move || load(&path, part, seed + index, &end))
        })
        .collect()
}
