//! What changes the meaning of a descriptor's number: close(2), dup2(2), dup3(2), close_range(2), also by syscall(2), and
//! what of the C library closes without calling those by name (fclose(3)); see [`guard`](crate::serve::guard). Numbers of
//! our own are passed over; see [`own`]. And syscall(2) itself.
//!
//! `syscall` is variadic in C, and here it has seven arguments. On x86-64 and arm64 a variadic function of Linux finds
//! integers where any other does, in registers and then on the stack; those that the caller did not give are whatever is
//! there, and the kernel does not look at them either.
//!
//! close(2) is a point of cancellation (pthreads(7)): the C library's own function is called, and may unwind this one.
#![expect(unsafe_code, reason = "symbols are exported by their names, and the C library's called")]

use std::ffi::{c_int, c_long, c_uint};

use crate::libaio::layout::SYS_IO_PGETEVENTS;
use crate::own;
use crate::real::{self, Next};
use crate::serve::process;

type Close = extern "C-unwind" fn(c_int) -> c_int;

/// A number is about to become another file's, or nobody's: waits until the kernel has what was submitted on it. Says
/// whether it may; our own may not.
#[inline]
fn may_change(fd: c_int) -> bool {
    let Some(service) = process::running() else { return true };
    let ours = own::is(fd);
    if !ours && service.guard.is_free(fd) {
        return true;
    }
    // A child of vfork(2) has this memory, and numbers of its own.
    if !service.is_of_this_process() {
        return true;
    }
    if !ours {
        service.before_close(fd);
    }
    !ours
}

/// Whether a number is open, without which dup2(2) changes nothing.
fn is_open(fd: c_int) -> bool {
    real::raw(libc::SYS_fcntl, [fd as usize, libc::F_GETFD as usize, 0, 0, 0, 0]).is_ok()
}

/// close_range(2) but for the numbers that are ours.
fn close_but_ours(first: c_uint, last: c_uint, flags: c_int) -> Result<usize, i32> {
    let raw = |first: c_uint, last: c_uint| {
        real::raw(libc::SYS_close_range, [first as usize, last as usize, flags as usize, 0, 0, 0])
    };
    // With any flag but this it closes nothing, now or at all.
    let closes = flags.cast_unsigned() & !libc::CLOSE_RANGE_UNSHARE == 0 && first <= last;
    let Some(service) = process::running().filter(|service| closes && service.is_of_this_process())
    else {
        return raw(first, last);
    };
    // Each number itself, for the reactor is asked for what was submitted on it; beyond these there is nothing.
    let most = service.guard.highest().max(own::END);
    let mut from = first;
    for number in first..=last.min(most) {
        if !may_change(number.cast_signed()) {
            if number > from {
                raw(from, number - 1)?;
            }
            from = number + 1;
        }
    }
    if from <= last { raw(from, last) } else { Ok(0) }
}

/// close(2).
// SAFETY: it stands before the C library's, and calls it.
#[unsafe(no_mangle)]
pub(crate) extern "C-unwind" fn close(fd: c_int) -> c_int {
    if !may_change(fd) {
        return real::with_errno(Err(libc::EBADF)) as c_int;
    }
    let next = CLOSE.get();
    if next.is_null() {
        return real::with_errno(real::raw(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0])) as c_int;
    }
    // SAFETY: the C library's function of that name.
    let next = unsafe { std::mem::transmute::<*mut std::ffi::c_void, Close>(next) };
    next(fd)
}

static CLOSE: Next = Next::new(c"close");

/// Finds the C library's close(2) before it may be called in a signal handler.
#[used]
// SAFETY: an array of functions, the arguments of which this one does not look at.
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = at_start;

extern "C" fn at_start() {
    CLOSE.get();
}

/// dup2(2).
// SAFETY: it stands before the C library's, and makes the same system call.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn dup2(old: c_int, new: c_int) -> c_int {
    if old != new && is_open(old) && !may_change(new) {
        return real::with_errno(Err(libc::EBADF)) as c_int;
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
    let changes = old != new && flags & !libc::O_CLOEXEC == 0 && is_open(old);
    if changes && !may_change(new) {
        return real::with_errno(Err(libc::EBADF)) as c_int;
    }
    let arguments = [old as usize, new as usize, flags as usize, 0, 0, 0];
    real::with_errno(real::raw(libc::SYS_dup3, arguments)) as c_int
}

/// close_range(2).
// SAFETY: as for `dup2`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    real::with_errno(close_but_ours(first, last, flags)) as c_int
}

/// closefrom(3), which in the C library does not call close_range by name.
// SAFETY: it stands before the C library's, and does the same.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn closefrom(first: c_int) {
    // It cannot fail but where there is no such call, and then one by one is all there is.
    if close_but_ours(first.max(0).cast_unsigned(), c_uint::MAX, 0).is_err() {
        for fd in first.max(0)..65536 {
            close(fd);
        }
    }
}

/// A function of the C library that closes a number, which `$number` finds out, without calling close by name.
macro_rules! closes {
    ($name:ident ($($argument:ident),+), $number:expr) => {
        #[doc = concat!("`", stringify!($name), "`, which closes a descriptor.")]
        // SAFETY: it stands before the C library's, and calls it.
        #[unsafe(no_mangle)]
        pub(crate) extern "C-unwind" fn $name($($argument: usize),+) -> usize {
            static NEXT: Next = Next::new(
                match std::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                    Ok(name) => name,
                    Err(_) => panic!("a name ends with its zero"),
                },
            );
            let number: fn(usize) -> c_int = $number;
            // Of a stream or folder of the program's, so it is never ours.
            may_change(number(closes!(@last $($argument),+)));
            call!(NEXT, $($argument),+)
        }
    };
    (@last $only:ident) => { $only };
    (@last $first:ident, $($rest:ident),+) => { closes!(@last $($rest),+) };
}

/// Calls a function of the C library with arguments that are words each, and returns what it returns.
macro_rules! call {
    ($next:expr, $($argument:ident),+) => {{
        type Words = extern "C-unwind" fn($(call!(@word $argument)),+) -> usize;
        let next = $next.get();
        assert!(!next.is_null(), "the C library has it");
        // SAFETY: the C library's function of that name, whose arguments and result are words each.
        let next = unsafe { std::mem::transmute::<*mut std::ffi::c_void, Words>(next) };
        next($($argument),+)
    }};
    (@word $argument:ident) => { usize };
}

fn of_stream(stream: usize) -> c_int {
    if stream == 0 {
        return -1;
    }
    // SAFETY: the program gives a stream to a function that takes one.
    unsafe { libc::fileno(std::ptr::with_exposed_provenance_mut(stream)) }
}

fn of_folder(folder: usize) -> c_int {
    if folder == 0 {
        return -1;
    }
    // SAFETY: as above, a folder.
    unsafe { libc::dirfd(std::ptr::with_exposed_provenance_mut(folder)) }
}

closes!(fclose(stream), of_stream);
closes!(pclose(stream), of_stream);
closes!(freopen(path, mode, stream), of_stream);
closes!(freopen64(path, mode, stream), of_stream);
closes!(closedir(folder), of_folder);

/// A function of the C library after which this program is another, or none.
macro_rules! ends {
    ($name:ident ($($argument:ident),+), $before:expr) => {
        #[doc = concat!("`", stringify!($name), "`, before which what was submitted is done.")]
        // SAFETY: it stands before the C library's, and calls it.
        #[unsafe(no_mangle)]
        pub(crate) extern "C-unwind" fn $name($($argument: usize),+) -> usize {
            static NEXT: Next = Next::new(
                match std::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                    Ok(name) => name,
                    Err(_) => panic!("a name ends with its zero"),
                },
            );
            $before();
            call!(NEXT, $($argument),+)
        }
    };
}

ends!(execve(path, arguments, environment), crate::end::before_exec);
ends!(execv(path, arguments), crate::end::before_exec);
ends!(execvp(path, arguments), crate::end::before_exec);
ends!(execvpe(path, arguments, environment), crate::end::before_exec);
ends!(fexecve(fd, arguments, environment), crate::end::before_exec);
ends!(quick_exit(status), crate::end::before_exec);

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
        libc::SYS_close if !may_change(a as c_int) => {
            return real::with_errno(Err(libc::EBADF)) as c_long;
        }
        #[cfg(target_arch = "x86_64")]
        libc::SYS_dup2 => return dup2(a as c_int, b as c_int).into(),
        libc::SYS_dup3 => return dup3(a as c_int, b as c_int, c as c_int).into(),
        libc::SYS_close_range => return close_range(a as c_uint, b as c_uint, c as c_int).into(),
        libc::SYS_exit_group => crate::end::before_end(),
        libc::SYS_execve | libc::SYS_execveat => crate::end::before_exec(),
        _ => {}
    }
    real::with_errno(real::raw(number, arguments)) as c_long
}
