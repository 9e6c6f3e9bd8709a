//! Descriptors of our own: at high numbers, and not the program's to close.
//!
//! A daemon closes every number that it does not know, and a program may make a number of its choice another file. If that
//! were our bell, the next ring would write eight bytes into that file. So our numbers are high ones, the low ones stay as
//! the program expects them, and whatever closes passes over ours.
#![expect(unsafe_code, reason = "takes over descriptors that the kernel has just made")]

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::real;

/// Numbers of which it is known whether they are ours; larger ones are not.
const KNOWN: usize = 65536;
/// The first number that is larger.
pub(crate) const END: u32 = KNOWN as u32;
/// The lowest of ours, where the process may have so many.
const FLOOR: u64 = 900;

static OURS: [AtomicU64; KNOWN / 64] = [const { AtomicU64::new(0) }; KNOWN / 64];

/// Whether this number is ours. Async-signal-safe.
#[inline]
pub(crate) fn is(fd: RawFd) -> bool {
    let word = usize::try_from(fd).ok().and_then(|fd| OURS.get(fd / 64));
    word.is_some_and(|word| word.load(Ordering::Relaxed) >> (fd % 64) & 1 == 1)
}

fn mark(fd: RawFd, ours: bool) {
    let Some(word) = usize::try_from(fd).ok().and_then(|fd| OURS.get(fd / 64)) else { return };
    match ours {
        true => word.fetch_or(1 << (fd % 64), Ordering::Relaxed),
        false => word.fetch_and(!(1 << (fd % 64)), Ordering::Relaxed),
    };
}

/// This number is ours for as long as the process lives.
pub(crate) fn keep(fd: BorrowedFd<'_>) {
    mark(fd.as_raw_fd(), true);
}

/// A process that begins has none; in a child of fork(2) those of its parent are nobody's.
pub(crate) fn none() {
    OURS.iter().for_each(|word| word.store(0, Ordering::Relaxed));
}

/// The lowest number of ours: three quarters of what the process may have.
fn floor() -> usize {
    // SAFETY: a structure of numbers, for which zero is a value.
    let mut limit: libc::rlimit = unsafe { std::mem::zeroed() };
    // SAFETY: the address of a structure of ours.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    (limit.rlim_cur / 4 * 3).min(FLOOR) as usize
}

/// The number's file under a number of ours.
fn duplicate(fd: RawFd, floor: usize) -> Result<RawFd, i32> {
    let command = libc::F_DUPFD_CLOEXEC as usize;
    let new = real::raw(libc::SYS_fcntl, [fd as usize, command, floor, 0, 0, 0])?;
    Ok(new as RawFd)
}

/// While it lives, the next descriptors of this process get high numbers.
#[derive(Debug)]
pub(crate) struct High {
    fillers: Vec<RawFd>,
}

impl High {
    /// Takes the low numbers that are free, as far as that is possible.
    pub(crate) fn new() -> Self {
        let mut fillers = Vec::new();
        let flags = libc::EFD_CLOEXEC as usize;
        if let Ok(first) = real::raw(libc::SYS_eventfd2, [0, flags, 0, 0, 0, 0]) {
            let (first, floor) = (first as RawFd, floor());
            fillers.push(first);
            while let Ok(next) = duplicate(first, 0) {
                fillers.push(next);
                if next as usize >= floor {
                    break;
                }
            }
            // The last is as high as those that are to come, which need room.
            if fillers.len() > 1 {
                fillers.pop().into_iter().for_each(close);
            }
        }
        Self { fillers }
    }
}

impl Drop for High {
    fn drop(&mut self) {
        self.fillers.drain(..).for_each(close);
    }
}

/// Closes a number that is no other's, and on which nothing is in progress.
fn close(fd: RawFd) {
    // There is nothing to be done about an error, nor is one to be expected.
    let _ = real::raw(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]);
}

/// A descriptor of ours.
#[derive(Debug)]
pub(crate) struct OwnFd(ManuallyDrop<OwnedFd>);

impl OwnFd {
    /// Another number, of ours, for the same file.
    pub(crate) fn duplicate_of(fd: RawFd) -> Result<Self, i32> {
        let own = duplicate(fd, floor()).or_else(|errno| match errno {
            // So high a number is not to be had.
            libc::EINVAL | libc::EMFILE => duplicate(fd, 0),
            _ => Err(errno),
        })?;
        mark(own, true);
        // SAFETY: the kernel has just made it.
        Ok(Self(ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(own) })))
    }
}

impl AsFd for OwnFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for OwnFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Drop for OwnFd {
    fn drop(&mut self) {
        let fd = self.0.as_raw_fd();
        mark(fd, false);
        close(fd);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_of_ours_has_a_high_number_which_is_known_until_it_is_closed() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let own = OwnFd::duplicate_of(file.as_raw_fd()).unwrap();
        let number = own.as_raw_fd();
        assert!(number as usize >= floor() && is(number), "{number}");
        assert!(!is(file.as_raw_fd()) && !is(-1) && !is(i32::MAX));
        drop(own);
        assert!(!is(number));
        assert_eq!(OwnFd::duplicate_of(-1).unwrap_err(), libc::EBADF);
    }
}
