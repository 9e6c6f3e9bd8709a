//! What the kernel is asked: an operation's next step as an entry of the ring.
//!
//! Making an entry is safe; it only takes addresses. Whoever pushes it vouches for them.

use std::mem::size_of;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use super::memory::TRANSFER_MAX_BYTES;
use super::op::{Between, HostOp, Position};
use super::slot::InFlight;

/// `RWF_NOSIGNAL` (Linux 6.18): no SIGPIPE.
pub(super) const RWF_NOSIGNAL: i32 = 0x100;

/// Which operation the kernel needs to have for this one.
pub(super) fn opcode_of(op: &HostOp) -> Option<u8> {
    Some(match op {
        HostOp::Nop => opcode::Nop::CODE,
        HostOp::Read { .. } => opcode::Read::CODE,
        HostOp::Write { .. } => opcode::Write::CODE,
        HostOp::ReadV { .. } => opcode::Readv::CODE,
        HostOp::WriteV { .. } => opcode::Writev::CODE,
        HostOp::Fsync { .. } => opcode::Fsync::CODE,
        HostOp::SyncFileRange { .. } => opcode::SyncFileRange::CODE,
        HostOp::Accept(_) => opcode::Accept::CODE,
        HostOp::Connect { .. } => opcode::Connect::CODE,
        HostOp::Send { .. } => opcode::Send::CODE,
        HostOp::Recv { .. } => opcode::Recv::CODE,
        HostOp::SendMsg { .. } => opcode::SendMsg::CODE,
        HostOp::RecvMsg { .. } => opcode::RecvMsg::CODE,
        HostOp::Shutdown { .. } => opcode::Shutdown::CODE,
        HostOp::Open(_) => opcode::OpenAt::CODE,
        HostOp::Close { .. } | HostOp::CloseForeign(_) => opcode::Close::CODE,
        HostOp::Unlink { .. } => opcode::UnlinkAt::CODE,
        HostOp::Rename(_) => opcode::RenameAt::CODE,
        HostOp::Link(_) => opcode::LinkAt::CODE,
        HostOp::Symlink(_) => opcode::SymlinkAt::CODE,
        HostOp::Mkdir { .. } => opcode::MkDirAt::CODE,
        HostOp::Statx(_) => opcode::Statx::CODE,
        HostOp::Fallocate { .. } => opcode::Fallocate::CODE,
        HostOp::Ftruncate { .. } => opcode::Ftruncate::CODE,
        HostOp::Fadvise { .. } | HostOp::Readahead { .. } => opcode::Fadvise::CODE,
        HostOp::Splice(_) => opcode::Splice::CODE,
        HostOp::Poll { .. } | HostOp::EpollWait(_) => opcode::PollAdd::CODE,
        HostOp::Sleep(_) => opcode::Timeout::CODE,
        HostOp::Copy(_) | HostOp::Call(_) => return None,
    })
}

/// The operation's next step. `no_signal`: the kernel knows [`RWF_NOSIGNAL`].
///
/// A close takes its descriptor out of the operation and leaves the number in `closing`.
pub(super) fn step(slot: &mut InFlight, no_signal: bool) -> Entry {
    let (done, limit) = (slot.done_bytes as usize, slot.write_limit());
    let sleep = slot.sleep.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let asked = &mut slot.asked_bytes;
    let priority = slot.request.io_priority;
    match &mut slot.request.op {
        HostOp::Nop | HostOp::Copy(_) | HostOp::Call(_) => opcode::Nop::new().build(),
        HostOp::Read { fd, memory, at, flags } => {
            let (address, len) = memory.rest(done);
            *asked = u64::from(len);
            let at = offset(*at, done);
            opcode::Read::new(file(fd), address, len)
                .offset(at)
                .ioprio(priority)
                .rw_flags(*flags)
                .build()
        }
        HostOp::Write { fd, memory, at, flags } => {
            let (address, len) = memory.rest(done);
            let len = (len as usize).min(limit) as u32;
            *asked = u64::from(len);
            let flags = *flags | quiet(*at, no_signal);
            let at = offset(*at, done);
            opcode::Write::new(file(fd), address, len)
                .offset(at)
                .ioprio(priority)
                .rw_flags(flags)
                .build()
        }
        HostOp::ReadV { fd, memory, at, flags } => {
            let (vecs, count) = memory.rest(done, TRANSFER_MAX_BYTES);
            *asked = memory.len().saturating_sub(done) as u64;
            let at = offset(*at, done);
            opcode::Readv::new(file(fd), vecs, count)
                .offset(at)
                .ioprio(priority)
                .rw_flags(*flags)
                .build()
        }
        HostOp::WriteV { fd, memory, at, flags } => {
            let (vecs, count) = memory.rest(done, limit);
            *asked = memory.len().saturating_sub(done).min(limit) as u64;
            let flags = *flags | quiet(*at, no_signal);
            let at = offset(*at, done);
            opcode::Writev::new(file(fd), vecs, count)
                .offset(at)
                .ioprio(priority)
                .rw_flags(flags)
                .build()
        }
        HostOp::Fsync { fd, data_only } => {
            let flags = match data_only {
                true => types::FsyncFlags::DATASYNC,
                false => types::FsyncFlags::empty(),
            };
            opcode::Fsync::new(file(fd)).flags(flags).build()
        }
        HostOp::SyncFileRange { fd, offset, len, flags } => {
            opcode::SyncFileRange::new(file(fd), *len).offset(*offset).flags(*flags).build()
        }
        HostOp::Accept(accept) => {
            accept.address.len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            let address = (&raw mut accept.address.storage).cast();
            let flags = accept.flags | libc::SOCK_CLOEXEC;
            opcode::Accept::new(file(&accept.fd), address, &raw mut accept.address.len)
                .flags(flags)
                .build()
        }
        HostOp::Connect { fd, address } => {
            let storage = (&raw const address.storage).cast();
            opcode::Connect::new(file(fd), storage, address.len).build()
        }
        HostOp::Send { fd, memory, flags } => {
            let (address, len) = memory.rest(0);
            let flags = *flags | libc::MSG_NOSIGNAL;
            opcode::Send::new(file(fd), address, len).flags(flags).build()
        }
        HostOp::Recv { fd, memory, flags } => {
            let (address, len) = memory.rest(0);
            opcode::Recv::new(file(fd), address, len).flags(*flags).build()
        }
        HostOp::SendMsg { fd, message, flags } => {
            let flags = (*flags | libc::MSG_NOSIGNAL) as u32;
            opcode::SendMsg::new(file(fd), message.header(false)).flags(flags).build()
        }
        HostOp::RecvMsg { fd, message, flags } => {
            // Descriptors that come with it are ours, and nobody else's after an exec.
            let flags = (*flags | libc::MSG_CMSG_CLOEXEC) as u32;
            opcode::RecvMsg::new(file(fd), message.header(true)).flags(flags).build()
        }
        HostOp::Shutdown { fd, how } => opcode::Shutdown::new(file(fd), *how).build(),
        HostOp::Open(open) => {
            let flags = open.flags | libc::O_CLOEXEC;
            opcode::OpenAt::new(types::Fd(open.directory.as_raw_fd()), open.path.as_ptr())
                .flags(flags)
                .mode(open.mode)
                .build()
        }
        HostOp::Close { fd } => {
            let fd = fd.take().map_or(-1, IntoRawFd::into_raw_fd);
            slot.closing = fd;
            opcode::Close::new(types::Fd(fd)).build()
        }
        HostOp::CloseForeign(fd) => opcode::Close::new(file(fd)).build(),
        HostOp::Unlink { directory, path, flags } => {
            let directory = types::Fd(directory.as_raw_fd());
            opcode::UnlinkAt::new(directory, path.as_ptr()).flags(*flags).build()
        }
        HostOp::Rename(names) => opcode::RenameAt::new(
            types::Fd(names.old_directory.as_raw_fd()),
            names.old_path.as_ptr(),
            types::Fd(names.new_directory.as_raw_fd()),
            names.new_path.as_ptr(),
        )
        .flags(names.flags)
        .build(),
        HostOp::Link(names) => opcode::LinkAt::new(
            types::Fd(names.old_directory.as_raw_fd()),
            names.old_path.as_ptr(),
            types::Fd(names.new_directory.as_raw_fd()),
            names.new_path.as_ptr(),
        )
        .flags(names.flags as i32)
        .build(),
        HostOp::Symlink(link) => opcode::SymlinkAt::new(
            types::Fd(link.directory.as_raw_fd()),
            link.target.as_ptr(),
            link.path.as_ptr(),
        )
        .build(),
        HostOp::Mkdir { directory, path, mode } => {
            let directory = types::Fd(directory.as_raw_fd());
            opcode::MkDirAt::new(directory, path.as_ptr()).mode(*mode).build()
        }
        HostOp::Statx(statx) => {
            let directory = types::Fd(statx.directory.as_raw_fd());
            let status = (&raw mut statx.status).cast();
            opcode::Statx::new(directory, statx.path.as_ptr(), status)
                .flags(statx.flags)
                .mask(statx.mask)
                .build()
        }
        HostOp::Fallocate { fd, mode, offset, len } => {
            opcode::Fallocate::new(file(fd), *len).offset(*offset).mode(*mode).build()
        }
        HostOp::Ftruncate { fd, len } => opcode::Ftruncate::new(file(fd), *len).build(),
        HostOp::Fadvise { fd, offset, len, advice } => {
            opcode::Fadvise::new(file(fd), i64::from(*len), *advice).offset(*offset).build()
        }
        // What readahead(2) itself does (`ksys_readahead` in mm/readahead.c).
        HostOp::Readahead { fd, offset, len } => {
            let advice = libc::POSIX_FADV_WILLNEED;
            opcode::Fadvise::new(file(fd), i64::from(*len), advice).offset(*offset).build()
        }
        HostOp::Splice(between) => splice(between),
        HostOp::Poll { fd, events, multishot } => {
            opcode::PollAdd::new(file(fd), *events).multi(*multishot).build()
        }
        HostOp::EpollWait(wait) => {
            opcode::PollAdd::new(file(&wait.fd), libc::POLLIN as u32).build()
        }
        HostOp::Sleep(_) => timeout(sleep),
    }
}

/// A timer that rings at a time of the kernel's monotonic clock.
pub(super) fn timeout(until: *const types::Timespec) -> Entry {
    opcode::Timeout::new(until).flags(types::TimeoutFlags::ABS).build()
}

/// Ends what carries this word.
pub(super) fn cancel(word: u64) -> Entry {
    opcode::AsyncCancel::new(word).build()
}

/// A timer that rings after 10 ms.
pub(super) fn nap() -> Entry {
    static NAP: types::Timespec = types::Timespec::new().nsec(10_000_000);
    opcode::Timeout::new(&raw const NAP).build()
}

/// Waits for the workers' bell.
pub(super) fn wait_for(bell: RawFd, word: *mut u64) -> Entry {
    opcode::Read::new(types::Fd(bell), word.cast(), size_of::<u64>() as u32).build()
}

fn splice(between: &Between) -> Entry {
    // One that does not fit is an error of the caller's, which the kernel finds in any negative one
    // but -1.
    let offset =
        |offset: Option<u64>| offset.map_or(-1, |offset| i64::try_from(offset).unwrap_or(i64::MIN));
    opcode::Splice::new(
        file(&between.from),
        offset(between.from_offset),
        file(&between.to),
        offset(between.to_offset),
        between.len.min(TRANSFER_MAX_BYTES) as u32,
    )
    .flags(between.flags)
    .build()
}

fn file(fd: &impl AsRawFd) -> types::Fd {
    types::Fd(fd.as_raw_fd())
}

/// Where the rest of a transfer begins, as the kernel has it: -1 for where the file is, which no
/// offset of the caller's may become.
fn offset(at: Position, done: usize) -> u64 {
    match at {
        Position::At(offset) => offset.saturating_add(done as u64).min(u64::MAX - 1),
        Position::Current => u64::MAX,
    }
}

/// SIGPIPE is the submitter's, so the kernel is to send none. Only what has no offset can be a pipe
/// or a socket.
fn quiet(at: Position, no_signal: bool) -> i32 {
    if no_signal && at == Position::Current { RWF_NOSIGNAL } else { 0 }
}
