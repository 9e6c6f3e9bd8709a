//! Descriptors and memory of the caller's that go to the kernel by number and address.
#![expect(unsafe_code, reason = "a caller in C gives numbers and addresses")]

use std::ffi::c_void;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, StatxFlags, statx};
use uaio_core::host::{Descriptor, ForeignFd, Memory, Message, Vectored};

use crate::Errno;
use crate::command::Flight;
use crate::user::Span;

// SAFETY: the address of the iocb is only compared and given back; nothing is read through it but in
// `user`, on the word of the caller, who may use any thread.
unsafe impl Send for Flight {}

/// A descriptor of the caller's.
pub(crate) fn descriptor(fd: i32) -> Descriptor {
    // SAFETY: the caller has submitted it, and `uaio.h` says that it belongs to the library until the
    // event. If it is closed all the same the kernel says EBADF, or uses what has its number then,
    // which is the caller's as well.
    unsafe { Descriptor::raw(fd) }
}

/// A descriptor that the caller gives up.
pub(crate) fn given_up(fd: i32) -> ForeignFd {
    // SAFETY: `uaio.h`: it is the library's until the event, and the caller's again only when that says
    // that the command was cancelled or its time was over.
    unsafe { ForeignFd::new(fd) }
}

/// Memory of the caller's.
pub(crate) fn memory(address: *mut c_void, len: usize) -> Memory {
    // SAFETY: `uaio.h`: it belongs to the library until the event, or until the context has been
    // destroyed, which waits for what is in progress.
    unsafe { Memory::raw(address.cast(), len) }
}

/// A list of memory of the caller's.
pub(crate) fn vectored(list: *mut c_void, count: u32) -> Vectored {
    // SAFETY: as above, the list and what it points to.
    unsafe { Vectored::raw(list.cast_const().cast(), count) }
}

/// A message of the caller's, by its header.
pub(crate) fn message(header: *mut c_void) -> Result<Box<Message>, Errno> {
    let header = header.cast::<libc::msghdr>();
    Span::of(header.cast_const(), 1)?;
    // SAFETY: `uaio.h`: as for memory, the header and all it points to.
    Ok(Box::new(unsafe { Message::raw(header) }))
}

/// Whether a descriptor has positions: a file or a device, not a pipe, socket or terminal. An eventfd and its like
/// say so, too: they take any.
pub(crate) fn has_positions(fd: i32) -> bool {
    // SAFETY: not -1, as who calls has asked; it is used for this one call.
    let file = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let status = statx(file, c"", flags, StatxFlags::TYPE);
    let kind = status.map(|status| FileType::from_raw_mode(status.stx_mode.into()));
    // Not asked for the position, which another thread's write(2) may hold for as long as it takes.
    if let Ok(FileType::RegularFile | FileType::BlockDevice) = kind {
        return true;
    }
    // SAFETY: asks for the position and moves nothing; any number may be given.
    unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) >= 0 }
}
