//! io_setup(2), io_destroy(2), io_cancel(2).

use std::time::Duration;

use super::layout::Iocb;
use crate::futex;
use crate::serve::{Service, Which};
use crate::user::{self, Prober};

/// The most events of a context, as `ioctx_alloc` in fs/aio.c.
const EVENTS_MAX: u32 = 0x1000_0000 / size_of::<super::IoEvent>() as u32;
/// What `fs.aio-max-nr` is where nobody has changed it.
const AIO_MAX_NR: u64 = 65536;

/// How many events the system lets a context have.
fn aio_max_nr() -> u64 {
    let text = std::fs::read_to_string("/proc/sys/fs/aio-max-nr");
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(AIO_MAX_NR)
}

/// Makes a context, and puts its address where the program wants it.
pub(super) fn set_up(service: &Service, nr_events: u32, to: usize) -> Result<usize, i32> {
    let old: usize = user::read(&mut Prober::reading(), to).map_err(|_| libc::EFAULT)?;
    if old != 0 || nr_events == 0 || nr_events > EVENTS_MAX {
        return Err(libc::EINVAL);
    }
    if u64::from(nr_events) > aio_max_nr() {
        return Err(libc::EAGAIN);
    }
    // As there: at least four a processor, and twice that. Programs count on the surplus without knowing it.
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    let events = nr_events.max(4 * processors) * 2;
    let context = service.contexts.add(events).map_err(|_| libc::ENOMEM)?;
    if user::write(&mut Prober::writing(), to, context.address()).is_err() {
        destroy(service, context.address())?;
        return Err(libc::EFAULT);
    }
    Ok(0)
}

/// Cancels what can be, waits for the rest, and takes the ring away.
pub(super) fn destroy(service: &Service, address: usize) -> Result<usize, i32> {
    let context = service.contexts.find(address).ok_or(libc::EINVAL)?;
    if !service.contexts.remove(&context) {
        return Err(libc::EINVAL);
    }
    context.bury(service);
    if context.in_progress() > 0 {
        service.cancel(Which::Context(context.address()));
    }
    // As the kernel does, for as long as a disk takes.
    context.wait_until_idle(|wakes, seen| {
        futex::wait(wakes, seen, Duration::from_secs(1));
    });
    context.unmap(address);
    Ok(0)
}

/// Cancels one request. Its event comes in the ring, with ECANCELED if it was in time.
pub(super) fn cancel(service: &Service, address: usize, iocb: usize) -> Result<usize, i32> {
    let context = service.contexts.find(address).ok_or(libc::EINVAL)?;
    let value: Iocb = user::read(&mut Prober::reading(), iocb).map_err(|_| libc::EFAULT)?;
    if value.key != 0 {
        return Err(libc::EINVAL);
    }
    let which = Which::One { context: context.address(), block: iocb as u64 };
    match service.cancel(which).cancelled {
        0 => Err(libc::EINVAL),
        // That is how the kernel says that it has, and that the event comes in the ring.
        _ => Err(libc::EINPROGRESS),
    }
}
