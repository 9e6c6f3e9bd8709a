//! Ending requests early: `aio_cancel`.

use std::os::fd::RawFd;

use super::control::{Aiocb, Control, Status};
use crate::real;
use crate::serve::{Service, Which};

/// Cancels the request of a block, or all on a descriptor if there is none. What came of it as `<aio.h>` says it, or
/// the errno.
pub(super) fn cancel(service: Option<&Service>, fd: RawFd, block: *mut Aiocb) -> Result<i32, i32> {
    let known = real::raw(libc::SYS_fcntl, [fd as usize, libc::F_GETFD as usize, 0, 0, 0, 0]);
    if known.is_err() {
        return Err(libc::EBADF);
    }
    let which = if block.is_null() {
        Which::Descriptor(fd)
    } else {
        let control = Control::new(block).ok_or(libc::EINVAL)?;
        let generation = service.map_or(0, Service::generation);
        if control.status(generation) != Status::InProgress {
            return Ok(libc::AIO_ALLDONE);
        }
        // What comes of it is not specified; the C library says this.
        if control.fields().fildes != fd {
            return Err(libc::EINVAL);
        }
        Which::One { context: 0, block: control.address() as u64 }
    };
    let Some(service) = service else { return Ok(libc::AIO_ALLDONE) };
    let cancelled = service.cancel(which);
    Ok(match (cancelled.in_progress, cancelled.cancelled) {
        (0, 0) => libc::AIO_ALLDONE,
        (0, _) => libc::AIO_CANCELED,
        _ => libc::AIO_NOTCANCELED,
    })
}
