//! Structures of the kernel's AIO: `include/uapi/linux/aio_abi.h`, and the ring of `fs/aio.c`.
#![expect(unsafe_code, reason = "says of which structures any bytes are a value")]

use crate::user::Plain;

/// `struct iocb`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Iocb {
    pub(crate) data: u64,
    #[cfg(target_endian = "little")]
    pub(crate) key: u32,
    pub(crate) rw_flags: i32,
    #[cfg(target_endian = "big")]
    pub(crate) key: u32,
    pub(crate) opcode: u16,
    pub(crate) reqprio: i16,
    pub(crate) fildes: i32,
    pub(crate) buf: u64,
    pub(crate) nbytes: u64,
    pub(crate) offset: i64,
    pub(crate) reserved2: u64,
    pub(crate) flags: u32,
    pub(crate) resfd: i32,
}

const _: () = assert!(size_of::<Iocb>() == 64);
const _: () = assert!(std::mem::offset_of!(Iocb, key) == 8);
const _: () = assert!(std::mem::offset_of!(Iocb, opcode) == 16);
const _: () = assert!(std::mem::offset_of!(Iocb, buf) == 24);
const _: () = assert!(std::mem::offset_of!(Iocb, offset) == 40);
const _: () = assert!(std::mem::offset_of!(Iocb, flags) == 56);

// SAFETY: numbers, without padding.
unsafe impl Plain for Iocb {}
// SAFETY: four numbers.
unsafe impl Plain for IoEvent {}

/// `IOCB_CMD_…`.
pub(crate) mod opcode {
    pub(crate) const PREAD: u16 = 0;
    pub(crate) const PWRITE: u16 = 1;
    pub(crate) const FSYNC: u16 = 2;
    pub(crate) const FDSYNC: u16 = 3;
    pub(crate) const POLL: u16 = 5;
    pub(crate) const NOOP: u16 = 6;
    pub(crate) const PREADV: u16 = 7;
    pub(crate) const PWRITEV: u16 = 8;
}

/// `IOCB_FLAG_RESFD`: `resfd` is an eventfd.
pub(crate) const FLAG_RESFD: u32 = 1;
/// `IOCB_FLAG_IOPRIO`: `reqprio` is a priority.
pub(crate) const FLAG_IOPRIO: u32 = 2;

/// `struct io_event`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct IoEvent {
    pub(crate) data: u64,
    pub(crate) obj: u64,
    pub(crate) res: i64,
    pub(crate) res2: i64,
}

const _: () = assert!(size_of::<IoEvent>() == 32);

/// What the magic number of a ring is.
pub(crate) const RING_MAGIC: u32 = 0xa10a_10a1;
/// Bytes before the events; the layout says so itself.
pub(crate) const RING_HEADER_BYTES: usize = 32;

/// Where the words of `struct aio_ring` are, in words of 32 bits.
pub(crate) mod header {
    pub(crate) const ID: usize = 0;
    pub(crate) const NR: usize = 1;
    pub(crate) const HEAD: usize = 2;
    pub(crate) const TAIL: usize = 3;
    pub(crate) const MAGIC: usize = 4;
    pub(crate) const COMPAT_FEATURES: usize = 5;
    pub(crate) const INCOMPAT_FEATURES: usize = 6;
    pub(crate) const HEADER_LENGTH: usize = 7;
}

/// The system call io_pgetevents(2), which the libc crate has not on every architecture.
#[cfg(target_arch = "x86_64")]
pub(crate) const SYS_IO_PGETEVENTS: std::ffi::c_long = 333;
#[cfg(target_arch = "aarch64")]
pub(crate) const SYS_IO_PGETEVENTS: std::ffi::c_long = 292;

/// `struct __aio_sigset` of io_pgetevents(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct AioSigset {
    pub(crate) sigmask: usize,
    pub(crate) sigsetsize: usize,
}

// SAFETY: two numbers.
unsafe impl Plain for AioSigset {}
