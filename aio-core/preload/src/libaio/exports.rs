//! The functions of libaio, and the system calls behind them. Each returns what the system call does, or the negative
//! errno.
//!
//! A context that this library has not made goes to the kernel, which has perhaps, or says EINVAL.
#![expect(unsafe_code, reason = "symbols are exported by their names")]

use std::ffi::{c_int, c_long, c_uint};
use std::sync::Arc;
use std::time::Duration;

use super::context::Context;
use super::layout::{AioSigset, IoEvent, SYS_IO_PGETEVENTS};
use super::wait::Wanted;
use super::{setup, submit, wait};
use crate::real;
use crate::serve::{self, Service, process};
use crate::user::{self, Prober};

/// `NSIG / 8` of the kernel.
const SIGSET_BYTES: usize = 8;

/// What the six system calls do; `None` for any other, and for what is the kernel's.
pub(crate) fn system_call(number: c_long, arguments: [usize; 6]) -> Option<Result<usize, i32>> {
    let [a, b, c, d, e, f] = arguments;
    match number {
        libc::SYS_io_setup => match serve::service() {
            Ok(service) => Some(setup::set_up(service, a as c_uint, b)),
            Err(_) => None,
        },
        libc::SYS_io_destroy => ours(a).map(|(service, _)| setup::destroy(service, a)),
        libc::SYS_io_submit => {
            ours(a).map(|(service, context)| submit::submit(service, &context, b as i64, c))
        }
        libc::SYS_io_cancel => ours(a).map(|(service, _)| setup::cancel(service, a, b)),
        libc::SYS_io_getevents => {
            ours(a).map(|(_, context)| events(&context, [b, c, d, e], Ok(None)))
        }
        SYS_IO_PGETEVENTS => ours(a).map(|(_, context)| events(&context, [b, c, d, e], mask(f))),
        _ => None,
    }
}

/// The same, and what is the kernel's by the kernel; a result, or a negative errno.
fn call(number: c_long, arguments: [usize; 6]) -> c_int {
    let result = system_call(number, arguments).unwrap_or_else(|| real::raw(number, arguments));
    match result {
        Ok(value) => value as c_int,
        Err(errno) => -errno,
    }
}

fn ours(address: usize) -> Option<(&'static Service, Arc<Context>)> {
    let service = process::running()?;
    Some((service, service.contexts.find(address)?))
}

fn events(
    context: &Context,
    [min_nr, nr, to, timeout]: [usize; 4],
    mask: Result<Option<u64>, i32>,
) -> Result<usize, i32> {
    let timeout = match timeout {
        0 => None,
        at => {
            let time: libc::timespec =
                user::read(&mut Prober::reading(), at).map_err(|_| libc::EFAULT)?;
            // As there: what is before now is now.
            let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
            let nanos = if time.tv_sec < 0 { 0 } else { u64::try_from(time.tv_nsec).unwrap_or(0) };
            Some(Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanos)))
        }
    };
    let (min_nr, nr) = (min_nr as i64, nr as i64);
    wait::get_events(context, Wanted { min_nr, nr, to, timeout, mask: mask? })
}

/// The signal mask that io_pgetevents(2) is given.
fn mask(at: usize) -> Result<Option<u64>, i32> {
    if at == 0 {
        return Ok(None);
    }
    let mut prober = Prober::reading();
    let set: AioSigset = user::read(&mut prober, at).map_err(|_| libc::EFAULT)?;
    if set.sigmask == 0 {
        return Ok(None);
    }
    if set.sigsetsize != SIGSET_BYTES {
        return Err(libc::EINVAL);
    }
    user::read(&mut prober, set.sigmask).map(Some).map_err(|_| libc::EFAULT)
}

/// io_setup(2).
// SAFETY: it stands before libaio's, and does what that does.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn io_setup(nr_events: c_int, context: *mut usize) -> c_int {
    call(libc::SYS_io_setup, [nr_events as usize, context.expose_provenance(), 0, 0, 0, 0])
}

/// io_destroy(2).
// SAFETY: as for `io_setup`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn io_destroy(context: usize) -> c_int {
    call(libc::SYS_io_destroy, [context, 0, 0, 0, 0, 0])
}

/// io_submit(2).
// SAFETY: as for `io_setup`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn io_submit(context: usize, nr: c_long, list: usize) -> c_int {
    call(libc::SYS_io_submit, [context, nr as usize, list, 0, 0, 0])
}

/// io_cancel(2), as it is since LIBAIO_0.4.
// SAFETY: as for `io_setup`; the name that programs know is in `versions.rs`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn uaio_io_cancel(context: usize, iocb: usize, event: usize) -> c_int {
    call(libc::SYS_io_cancel, [context, iocb, event, 0, 0, 0])
}

/// io_cancel of LIBAIO_0.1, without the event.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn uaio_io_cancel_old(context: usize, iocb: usize) -> c_int {
    uaio_io_cancel(context, iocb, 0)
}

/// io_getevents(2), as it is since LIBAIO_0.4.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn uaio_io_getevents(
    context: usize,
    min_nr: c_long,
    nr: c_long,
    events: usize,
    timeout: usize,
) -> c_int {
    call(libc::SYS_io_getevents, [context, min_nr as usize, nr as usize, events, timeout, 0])
}

/// io_getevents of LIBAIO_0.1, which waits for one.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn uaio_io_getevents_old(
    context: usize,
    nr: c_long,
    events: usize,
    timeout: usize,
) -> c_int {
    uaio_io_getevents(context, 1, nr, events, timeout)
}

/// io_pgetevents(2), with the mask as the C library has it.
// SAFETY: as for `io_setup`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn io_pgetevents(
    context: usize,
    min_nr: c_long,
    nr: c_long,
    events: usize,
    timeout: usize,
    sigmask: usize,
) -> c_int {
    let set = AioSigset { sigmask, sigsetsize: SIGSET_BYTES };
    let set = (&raw const set).expose_provenance();
    call(SYS_IO_PGETEVENTS, [context, min_nr as usize, nr as usize, events, timeout, set])
}

/// `io_queue_init`: io_setup of a context that is none yet.
// SAFETY: as for `io_setup`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn io_queue_init(maxevents: c_int, context: usize) -> c_int {
    if maxevents <= 0 {
        return -libc::EINVAL;
    }
    match user::write(&mut Prober::writing(), context, 0usize) {
        Ok(()) => call(libc::SYS_io_setup, [maxevents as usize, context, 0, 0, 0, 0]),
        Err(_) => -libc::EFAULT,
    }
}

/// `io_queue_release`: io_destroy.
// SAFETY: as for `io_setup`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn io_queue_release(context: usize) -> c_int {
    io_destroy(context)
}

/// What `io_set_callback` puts into an iocb.
type Callback = extern "C" fn(context: usize, iocb: usize, res: c_long, res2: c_long);

/// `io_queue_run`: calls back for every event that is there.
// SAFETY: as for `io_setup`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn io_queue_run(context: usize) -> c_int {
    let mut event = IoEvent::default();
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        let to = (&raw mut event).expose_provenance();
        let count = uaio_io_getevents(context, 0, 1, to, (&raw const now).expose_provenance());
        if count != 1 {
            return count;
        }
        let callback = std::ptr::with_exposed_provenance::<()>(event.data as usize);
        if callback.is_null() {
            // The program has set none, which libaio would jump to.
            continue;
        }
        // SAFETY: the program says that this is what the iocb's word is, by calling this function.
        let callback = unsafe { std::mem::transmute::<*const (), Callback>(callback) };
        callback(context, event.obj as usize, event.res as c_long, event.res2 as c_long);
    }
}

/// `io_queue_wait`, which does not wait, and never did: it asks for no event.
// SAFETY: as for `io_cancel`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn uaio_io_queue_wait(context: usize, timeout: usize) -> c_int {
    uaio_io_getevents(context, 0, 0, 0, timeout)
}
