//! Descriptors of the program's, by number.
#![expect(unsafe_code, reason = "numbers that the program owns are used as descriptors")]

use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use rustix::fs::{FileType, OFlags};
use uaio_core::host::Descriptor;

use crate::own::OwnFd;

/// The number as something to ask about, for the time of one call.
fn borrow<T>(
    fd: RawFd,
    ask: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    if fd < 0 {
        return Err(rustix::io::Errno::BADF);
    }
    // SAFETY: not -1, and used for one call, which says EBADF of a number that is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    ask(borrowed)
}

/// How it was opened: EBADF of one that is not open.
pub(crate) fn flags(fd: RawFd) -> Result<OFlags, i32> {
    borrow(fd, |fd| rustix::fs::fcntl_getfl(fd)).map_err(rustix::io::Errno::raw_os_error)
}

/// Whether it is a regular file or a block device, which do not keep anybody waiting for ever.
pub(crate) fn is_file(fd: RawFd) -> bool {
    borrow(fd, |fd| rustix::fs::fstat(fd)).is_ok_and(|status| {
        matches!(
            FileType::from_raw_mode(status.st_mode),
            FileType::RegularFile | FileType::BlockDevice
        )
    })
}

/// The number for the engine.
pub(crate) fn foreign(fd: RawFd) -> Descriptor {
    // SAFETY: the program gave it for this; whoever closes it waits until the kernel has it (`serve::guard`), and the
    // engine does not issue it a second time (`HostRequest::once`).
    unsafe { Descriptor::raw(fd) }
}

/// A descriptor of our own for an eventfd: EBADF, or EINVAL for any other kind, as `eventfd_ctx_fdget` in fs/eventfd.c.
pub(crate) fn eventfd(fd: RawFd) -> Result<OwnFd, i32> {
    if fd < 0 {
        return Err(libc::EBADF);
    }
    let own = OwnFd::duplicate_of(fd)?;
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&own));
    match std::fs::read_link(link) {
        Ok(name) if name.as_os_str() != "anon_inode:[eventfd]" => Err(libc::EINVAL),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(libc::EINVAL),
        // Without /proc nobody can tell; then it is taken for what the program says.
        _ => Ok(own),
    }
}
