//! The functions of `<aio.h>`, by name. Each does what the standard says, or what the C library's own does where this
//! one cannot work.
#![expect(unsafe_code, reason = "functions that a program calls by name, with addresses")]

use std::ffi::{c_int, c_void};

use super::cancel;
use super::control::{Aiocb, Control, SigEvent, Status};
use super::list::{self, Mode};
use super::notice::Notice;
use super::sleep::Deadline;
use super::submit::{self, Action, Request};
use super::suspend::{self, List};
use crate::real::{self, Next};
use crate::serve::Counters;
use crate::serve::process::{self, State};

/// What a function of `<aio.h>` returns: -1 and errno, or a result.
fn answer(result: Result<c_int, i32>) -> c_int {
    result.unwrap_or_else(|errno| {
        real::set_errno(errno);
        -1
    })
}

/// What the C library's function of this name returns.
macro_rules! instead {
    ($name:literal, fn($($kind:ty),*) -> $result:ty, $($argument:expr),*) => {{
        static NEXT: Next = Next::new($name);
        let next = NEXT.get();
        if next.is_null() {
            real::set_errno(libc::ENOSYS);
            return -1;
        }
        // SAFETY: the C library's function of this name has this type (`<aio.h>`).
        let next = unsafe {
            std::mem::transmute::<*mut c_void, unsafe extern "C-unwind" fn($($kind),*) -> $result>(next)
        };
        // SAFETY: called as the program called ours.
        unsafe { next($($argument),*) }
    }};
}

/// `aio_read`, `aio_write`, `aio_fsync`.
fn one(block: *mut Aiocb, action: Action) -> Result<c_int, i32> {
    let service = process::service().map_err(|error| error.errno())?;
    let control = Control::new(block).ok_or(libc::EINVAL)?;
    let request = submit::request(control, action, None)?;
    control.begin(service.generation());
    match request {
        Request::Queued(operation) => service.submit(std::iter::once(operation)),
        Request::Here(here, landing) => {
            Counters::count(&service.counters.posix);
            landing.land_here(here.act());
        }
    }
    Ok(0)
}

/// Whether this process does without us. Those functions ask that begin something, or may.
fn is_refused() -> bool {
    process::service().is_err()
}

/// An array of the program's of so many addresses.
///
/// # Safety
///
/// `array` has `count` elements, or `count` is not more than 0; they stay as they are for `'a`.
unsafe fn elements<'a, T>(array: *const T, count: c_int) -> Result<&'a [T], i32> {
    match usize::try_from(count) {
        Err(_) => Err(libc::EINVAL),
        Ok(0) => Ok(&[]),
        Ok(_) if array.is_null() || !array.is_aligned() => Err(libc::EINVAL),
        // SAFETY: not null and aligned; the rest is this function's own precondition.
        Ok(count) => Ok(unsafe { std::slice::from_raw_parts(array, count) }),
    }
}

/// Queues a read; aio_read(3).
///
/// # Safety
///
/// As aio(7) has it: addresses are of what they are said to be of, and stay so until the requests are over.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aio_read(block: *mut Aiocb) -> c_int {
    if is_refused() {
        return instead!(c"aio_read", fn(*mut Aiocb) -> c_int, block);
    }
    answer(one(block, Action::Read))
}

/// [`aio_read`]: offsets have 64 bits in both.
///
/// # Safety
///
/// As aio(7) has it: addresses are of what they are said to be of, and stay so until the requests are over.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aio_read64(block: *mut Aiocb) -> c_int {
    if is_refused() {
        return instead!(c"aio_read64", fn(*mut Aiocb) -> c_int, block);
    }
    answer(one(block, Action::Read))
}

/// Queues a write; aio_write(3).
///
/// # Safety
///
/// As aio(7) has it: addresses are of what they are said to be of, and stay so until the requests are over.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aio_write(block: *mut Aiocb) -> c_int {
    if is_refused() {
        return instead!(c"aio_write", fn(*mut Aiocb) -> c_int, block);
    }
    answer(one(block, Action::Write))
}

/// [`aio_write`]: offsets have 64 bits in both.
///
/// # Safety
///
/// As aio(7) has it: addresses are of what they are said to be of, and stay so until the requests are over.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aio_write64(block: *mut Aiocb) -> c_int {
    if is_refused() {
        return instead!(c"aio_write64", fn(*mut Aiocb) -> c_int, block);
    }
    answer(one(block, Action::Write))
}

/// Queues a sync of what was queued before; aio_fsync(3).
///
/// # Safety
///
/// As aio(7) has it: addresses are of what they are said to be of, and stay so until the requests are over.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aio_fsync(kind: c_int, block: *mut Aiocb) -> c_int {
    if is_refused() {
        return instead!(c"aio_fsync", fn(c_int, *mut Aiocb) -> c_int, kind, block);
    }
    answer(match kind {
        libc::O_SYNC => one(block, Action::Sync { data_only: false }),
        libc::O_DSYNC => one(block, Action::Sync { data_only: true }),
        _ => Err(libc::EINVAL),
    })
}

/// [`aio_fsync`]: offsets have 64 bits in both.
///
/// # Safety
///
/// As aio(7) has it: addresses are of what they are said to be of, and stay so until the requests are over.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aio_fsync64(kind: c_int, block: *mut Aiocb) -> c_int {
    if is_refused() {
        return instead!(c"aio_fsync64", fn(c_int, *mut Aiocb) -> c_int, kind, block);
    }
    answer(match kind {
        libc::O_SYNC => one(block, Action::Sync { data_only: false }),
        libc::O_DSYNC => one(block, Action::Sync { data_only: true }),
        _ => Err(libc::EINVAL),
    })
}

/// How it stands with a request; aio_error(3). Async-signal-safe.
///
/// # Safety
///
/// As aio(7) has it: addresses are of what they are said to be of, and stay so until the requests are over.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aio_error(block: *const Aiocb) -> c_int {
    let generation = match process::state() {
        State::Refused => return instead!(c"aio_error", fn(*const Aiocb) -> c_int, block),
        State::Absent => 0,
        State::Running(service) => service.generation(),
    };
    let status = Control::new(block.cast_mut()).map(|control| control.status(generation));
    match status {
        Some(Status::InProgress) => libc::EINPROGRESS,
        Some(Status::Over(error)) => error,
        Some(Status::Unknown) | None => answer(Err(libc::EINVAL)),
    }
}

/// [`aio_error`]: offsets have 64 bits in both.
///
/// # Safety
///
/// As aio(7) has it: addresses are of what they are said to be of, and stay so until the requests are over.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aio_error64(block: *const Aiocb) -> c_int {
    let generation = match process::state() {
        State::Refused => return instead!(c"aio_error64", fn(*const Aiocb) -> c_int, block),
        State::Absent => 0,
        State::Running(service) => service.generation(),
    };
    let status = Control::new(block.cast_mut()).map(|control| control.status(generation));
    match status {
        Some(Status::InProgress) => libc::EINPROGRESS,
        Some(Status::Over(error)) => error,
        Some(Status::Unknown) | None => answer(Err(libc::EINVAL)),
    }
}

/// Takes the result of a request that is over; aio_return(3). Async-signal-safe.
///
/// # Safety
///
/// As aio(7) has it: addresses are of what they are said to be of, and stay so until the requests are over.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aio_return(block: *mut Aiocb) -> isize {
    let generation = match process::state() {
        State::Refused => return instead!(c"aio_return", fn(*mut Aiocb) -> isize, block),
        State::Absent => 0,
        State::Running(service) => service.generation(),
    };
    take(block, generation)
}

/// [`aio_return`]: offsets have 64 bits in both.
///
/// # Safety
///
/// As aio(7) has it: addresses are of what they are said to be of, and stay so until the requests are over.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aio_return64(block: *mut Aiocb) -> isize {
    let generation = match process::state() {
        State::Refused => return instead!(c"aio_return64", fn(*mut Aiocb) -> isize, block),
        State::Absent => 0,
        State::Running(service) => service.generation(),
    };
    take(block, generation)
}

/// Waits until one of a list is over; aio_suspend(3). Async-signal-safe, and a cancellation point.
///
/// # Safety
///
/// As aio(7) has it: addresses are of what they are said to be of, and stay so until the requests are over.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn aio_suspend(
    list: *const *const Aiocb,
    count: c_int,
    timeout: *const libc::timespec,
) -> c_int {
    let generation = match process::state() {
        State::Refused => {
            return instead!(
                c"aio_suspend",
                fn(*const *const Aiocb, c_int, *const libc::timespec) -> c_int,
                list,
                count,
                timeout
            );
        }
        State::Absent => 0,
        State::Running(service) => service.generation(),
    };
    // SAFETY: this function's own precondition.
    unsafe { wait(list, count, timeout, generation) }
}

/// [`aio_suspend`]: offsets have 64 bits in both.
///
/// # Safety
///
/// As aio(7) has it: addresses are of what they are said to be of, and stay so until the requests are over.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn aio_suspend64(
    list: *const *const Aiocb,
    count: c_int,
    timeout: *const libc::timespec,
) -> c_int {
    let generation = match process::state() {
        State::Refused => {
            return instead!(
                c"aio_suspend64",
                fn(*const *const Aiocb, c_int, *const libc::timespec) -> c_int,
                list,
                count,
                timeout
            );
        }
        State::Absent => 0,
        State::Running(service) => service.generation(),
    };
    // SAFETY: this function's own precondition.
    unsafe { wait(list, count, timeout, generation) }
}

/// Cancels a request, or all on a descriptor; aio_cancel(3).
///
/// # Safety
///
/// As aio(7) has it: addresses are of what they are said to be of, and stay so until the requests are over.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aio_cancel(fd: c_int, block: *mut Aiocb) -> c_int {
    match process::state() {
        State::Refused => instead!(c"aio_cancel", fn(c_int, *mut Aiocb) -> c_int, fd, block),
        State::Absent => answer(cancel::cancel(None, fd, block)),
        State::Running(service) => answer(cancel::cancel(Some(service), fd, block)),
    }
}

/// [`aio_cancel`]: offsets have 64 bits in both.
///
/// # Safety
///
/// As aio(7) has it: addresses are of what they are said to be of, and stay so until the requests are over.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aio_cancel64(fd: c_int, block: *mut Aiocb) -> c_int {
    match process::state() {
        State::Refused => instead!(c"aio_cancel64", fn(c_int, *mut Aiocb) -> c_int, fd, block),
        State::Absent => answer(cancel::cancel(None, fd, block)),
        State::Running(service) => answer(cancel::cancel(Some(service), fd, block)),
    }
}

/// Queues many requests, and waits for them if it is to; lio_listio(3).
///
/// # Safety
///
/// As aio(7) has it: addresses are of what they are said to be of, and stay so until the requests are over.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn lio_listio(
    mode: c_int,
    list: *const *mut Aiocb,
    count: c_int,
    event: *const SigEvent,
) -> c_int {
    if is_refused() {
        return instead!(
            c"lio_listio",
            fn(c_int, *const *mut Aiocb, c_int, *const SigEvent) -> c_int,
            mode,
            list,
            count,
            event
        );
    }
    // SAFETY: this function's own precondition.
    answer(unsafe { list_of(mode, list, count, event) })
}

/// [`lio_listio`]: offsets have 64 bits in both.
///
/// # Safety
///
/// As aio(7) has it: addresses are of what they are said to be of, and stay so until the requests are over.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn lio_listio64(
    mode: c_int,
    list: *const *mut Aiocb,
    count: c_int,
    event: *const SigEvent,
) -> c_int {
    if is_refused() {
        return instead!(
            c"lio_listio64",
            fn(c_int, *const *mut Aiocb, c_int, *const SigEvent) -> c_int,
            mode,
            list,
            count,
            event
        );
    }
    // SAFETY: this function's own precondition.
    answer(unsafe { list_of(mode, list, count, event) })
}

/// Takes hints how many requests and threads there will be, of which none is needed; aio_init(3).
///
/// # Safety
///
/// None: the address is not looked at. The C library's own gets it, too, in case it is needed.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aio_init(hints: *const c_void) {
    static NEXT: Next = Next::new(c"aio_init");
    let next = NEXT.get();
    if !next.is_null() && !hints.is_null() {
        // SAFETY: the C library's function of this name has this type (`<aio.h>`).
        let next = unsafe {
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*const c_void)>(next)
        };
        // SAFETY: called as the program called ours.
        unsafe { next(hints) };
    }
}

fn take(block: *mut Aiocb, generation: u32) -> isize {
    let Some(control) = Control::new(block) else {
        return answer(Err(libc::EINVAL)) as isize;
    };
    match control.status(generation) {
        Status::Unknown => answer(Err(libc::EINVAL)) as isize,
        // The standard leaves it open; this is what the request is.
        Status::InProgress => answer(Err(libc::EINPROGRESS)) as isize,
        Status::Over(error) => {
            let result = control.take();
            if error != 0 {
                real::set_errno(error);
            }
            result
        }
    }
}

/// `aio_suspend` where this library works. A thread that is cancelled is unwound from in here, so nothing of this
/// has to be dropped.
///
/// # Safety
///
/// As of `aio_suspend`.
unsafe fn wait(
    list: *const *const Aiocb,
    count: c_int,
    timeout: *const libc::timespec,
    generation: u32,
) -> c_int {
    // SAFETY: the caller's word.
    let list = match unsafe { elements(list, count) } {
        Ok(list) => List(list),
        Err(errno) => return answer(Err(errno)),
    };
    let deadline = if timeout.is_null() {
        None
    } else {
        // SAFETY: not null; the program says that it is a time.
        match Deadline::after(unsafe { timeout.read() }) {
            Some(deadline) => Some(deadline),
            None => return answer(Err(libc::EINVAL)),
        }
    };
    answer(suspend::suspend(list, generation, deadline.as_ref()).map(|()| 0))
}

/// `lio_listio` where this library works.
///
/// # Safety
///
/// As of `lio_listio`.
unsafe fn list_of(
    mode: c_int,
    list: *const *mut Aiocb,
    count: c_int,
    event: *const SigEvent,
) -> Result<c_int, i32> {
    let mode = match mode {
        libc::LIO_WAIT => Mode::Wait,
        libc::LIO_NOWAIT if event.is_null() => Mode::NoWait(Notice::None),
        // SAFETY: not null; the program says that it is one.
        libc::LIO_NOWAIT => Mode::NoWait(Notice::new(unsafe { &*event })?),
        _ => return Err(libc::EINVAL),
    };
    // SAFETY: the caller's word.
    let list = unsafe { elements(list, count) }?;
    let service = process::service().map_err(|error| error.errno())?;
    list::submit(service, mode, list).map(|()| 0)
}
