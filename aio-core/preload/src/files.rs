//! What changes the meaning of a descriptor's number: close(2), dup2(2), dup3(2), close_range(2), also by syscall(2);
//! see [`guard`](crate::serve::guard). And syscall(2) itself.
//!
//! `syscall` is variadic in C, and here it has seven arguments. On x86-64 and arm64 a variadic function of Linux finds
//! integers where any other does, in registers and then on the stack; those that the caller did not give are whatever is
//! there, and the kernel does not look at them either.
//!
//! close(2) is a point of cancellation (pthreads(7)): the C library's own function is called, and may unwind this one.
#![expect(unsafe_code, reason = "symbols are exported by their names, and the C library's called")]

use std::ffi::{c_int, c_long, c_uint};

use crate::libaio::layout::SYS_IO_PGETEVENTS;
use crate::real::{self, Next};
use crate::serve::process;

type Close = extern "C-unwind" fn(c_int) -> c_int;

/// Waits until the kernel has what was submitted on this number.
#[inline]
fn settle(fd: c_int) {
    if let Some(service) = process::running()
        && !service.guard.is_free(fd)
    {
        service.before_close(fd);
    }
}

/// The same for a range of numbers, of which only few have anything in progress.
fn settle_range(first: c_uint, last: c_uint) {
    let Some(service) = process::running() else { return };
    let last = last.min(c_uint::try_from(c_int::MAX).unwrap_or(last));
    // No number is larger than the limit, and none with anything in progress than what was submitted.
    for fd in first..=last.min(first.saturating_add(service.guard.highest())) {
        settle(fd.cast_signed());
    }
}

/// close(2).
// SAFETY: it stands before the C library's, and calls it.
#[unsafe(no_mangle)]
pub(crate) extern "C-unwind" fn close(fd: c_int) -> c_int {
    static NEXT: Next = Next::new(c"close");
    settle(fd);
    let next = NEXT.get();
    if next.is_null() {
        return real::with_errno(real::raw(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0])) as c_int;
    }
    // SAFETY: the C library's function of that name.
    let next = unsafe { std::mem::transmute::<*mut std::ffi::c_void, Close>(next) };
    next(fd)
}

/// dup2(2).
// SAFETY: it stands before the C library's, and makes the same system call.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn dup2(old: c_int, new: c_int) -> c_int {
    if old != new {
        settle(new);
    }
    #[cfg(target_arch = "x86_64")]
    let result = real::raw(libc::SYS_dup2, [old as usize, new as usize, 0, 0, 0, 0]);
    // arm64 has no dup2: dup3 refuses equal numbers, for which dup2 only looks whether there is such a one.
    #[cfg(target_arch = "aarch64")]
    let result = if old == new {
        let get = libc::F_GETFD as usize;
        real::raw(libc::SYS_fcntl, [old as usize, get, 0, 0, 0, 0]).map(|_| new as usize)
    } else {
        real::raw(libc::SYS_dup3, [old as usize, new as usize, 0, 0, 0, 0])
    };
    real::with_errno(result) as c_int
}

/// dup3(2).
// SAFETY: as for `dup2`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int {
    if old != new {
        settle(new);
    }
    let arguments = [old as usize, new as usize, flags as usize, 0, 0, 0];
    real::with_errno(real::raw(libc::SYS_dup3, arguments)) as c_int
}

/// close_range(2).
// SAFETY: as for `dup2`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    settle_range(first, last);
    let arguments = [first as usize, last as usize, flags as usize, 0, 0, 0];
    real::with_errno(real::raw(libc::SYS_close_range, arguments)) as c_int
}

/// syscall(2).
// SAFETY: it stands before the C library's, and makes the same system call, or does what that would.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    let arguments = [a, b, c, d, e, f];
    match number {
        libc::SYS_io_setup
        | libc::SYS_io_destroy
        | libc::SYS_io_submit
        | libc::SYS_io_cancel
        | libc::SYS_io_getevents
        | SYS_IO_PGETEVENTS => {
            if let Some(result) = crate::libaio::exports::system_call(number, arguments) {
                return real::with_errno(result) as c_long;
            }
        }
        libc::SYS_close => settle(a as c_int),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_dup2 if a != b => settle(b as c_int),
        libc::SYS_dup3 if a != b => settle(b as c_int),
        libc::SYS_close_range => settle_range(a as c_uint, b as c_uint),
        libc::SYS_exit_group => crate::end::before_end(),
        _ => {}
    }
    real::with_errno(real::raw(number, arguments)) as c_long
}
