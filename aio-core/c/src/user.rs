//! Memory of the caller's, by address: the only place that looks at it.
//!
//! Null and the kernel's half of the address space are refused. Any other address is the caller's word,
//! as with every library of C.
#![expect(unsafe_code, reason = "a caller in C gives addresses")]

use std::ffi::{CStr, CString, c_char, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{null, null_mut};

use rustix::fs::readlinkat;

use crate::Errno;
use crate::layout::{UaioCall, UaioIocb, UaioNames, UaioStatx, UaioTo};

/// The first address that no program has: on arm64 all of 48 bits are a program's, elsewhere (x86-64) half of
/// them. A larger address space of 52 or 57 bits is given only to who asks for it.
const USER_END: usize = if cfg!(target_arch = "aarch64") { 1 << 48 } else { 1 << 47 };
/// The longest name with its zero, as Linux has it.
const PATH_MAX: usize = 4096;
/// No more of a name is copied at once: the smallest page.
const PATH_CHUNK: usize = 4096;

/// An array of the caller's that may be read, and written where it says so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    address: usize,
    len_bytes: usize,
}

impl Span {
    /// `count` values of `T` at `address`.
    pub(crate) fn of<T>(address: *const T, count: usize) -> Result<Self, Errno> {
        let len_bytes = count.checked_mul(size_of::<T>()).ok_or(Errno::FAULT)?;
        let address = address.expose_provenance();
        let end = address.checked_add(len_bytes).ok_or(Errno::FAULT)?;
        if len_bytes > 0 && (address == 0 || end > USER_END) {
            return Err(Errno::FAULT);
        }
        Ok(Self { address, len_bytes })
    }

    pub(crate) fn len(self) -> usize {
        self.len_bytes
    }

    /// The first `len` bytes of it, at most.
    pub(crate) fn head(self, len: usize) -> Self {
        Self { len_bytes: self.len_bytes.min(len), ..self }
    }

    /// Appends its bytes to `out`, which has room.
    pub(crate) fn append_to(self, out: &mut Vec<u8>) {
        let from = std::ptr::with_exposed_provenance::<u8>(self.address);
        let at = out.len();
        out.resize(at + self.len_bytes, 0);
        // SAFETY: the caller of the library says that these bytes are its own and may be read until
        // the command is over; `out` is memory of ours of that length, so the two do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from, out[at..].as_mut_ptr(), self.len_bytes) };
    }

    /// Puts `bytes` at its beginning; there are not more than it has.
    pub(crate) fn put(self, bytes: &[u8]) {
        assert!(bytes.len() <= self.len_bytes, "more than was asked for");
        let to = std::ptr::with_exposed_provenance_mut::<u8>(self.address);
        // SAFETY: the caller says that these bytes are its own and nobody else uses them until the
        // event; `bytes` is memory of ours.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }
}

/// Value `at` of an array of the caller's, which [`Span::of`] has looked at.
pub(crate) fn read<T: Copy>(array: *const T, at: usize) -> Result<T, Errno> {
    Span::of(array, at + 1)?;
    // SAFETY: not null and not the kernel's; the caller says that the array is its own, and so long.
    // Unaligned, because nothing checks that.
    Ok(unsafe { array.wrapping_add(at).read_unaligned() })
}

/// Puts value `at` into an array of the caller's.
pub(crate) fn write<T: Copy>(array: *mut T, at: usize, value: T) -> Result<(), Errno> {
    Span::of(array.cast_const(), at + 1)?;
    // SAFETY: as for `read`, and the caller says that it may be written.
    unsafe { array.wrapping_add(at).write_unaligned(value) };
    Ok(())
}

/// Puts the key into an iocb.
pub(crate) fn set_key(iocb: *mut UaioIocb, key: u64) -> Result<(), Errno> {
    let mut value = read(iocb, 0)?;
    value.key = key;
    write(iocb, 0, value)
}

/// Puts the status into an iocb.
pub(crate) fn set_status(iocb: *mut UaioIocb, status: i32) -> Result<(), Errno> {
    let mut value = read(iocb, 0)?;
    value.status = status;
    write(iocb, 0, value)
}

/// A name of the caller's, which the kernel copies for us: EFAULT rather than a crash, as with the system
/// calls that take one.
pub(crate) fn path(text: *const c_char) -> Result<CString, Errno> {
    let mut bytes = Vec::new();
    let mut chunk = [0; PATH_CHUNK];
    while bytes.len() < PATH_MAX {
        let at = text.wrapping_byte_add(bytes.len());
        // Not across the end of a page, behind which there may be nothing.
        let len = PATH_CHUNK - at.addr() % PATH_CHUNK;
        Span::of(at, len)?;
        copy_in(at.cast(), &mut chunk[..len])?;
        if let Some(end) = chunk[..len].iter().position(|byte| *byte == 0) {
            bytes.extend_from_slice(&chunk[..end]);
            let short = bytes.len() < PATH_MAX;
            let path = CString::new(bytes).map_err(|_| Errno::INVAL)?;
            return if short { Ok(path) } else { Err(Errno::NAMETOOLONG) };
        }
        bytes.extend_from_slice(&chunk[..len]);
    }
    Err(Errno::NAMETOOLONG)
}

/// A structure of the caller's, copied as [`path`] is.
pub(crate) fn fetch<T: Plain>(from: *const T) -> Result<T, Errno> {
    Span::of(from, 1)?;
    let mut value = T::ZERO;
    let start = (&raw mut value).cast::<u8>();
    // SAFETY: the bytes of a value of ours, without padding and any bytes being one (`Plain`).
    let bytes = unsafe { std::slice::from_raw_parts_mut(start, size_of::<T>()) };
    copy_in(from.cast(), bytes)?;
    Ok(value)
}

/// How many bytes a list of `count` `struct iovec` names, copied as [`path`] is.
pub(crate) fn total(list: Span, count: usize) -> Result<usize, Errno> {
    let mut bytes = vec![0; list.len()];
    if count > 0 {
        copy_in(std::ptr::with_exposed_provenance(list.address), &mut bytes)?;
    }
    let (words, _) = bytes.as_chunks::<{ size_of::<usize>() }>();
    // The length is the second word of each.
    const { assert!(std::mem::offset_of!(libc::iovec, iov_len) == size_of::<usize>()) };
    let lens = words.iter().skip(1).step_by(2).map(|word| usize::from_ne_bytes(*word));
    Ok(lens.fold(0, usize::saturating_add))
}

/// Puts structures into the caller's memory: EFAULT rather than a crash.
pub(crate) fn deliver<T: Copy>(to: *mut T, values: &[T]) -> Result<(), Errno> {
    if values.is_empty() {
        return Ok(());
    }
    let len = Span::of(to.cast_const(), values.len())?.len();
    let local = iovec(values.as_ptr().cast_mut().cast(), len);
    let remote = iovec(to.cast(), len);
    let process = std::process::id().cast_signed();
    // SAFETY: the kernel copies from values of ours to where the caller said, as far as that may be
    // written, which the caller says is its own.
    let moved =
        unsafe { libc::process_vm_writev(process, &raw const local, 1, &raw const remote, 1, 0) };
    if whole(moved, len)? {
        return Ok(());
    }
    values.iter().enumerate().try_for_each(|(at, value)| write(to, at, *value))
}

/// Copies bytes of the caller's.
fn copy_in(from: *const u8, out: &mut [u8]) -> Result<(), Errno> {
    let local = iovec(out.as_mut_ptr().cast(), out.len());
    let remote = iovec(from.cast_mut().cast(), out.len());
    let process = std::process::id().cast_signed();
    // SAFETY: the kernel copies to memory of ours, as far as there is something to be read.
    let moved =
        unsafe { libc::process_vm_readv(process, &raw const local, 1, &raw const remote, 1, 0) };
    if !whole(moved, out.len())? {
        // SAFETY: as for `Span::append_to`; nobody checks it here.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
    }
    Ok(())
}

/// Whether the kernel copied it all; not, where a filter forbids it to copy anything.
fn whole(moved: isize, wanted: usize) -> Result<bool, Errno> {
    match usize::try_from(moved) {
        Ok(moved) if moved == wanted => Ok(true),
        Ok(_) => Err(Errno::FAULT),
        Err(_) => match std::io::Error::last_os_error().raw_os_error() {
            Some(libc::ENOSYS | libc::EPERM | libc::EACCES) => Ok(false),
            errno => Err(errno.map_or(Errno::FAULT, Errno)),
        },
    }
}

fn iovec(address: *mut c_void, len: usize) -> libc::iovec {
    libc::iovec { iov_base: address, iov_len: len }
}

/// Structures of `uaio.h` without padding, of which any bytes are a value.
///
/// # Safety
///
/// That is so.
pub(crate) unsafe trait Plain: Copy {
    const ZERO: Self;
}

// SAFETY: two pointers, two words of 32 bits.
unsafe impl Plain for UaioNames {
    const ZERO: Self = Self { old_path: null(), new_path: null(), new_fd: 0, reserved: 0 };
}

// SAFETY: two pointers, two words of 32 bits.
unsafe impl Plain for UaioStatx {
    const ZERO: Self = Self { path: null(), status: null_mut(), mask: 0, reserved: 0 };
}

// SAFETY: a word of 64 bits and two of 32.
unsafe impl Plain for UaioTo {
    const ZERO: Self = Self { offset: 0, fd: 0, reserved: 0 };
}

// SAFETY: seven words of 64 bits.
unsafe impl Plain for UaioCall {
    const ZERO: Self = Self { number: 0, arguments: [0; 6] };
}

/// A string of the caller's.
pub(crate) fn string(text: *const c_char) -> Result<String, Errno> {
    Span::of(text, 1)?;
    // SAFETY: not null; the caller says that it ends with a NUL and does not change meanwhile.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map(str::to_owned).map_err(|_| Errno::INVAL)
}

/// A descriptor of its own for what `fd` is.
pub(crate) fn duplicate(fd: i32) -> Result<OwnedFd, Errno> {
    if fd < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: not -1; it is used for this one call, which says EBADF if it is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_dupfd_cloexec(borrowed.as_fd(), 0).map_err(Errno::from)
}

/// A descriptor of its own for an eventfd.
pub(crate) fn eventfd(fd: i32) -> Result<OwnedFd, Errno> {
    let own = duplicate(fd)?;
    let link = format!("/proc/self/fd/{}", own.as_raw_fd());
    let name = readlinkat(rustix::fs::CWD, link, Vec::new())?;
    // As eventfd_ctx_fdget in fs/eventfd.c: EINVAL for any other kind of descriptor.
    if name.as_bytes() == b"anon_inode:[eventfd]" { Ok(own) } else { Err(Errno::INVAL) }
}

/// Whether `fd` is the same open file as one of ours, as far as the kernel says (kcmp(2)).
pub(crate) fn is_same_file(own: BorrowedFd<'_>, fd: i32) -> bool {
    const KCMP_FILE: i32 = 0;
    let process = std::process::id();
    // SAFETY: compares two descriptors of this process; any number may be given.
    let order =
        unsafe { libc::syscall(libc::SYS_kcmp, process, process, KCMP_FILE, own.as_raw_fd(), fd) };
    order == 0
}

/// Whether `fd` is open.
pub(crate) fn is_open(fd: i32) -> Result<(), Errno> {
    if fd < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: as above.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_getfd(borrowed).map(drop).map_err(Errno::from)
}
