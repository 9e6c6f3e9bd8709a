//! The calls of `uaio.h`.
#![expect(unsafe_code, reason = "symbols are exported by their names")]

use std::ffi::{c_char, c_int, c_long, c_uint};
use std::ptr::null;
use std::sync::Arc;
use std::time::Duration;

use uaio_core::{Cancel, Ticket, suspend};

use crate::Errno;
use crate::errno::answer;
use crate::layout::{LIST_NOWAIT, LIST_WAIT, UaioEvent, UaioIocb, UaioNotify, UaioWait};
use crate::notice;
use crate::state::{self, State};
use crate::user::{self, Span};

/// The most iocbs of a call.
const LIST_MAX: usize = 65536;

fn length(nr: c_long) -> Result<usize, Errno> {
    usize::try_from(nr).ok().filter(|nr| *nr <= LIST_MAX).ok_or(Errno::INVAL)
}

/// NULL for however long it takes.
fn duration(timeout: *const libc::timespec) -> Result<Option<Duration>, Errno> {
    if timeout.is_null() {
        return Ok(None);
    }
    let libc::timespec { tv_sec, tv_nsec } = user::read(timeout, 0)?;
    let seconds = u64::try_from(tv_sec).map_err(|_| Errno::INVAL)?;
    let nanos = u32::try_from(tv_nsec).ok().filter(|nanos| *nanos < 1_000_000_000);
    // A century is as good as for ever, and does not overflow a clock.
    let seconds = seconds.min(100 * 366 * 86_400);
    Ok(Some(Duration::new(seconds, nanos.ok_or(Errno::INVAL)?)))
}

/// `uaio_setup`.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub extern "C" fn uaio_setup(nr_events: c_uint, context: *mut u64) -> c_int {
    answer((|| {
        Span::of(context.cast_const(), 1)?;
        let name = state::set_up(nr_events as usize)?;
        user::write(context, 0, name).map(|()| 0)
    })())
}

/// `uaio_destroy`.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub extern "C" fn uaio_destroy(context: u64) -> c_int {
    answer(state::destroy(context).map(|()| 0))
}

/// `uaio_refresh_credentials`.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub extern "C" fn uaio_refresh_credentials(context: u64) -> c_int {
    answer((|| state::find(context)?.refresh_credentials().map(|()| 0))())
}

/// `uaio_open`.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub extern "C" fn uaio_open(
    context: u64,
    url: *const c_char,
    flags: c_uint,
    cache_bytes: u64,
) -> c_int {
    answer((|| state::find(context)?.open(&user::string(url)?, flags, cache_bytes))())
}

/// `uaio_size`.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub extern "C" fn uaio_size(context: u64, volume: c_int) -> i64 {
    match state::find(context).and_then(|state| state.size(volume)) {
        // Devices are smaller than what an offset can say.
        Ok(size) => size.cast_signed(),
        Err(errno) => -i64::from(errno.0),
    }
}

/// `uaio_submit`.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub extern "C" fn uaio_submit(context: u64, nr: c_long, iocbs: *mut *mut UaioIocb) -> c_int {
    answer((|| {
        let (state, nr) = (state::find(context)?, length(nr)?);
        state.submit(nr, |at| user::read(iocbs, at))
    })())
}

/// `uaio_getevents`.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub extern "C" fn uaio_getevents(
    context: u64,
    min_nr: c_long,
    nr: c_long,
    events: *mut UaioEvent,
    timeout: *const libc::timespec,
) -> c_int {
    answer((|| {
        let state = state::find(context)?;
        let (min, max) = (length(min_nr)?, length(nr)?);
        if min > max {
            return Err(Errno::INVAL);
        }
        // Before anything is taken out.
        Span::of(events.cast_const(), max)?;
        state.events(min, max, events, duration(timeout)?)
    })())
}

/// `uaio_cancel`.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub extern "C" fn uaio_cancel(context: u64, iocb: *mut UaioIocb) -> c_int {
    answer((|| {
        let state = state::find(context)?;
        Ok(match state.context.cancel(state.ticket(iocb)?) {
            Cancel::Cancelled => 0,
            Cancel::InProgress => 1,
            Cancel::Over => 2,
        })
    })())
}

/// `uaio_cancel_fd`.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub extern "C" fn uaio_cancel_fd(context: u64, fd: c_int, flags: c_uint) -> c_int {
    answer((|| state::find(context)?.cancel_fd(fd, flags))())
}

/// `uaio_cancel_all`.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub extern "C" fn uaio_cancel_all(context: u64) -> c_int {
    answer((|| Ok(state::find(context)?.context.cancel_all()))())
}

/// `uaio_suspend`.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub extern "C" fn uaio_suspend(
    list: *const UaioWait,
    nr: c_long,
    need: c_long,
    timeout: *const libc::timespec,
) -> c_int {
    answer((|| {
        let (nr, need, timeout) = (length(nr)?, length(need)?, duration(timeout)?);
        if need > nr {
            return Err(Errno::INVAL);
        }
        let (mut over, mut ignored) = (0, 0);
        let mut waits: Vec<(Arc<State>, Ticket)> = Vec::new();
        for at in 0..nr {
            let UaioWait { context, iocb } = user::read(list, at)?;
            if iocb.is_null() {
                ignored += 1;
                continue;
            }
            let state = state::find(context)?;
            match state.ticket(iocb) {
                Ok(ticket) => waits.push((state, ticket)),
                // Its event has been taken out.
                Err(Errno::INVAL) => over += 1,
                Err(errno) => return Err(errno),
            }
        }
        if need > nr - ignored {
            return Err(Errno::INVAL);
        }
        let list: Vec<_> = waits.iter().map(|(state, ticket)| (&state.context, *ticket)).collect();
        let need = need.saturating_sub(over);
        if suspend(&list, need, timeout) { Ok(0) } else { Err(Errno::AGAIN) }
    })())
}

/// `uaio_listio`.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub extern "C" fn uaio_listio(
    context: u64,
    mode: c_int,
    list: *mut *mut UaioIocb,
    nr: c_long,
    notify: *const UaioNotify,
) -> c_int {
    answer((|| {
        let (state, nr) = (state::find(context)?, length(nr)?);
        if mode != LIST_WAIT && mode != LIST_NOWAIT {
            return Err(Errno::INVAL);
        }
        let notify = if mode == LIST_WAIT { null() } else { notify };
        let notify = notice::notice(&state, notify)?;
        let iocbs = (0..nr).map(|at| user::read(list, at)).collect::<Result<Vec<_>, _>>()?;
        let tickets = state.list(iocbs.into_iter().filter(|iocb| !iocb.is_null()), notify)?;
        if mode == LIST_WAIT {
            let list: Vec<_> = tickets.iter().map(|ticket| (&state.context, *ticket)).collect();
            let over = suspend(&list, list.len(), None);
            debug_assert!(over, "a wait without a timeout ended early");
        }
        Ok(tickets.len())
    })())
}
