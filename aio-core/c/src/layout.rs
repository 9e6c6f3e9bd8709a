//! What `uaio.h` declares, as Rust sees it. A test compares the two by their offsets.

use std::ffi::{c_char, c_void};

/// `struct uaio_iocb`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UaioIocb {
    /// Comes back in the event.
    pub data: u64,
    /// One of `opcode`.
    pub opcode: u16,
    /// One of `enum uaio_priority`.
    pub priority: i16,
    /// A descriptor of the host, or a volume.
    pub fd: i32,
    /// The memory, or an array of `struct iovec`.
    pub buf: *mut c_void,
    /// Bytes, entries of the array, or events of a poll.
    pub nbytes: u64,
    /// The first byte.
    pub offset: i64,
    /// Of `enum uaio_iocb_flags`.
    pub flags: u32,
    /// An eventfd.
    pub resfd: i32,
    /// How long it may take; 0 for as long as it does.
    pub timeout_ms: u32,
    /// Out: why a list did not take it.
    pub status: i32,
    /// By which the library finds it.
    pub key: u64,
    /// How its event is told, with `F_NOTIFY`.
    pub notify: *const UaioNotify,
    /// Flags of the system call of its name.
    pub op_flags: u32,
    /// 0.
    pub reserved: u32,
}

/// `struct uaio_event`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UaioEvent {
    /// Of the iocb.
    pub data: u64,
    /// The iocb.
    pub obj: *mut UaioIocb,
    /// Bytes, or the negative of an errno.
    pub res: i64,
    /// 0, or `EVENT_MORE`.
    pub res2: i64,
}

/// `struct uaio_wait`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UaioWait {
    /// A context.
    pub context: u64,
    /// What was submitted to it.
    pub iocb: *mut UaioIocb,
}

/// `struct uaio_notify`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UaioNotify {
    /// One of `enum uaio_notify_kind`.
    pub kind: i32,
    /// The signal.
    pub signo: i32,
    /// The thread that gets it; 0 for the process.
    pub tid: i32,
    /// An eventfd.
    pub fd: i32,
    /// What comes with the signal or the call.
    pub value: *mut c_void,
    /// What is called.
    pub function: Option<extern "C" fn(*mut c_void)>,
}

/// `struct uaio_names`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UaioNames {
    /// The name that there is, or what a symbolic link says.
    pub old_path: *const c_char,
    /// The name that there will be.
    pub new_path: *const c_char,
    /// The directory that it begins in.
    pub new_fd: i32,
    /// 0.
    pub reserved: u32,
}

/// `struct uaio_statx`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UaioStatx {
    /// The name.
    pub path: *const c_char,
    /// What the kernel says.
    pub status: *mut libc::statx,
    /// Which fields are wanted.
    pub mask: u32,
    /// 0.
    pub reserved: u32,
}

/// `struct uaio_to`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UaioTo {
    /// The first byte, or -1 for where the descriptor is.
    pub offset: i64,
    /// The descriptor.
    pub fd: i32,
    /// 0.
    pub reserved: u32,
}

/// `struct uaio_call`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UaioCall {
    /// The number of the call.
    pub number: i64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

/// `enum uaio_opcode`.
pub mod opcode {
    /// Read into one buffer.
    pub const PREAD: u16 = 0;
    /// Write one buffer.
    pub const PWRITE: u16 = 1;
    /// Make everything stable.
    pub const FSYNC: u16 = 2;
    /// Make the data stable.
    pub const FDSYNC: u16 = 3;
    /// Wait for a descriptor.
    pub const POLL: u16 = 5;
    /// Nothing.
    pub const NOOP: u16 = 6;
    /// Read into several buffers.
    pub const PREADV: u16 = 7;
    /// Write several buffers.
    pub const PWRITEV: u16 = 8;
    /// Blocks are not needed.
    pub const DISCARD: u16 = 16;
    /// Blocks become zeroes.
    pub const WRITE_ZEROES: u16 = 17;
    /// Make a range stable; of the host, have it written.
    pub const SYNC_RANGE: u16 = 18;
    /// Bring a range into the cache.
    pub const READAHEAD: u16 = 19;
    /// Take a connection.
    pub const ACCEPT: u16 = 32;
    /// Make a connection.
    pub const CONNECT: u16 = 33;
    /// Send bytes.
    pub const SEND: u16 = 34;
    /// Receive bytes.
    pub const RECV: u16 = 35;
    /// Send with an address and control data.
    pub const SENDMSG: u16 = 36;
    /// Receive with an address and control data.
    pub const RECVMSG: u16 = 37;
    /// End one or both directions.
    pub const SHUTDOWN: u16 = 38;
    /// Wait for a descriptor, again and again.
    pub const POLL_MULTISHOT: u16 = 40;
    /// Wait for the events of an epoll descriptor.
    pub const EPOLL_WAIT: u16 = 41;
    /// Open a name.
    pub const OPENAT: u16 = 48;
    /// Close a descriptor.
    pub const CLOSE: u16 = 49;
    /// Take a name away.
    pub const UNLINKAT: u16 = 50;
    /// Give another name.
    pub const RENAMEAT: u16 = 51;
    /// Give one more name.
    pub const LINKAT: u16 = 52;
    /// Make a symbolic link.
    pub const SYMLINKAT: u16 = 53;
    /// Make a directory.
    pub const MKDIRAT: u16 = 54;
    /// Ask what a name names.
    pub const STATX: u16 = 55;
    /// Allocate or free blocks of a file.
    pub const FALLOCATE: u16 = 56;
    /// Set the length of a file.
    pub const FTRUNCATE: u16 = 57;
    /// Say how a file will be used.
    pub const FADVISE: u16 = 58;
    /// Move bytes from or to a pipe.
    pub const SPLICE: u16 = 59;
    /// Copy bytes from file to file.
    pub const COPY: u16 = 60;
    /// Make another system call.
    pub const CALL: u16 = 64;
}

/// `UAIO_F_VOLUME`.
pub const F_VOLUME: u32 = 1;
/// `UAIO_F_RESFD`.
pub const F_RESFD: u32 = 2;
/// `UAIO_F_NOTIFY`.
pub const F_NOTIFY: u32 = 4;
/// `UAIO_F_LINK`.
pub const F_LINK: u32 = 8;
/// `UAIO_EVENT_MORE`.
pub const EVENT_MORE: i64 = 1;
/// `UAIO_O_DIRECT`.
pub const O_DIRECT: u32 = 1;
/// `UAIO_O_DSYNC`.
pub const O_DSYNC: u32 = 2;
/// `UAIO_LIST_WAIT`.
pub const LIST_WAIT: i32 = 0;
/// `UAIO_LIST_NOWAIT`.
pub const LIST_NOWAIT: i32 = 1;
