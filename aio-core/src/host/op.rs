//! What the engine does: operations that own their memory and descriptors, out and back.

use std::ffi::CString;
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::io::Errno;
use uaio_driver::Token;

use super::call::Call;
use super::credentials::Credentials;
use super::memory::{Descriptor, ForeignFd, Memory, Vectored};
use super::settled::Settled;
use super::socket::{Message, SocketAddress};

/// Where in a file a transfer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// At this byte (pread, pwrite). A short transfer of a file or block device is gone on with; see
    /// [`HostOp::Read`].
    At(u64),
    /// Where the descriptor is, which moves it (read, write): the only one for sockets, pipes,
    /// terminals and eventfds. What the kernel moves at once is the result.
    Current,
}

/// The directory that a relative name begins in.
#[derive(Clone, Debug)]
pub enum Directory {
    /// The working directory of the submitter, as it is when the request is settled.
    Current,
    /// This one.
    At(Descriptor),
}

impl Directory {
    pub(super) fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Current => libc::AT_FDCWD,
            Self::At(fd) => fd.as_raw_fd(),
        }
    }
}

/// accept4(2).
#[derive(Debug)]
pub struct Accept {
    /// The socket that listens.
    pub fd: Descriptor,
    /// `SOCK_NONBLOCK`; `SOCK_CLOEXEC` is always set.
    pub flags: i32,
    /// Who connected, afterwards.
    pub address: SocketAddress,
    /// The connection, afterwards. It is closed with this unless it is taken out.
    pub accepted: Option<OwnedFd>,
}

/// openat(2).
#[derive(Debug)]
pub struct Open {
    /// Where a relative `path` begins.
    pub directory: Directory,
    /// The name.
    pub path: CString,
    /// `O_RDONLY` and so on; `O_CLOEXEC` is always set.
    pub flags: i32,
    /// Permissions of a file that is created, before the umask.
    pub mode: u32,
    /// The file, afterwards. It is closed with this unless it is taken out.
    pub opened: Option<OwnedFd>,
}

/// Two names: renameat2(2), linkat(2).
#[derive(Debug)]
pub struct Names {
    /// Where a relative `old_path` begins.
    pub old_directory: Directory,
    /// The name that there is.
    pub old_path: CString,
    /// Where a relative `new_path` begins.
    pub new_directory: Directory,
    /// The name that there will be.
    pub new_path: CString,
    /// `RENAME_NOREPLACE` …, `AT_SYMLINK_FOLLOW` ….
    pub flags: u32,
}

/// symlinkat(2).
#[derive(Debug)]
pub struct Symlink {
    /// What it says.
    pub target: CString,
    /// Where a relative `path` begins.
    pub directory: Directory,
    /// The name of the link.
    pub path: CString,
}

/// statx(2).
pub struct Statx {
    /// Where a relative `path` begins.
    pub directory: Directory,
    /// The name; empty with `AT_EMPTY_PATH` for the directory descriptor itself.
    pub path: CString,
    /// `AT_EMPTY_PATH`, `AT_SYMLINK_NOFOLLOW` ….
    pub flags: i32,
    /// Which fields are wanted (`STATX_BASIC_STATS` …).
    pub mask: u32,
    /// What the kernel said, afterwards.
    pub status: libc::statx,
}

impl Statx {
    /// Asks for the fields of `mask` of what the name names.
    pub fn new(directory: Directory, path: CString, flags: i32, mask: u32) -> Self {
        Self { directory, path, flags, mask, status: super::memory::no_status() }
    }
}

impl fmt::Debug for Statx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Statx")
            .field("path", &self.path)
            .field("stx_mode", &self.status.stx_mode)
            .field("stx_size", &self.status.stx_size)
            .finish_non_exhaustive()
    }
}

/// Between two descriptors: splice(2), copy_file_range(2).
#[derive(Debug)]
pub struct Between {
    /// Where the bytes are from.
    pub from: Descriptor,
    /// At which byte; `None` for where the descriptor is, and for a pipe.
    pub from_offset: Option<u64>,
    /// Where they go.
    pub to: Descriptor,
    /// At which byte; `None` for where the descriptor is, and for a pipe.
    pub to_offset: Option<u64>,
    /// How many bytes at most. The result says how many; 0 at the end of the file.
    pub len: usize,
    /// `SPLICE_F_MOVE` …; 0 for a copy.
    pub flags: u32,
}

/// epoll_wait(2) as an operation.
pub struct EpollWait {
    /// The epoll descriptor.
    pub fd: Descriptor,
    /// The events: as many as it is long at most, as many as the result says afterwards.
    pub events: Vec<libc::epoll_event>,
}

impl fmt::Debug for EpollWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EpollWait").field("fd", &self.fd).finish_non_exhaustive()
    }
}

/// An operation on descriptors, sockets, pipes, names or the kernel itself.
///
/// Its result is what the system call of the same name returns, or its errno.
#[derive(Debug)]
#[non_exhaustive]
pub enum HostOp {
    /// Nothing: done when the engine is polled.
    Nop,
    /// pread(2), read(2), preadv2(2).
    ///
    /// **Short transfers.** With [`Position::At`] one that is short is gone on with until the memory
    /// is full, the file ends (a transfer of 0 bytes) or the kernel says an error; of anything but a
    /// regular file or block device it is the result. When anything was
    /// moved the result is how much; an error or cancel after that is not told.
    Read {
        /// What is read.
        fd: Descriptor,
        /// Where to.
        memory: Memory,
        /// Where from.
        at: Position,
        /// `RWF_NOWAIT`, `RWF_HIPRI` ….
        flags: i32,
    },
    /// pwrite(2), write(2), pwritev2(2); short ones as for [`Read`](HostOp::Read).
    Write {
        /// What is written.
        fd: Descriptor,
        /// What with.
        memory: Memory,
        /// Where to.
        at: Position,
        /// `RWF_DSYNC`, `RWF_SYNC`, `RWF_APPEND` ….
        flags: i32,
    },
    /// The same as [`Read`](HostOp::Read) into several buffers.
    ReadV {
        /// What is read.
        fd: Descriptor,
        /// Where to.
        memory: Vectored,
        /// Where from.
        at: Position,
        /// `RWF_NOWAIT`, `RWF_HIPRI` ….
        flags: i32,
    },
    /// The same as [`Write`](HostOp::Write) from several buffers.
    WriteV {
        /// What is written.
        fd: Descriptor,
        /// What with.
        memory: Vectored,
        /// Where to.
        at: Position,
        /// `RWF_DSYNC`, `RWF_SYNC`, `RWF_APPEND` ….
        flags: i32,
    },
    /// fsync(2), or fdatasync(2).
    Fsync {
        /// What is made stable.
        fd: Descriptor,
        /// Only what is needed to read the data again: fdatasync.
        data_only: bool,
    },
    /// sync_file_range(2), which makes nothing stable: it starts or awaits writing to the device.
    SyncFileRange {
        /// The file.
        fd: Descriptor,
        /// The first byte.
        offset: u64,
        /// How many bytes; 0 for all after it.
        len: u32,
        /// `SYNC_FILE_RANGE_WRITE` ….
        flags: u32,
    },
    /// A connection of a socket that listens; the result is its number.
    Accept(Box<Accept>),
    /// connect(2).
    Connect {
        /// The socket.
        fd: Descriptor,
        /// Whom to.
        address: Box<SocketAddress>,
    },
    /// send(2).
    Send {
        /// The socket.
        fd: Descriptor,
        /// What is sent.
        memory: Memory,
        /// `MSG_DONTWAIT`, `MSG_NOSIGNAL` ….
        flags: i32,
    },
    /// recv(2).
    Recv {
        /// The socket.
        fd: Descriptor,
        /// Where to.
        memory: Memory,
        /// `MSG_WAITALL`, `MSG_PEEK` ….
        flags: i32,
    },
    /// sendmsg(2).
    SendMsg {
        /// The socket.
        fd: Descriptor,
        /// What is sent, and whom to.
        message: Box<Message>,
        /// `MSG_DONTWAIT`, `MSG_NOSIGNAL` ….
        flags: i32,
    },
    /// recvmsg(2).
    RecvMsg {
        /// The socket.
        fd: Descriptor,
        /// Where to, and who from.
        message: Box<Message>,
        /// `MSG_PEEK`, `MSG_TRUNC` ….
        flags: i32,
    },
    /// shutdown(2).
    Shutdown {
        /// The socket.
        fd: Descriptor,
        /// `SHUT_RD` ….
        how: i32,
    },
    /// openat(2); the result is the number of the new descriptor.
    Open(Box<Open>),
    /// close(2) of a descriptor that is ours alone. A cancelled one comes back open.
    Close {
        /// What is closed; `None` is EBADF.
        fd: Option<OwnedFd>,
    },
    /// close(2) of a descriptor that its owner gives up by number. A cancelled one stays open.
    CloseForeign(ForeignFd),
    /// unlinkat(2).
    Unlink {
        /// Where a relative `path` begins.
        directory: Directory,
        /// The name.
        path: CString,
        /// `AT_REMOVEDIR`.
        flags: i32,
    },
    /// renameat2(2).
    Rename(Box<Names>),
    /// linkat(2).
    Link(Box<Names>),
    /// symlinkat(2).
    Symlink(Box<Symlink>),
    /// mkdirat(2).
    Mkdir {
        /// Where a relative `path` begins.
        directory: Directory,
        /// The name.
        path: CString,
        /// Permissions, before the umask.
        mode: u32,
    },
    /// statx(2).
    Statx(Box<Statx>),
    /// fallocate(2).
    Fallocate {
        /// The file.
        fd: Descriptor,
        /// `FALLOC_FL_PUNCH_HOLE` ….
        mode: i32,
        /// The first byte.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// ftruncate(2).
    Ftruncate {
        /// The file.
        fd: Descriptor,
        /// Its length afterwards, in bytes.
        len: u64,
    },
    /// posix_fadvise(2).
    Fadvise {
        /// The file.
        fd: Descriptor,
        /// The first byte.
        offset: u64,
        /// How many bytes; 0 for all after it.
        len: u32,
        /// `POSIX_FADV_SEQUENTIAL` ….
        advice: i32,
    },
    /// readahead(2): reads into the kernel's page cache. Done when reading has begun, as there.
    Readahead {
        /// The file.
        fd: Descriptor,
        /// The first byte.
        offset: u64,
        /// How many bytes.
        len: u32,
    },
    /// splice(2): one of the two is a pipe.
    Splice(Box<Between>),
    /// copy_file_range(2).
    Copy(Box<Between>),
    /// poll(2) of one descriptor; the result is the events that are there.
    Poll {
        /// Any descriptor that can be polled.
        fd: Descriptor,
        /// `POLLIN` …, in the low 16 bits, and `EPOLLEXCLUSIVE`, `EPOLLET` of epoll_ctl(2).
        events: u32,
        /// Goes on after the first; see [`HostDone::more`].
        multishot: bool,
    },
    /// epoll_wait(2); the result is the number of events. A [timeout](HostRequest::timeout) gives 0
    /// events rather than an error, as there.
    EpollWait(Box<EpollWait>),
    /// Nothing for so long; the result is 0.
    Sleep(Duration),
    /// Any other system call.
    Call(Box<Call>),
}

impl HostOp {
    /// The descriptor that it is on, by which [`Engine::cancel_descriptor`] finds it: for two, the
    /// one that bytes are from; for names, none.
    ///
    /// [`Engine::cancel_descriptor`]: super::Engine::cancel_descriptor
    pub fn descriptor(&self) -> Option<&Descriptor> {
        match self {
            Self::Read { fd, .. }
            | Self::Write { fd, .. }
            | Self::ReadV { fd, .. }
            | Self::WriteV { fd, .. }
            | Self::Fsync { fd, .. }
            | Self::SyncFileRange { fd, .. }
            | Self::Connect { fd, .. }
            | Self::Send { fd, .. }
            | Self::Recv { fd, .. }
            | Self::SendMsg { fd, .. }
            | Self::RecvMsg { fd, .. }
            | Self::Shutdown { fd, .. }
            | Self::Fallocate { fd, .. }
            | Self::Ftruncate { fd, .. }
            | Self::Fadvise { fd, .. }
            | Self::Readahead { fd, .. }
            | Self::Poll { fd, .. } => Some(fd),
            Self::Accept(accept) => Some(&accept.fd),
            Self::Splice(between) | Self::Copy(between) => Some(&between.from),
            Self::EpollWait(wait) => Some(&wait.fd),
            Self::Call(call) => call.descriptor(),
            Self::Nop
            | Self::Open(_)
            | Self::Close { .. }
            | Self::CloseForeign(_)
            | Self::Unlink { .. }
            | Self::Rename(_)
            | Self::Link(_)
            | Self::Symlink(_)
            | Self::Mkdir { .. }
            | Self::Statx(_)
            | Self::Sleep(_) => None,
        }
    }
}

impl HostOp {
    /// Whether all memory that the kernel gets addresses of is the operation's own.
    pub(super) fn owns_memory(&self) -> bool {
        match self {
            Self::Read { memory, .. }
            | Self::Write { memory, .. }
            | Self::Send { memory, .. }
            | Self::Recv { memory, .. } => memory.is_owned(),
            Self::ReadV { memory, .. } | Self::WriteV { memory, .. } => memory.is_owned(),
            Self::SendMsg { message, .. } | Self::RecvMsg { message, .. } => message.is_owned(),
            _ => true,
        }
    }
}

/// An operation and how it is to be done.
#[derive(Debug)]
pub struct HostRequest {
    /// What is to be done.
    pub op: HostOp,
    /// How long it may take from its [start](super::Engine::start) on; past it, it is cancelled, and
    /// ends with ETIMEDOUT if that succeeds.
    pub timeout: Option<Duration>,
    /// Issue it on a thread of the kernel's even if it might be done at once. For reads of files that
    /// are not in the page cache, on whose metadata an issue can block; costs a few microseconds.
    pub away: bool,
    /// With what I/O priority a read or write goes to the disk, as `ioprio_set(2)` has it: class and
    /// level. 0 for that of the thread that commits; one that the credentials do not allow is EPERM.
    /// Other operations have none.
    pub io_priority: u16,
    /// The first thing that the kernel says is the answer: a short transfer is not gone on with, one that was
    /// interrupted not begun anew. So a descriptor by number is not looked at again once the kernel has the operation
    /// ([`Engine::is_all_taken`](super::Engine::is_all_taken)), and its owner may close it.
    pub once: bool,
    /// As whom; `None` for whoever commits.
    pub credentials: Option<Credentials>,
    /// What else was taken down of the submitter.
    pub(super) settled: Option<Settled>,
}

impl From<HostOp> for HostRequest {
    fn from(op: HostOp) -> Self {
        let (timeout, away, io_priority, once) = (None, false, 0, false);
        Self { op, timeout, away, io_priority, once, credentials: None, settled: None }
    }
}

impl HostRequest {
    /// The same with a [timeout](HostRequest::timeout).
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    /// The same, issued [away](HostRequest::away).
    #[must_use]
    pub fn away(self) -> Self {
        Self { away: true, ..self }
    }

    /// The same with an [I/O priority](HostRequest::io_priority).
    #[must_use]
    pub fn with_io_priority(self, io_priority: u16) -> Self {
        Self { io_priority, ..self }
    }

    /// The same, issued [once](HostRequest::once).
    #[must_use]
    pub fn once(self) -> Self {
        Self { once: true, ..self }
    }

    /// The same as somebody.
    #[must_use]
    pub fn with_credentials(self, credentials: Credentials) -> Self {
        Self { credentials: Some(credentials), ..self }
    }
}

/// An operation that is done, or one of several answers of one.
#[derive(Debug)]
#[must_use = "the operation's memory and descriptors are in it"]
pub struct HostDone {
    /// The word that it was started with.
    pub token: Token,
    /// What the system call of the same name returns. ECANCELED after a cancel and ETIMEDOUT after a
    /// timeout mean that it had no effect.
    pub result: Result<u64, Errno>,
    /// The operation, with its last answer.
    pub op: Option<HostOp>,
}

impl HostDone {
    /// Whether more answers of this operation are to come: of a multishot poll only.
    pub fn more(&self) -> bool {
        self.op.is_none()
    }
}

/// Why an operation was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostRefusal {
    /// All slots of the engine are taken: EAGAIN.
    #[error("as many operations are in flight as the engine takes")]
    Full,
    /// This kernel's io_uring has no such operation: ENOSYS.
    #[error("the kernel's io_uring cannot do this operation")]
    Unsupported,
    /// It is for the worker pool, and the engine was made without: ENOSYS.
    #[error("the operation needs a worker, and the engine has none")]
    NoWorkers,
    /// Its credentials were taken by another engine: EINVAL.
    #[error("the credentials are of another engine")]
    ForeignCredentials,
    /// The ring has failed for good: EIO.
    #[error("the ring has failed")]
    Failed,
}

impl HostRefusal {
    /// The positive errno that says this to a program.
    pub fn errno(self) -> i32 {
        match self {
            Self::Full => libc::EAGAIN,
            Self::Unsupported | Self::NoWorkers => libc::ENOSYS,
            Self::ForeignCredentials => libc::EINVAL,
            Self::Failed => libc::EIO,
        }
    }
}

/// A request that was not started, whole, and why.
#[derive(Debug)]
pub struct HostRefused {
    /// The request as it was.
    pub request: HostRequest,
    /// Why.
    pub reason: HostRefusal,
}
