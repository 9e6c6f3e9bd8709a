//! io_getevents(2) and io_pgetevents(2): events out of the ring, and waiting for them.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::context::Context;
use super::layout::IoEvent;
use crate::futex::{self, Waited};
use crate::user::{Fault, Prober};

/// As good as for ever, and no clock overflows.
const FOR_EVER: Duration = Duration::from_secs(100 * 366 * 86_400);

/// What a program wants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) min_nr: i64,
    pub(super) nr: i64,
    /// Where the events go.
    pub(super) to: usize,
    /// `None` for however long it takes.
    pub(super) timeout: Option<Duration>,
    /// The mask of signals during the wait, if it is another.
    pub(super) mask: Option<u64>,
}

/// Takes at least `min_nr` events, unless the time is up before, and at most `nr`.
pub(super) fn get_events(context: &Context, wanted: Wanted) -> Result<usize, i32> {
    let Wanted { min_nr, nr, to, timeout, mask } = wanted;
    if min_nr < 0 || min_nr > nr {
        return Err(libc::EINVAL);
    }
    let (min, max) = (min_nr as usize, nr as usize);
    let mut taken = take(context, to, max)?;
    if taken >= min || timeout == Some(Duration::ZERO) {
        return Ok(taken);
    }
    // After a century the wait is over, too.
    let until = Instant::now() + timeout.unwrap_or(FOR_EVER).min(FOR_EVER);
    let waits = Waits::new(context, mask)?;
    loop {
        let seen = waits.seen();
        let rest = to.wrapping_add(taken * size_of::<IoEvent>());
        taken += take(context, rest, max - taken)?;
        if taken >= min {
            return Ok(taken);
        }
        if context.is_dead() {
            return if taken > 0 { Ok(taken) } else { Err(libc::EINVAL) };
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(taken);
        }
        match waits.wait(seen, left) {
            Waited::Interrupted => {
                let rest = to.wrapping_add(taken * size_of::<IoEvent>());
                taken += take(context, rest, max - taken)?;
                return if taken > 0 { Ok(taken) } else { Err(libc::EINTR) };
            }
            // It looks once more, and at the time.
            Waited::Woken | Waited::TimedOut => {}
        }
    }
}

/// Takes out what is there, up to `max` events. Those that cannot be put where they are wanted stay.
fn take(context: &Context, to: usize, max: usize) -> Result<usize, i32> {
    if max == 0 || context.available() == 0 {
        return Ok(0);
    }
    let _reader = context.reader.lock();
    let count = (context.available() as usize).min(max);
    let mut prober = Prober::writing();
    for at in 0..count {
        let place = to.wrapping_add(at * size_of::<IoEvent>());
        match crate::user::write(&mut prober, place, context.first()) {
            Ok(()) => context.advance(),
            Err(Fault) => return Err(libc::EFAULT),
        }
    }
    Ok(count)
}

/// A thread that waits for events: as long as this is there, it is woken when there are some.
struct Waits<'a> {
    context: &'a Context,
    /// What it counts itself in.
    counter: &'a AtomicU32,
    mask: Option<u64>,
}

impl<'a> Waits<'a> {
    fn new(context: &'a Context, mask: Option<u64>) -> Result<Self, i32> {
        let counter = match mask {
            None => &context.waiters,
            Some(_) => {
                if context.paging.get().is_none() {
                    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
                    let new = eventfd(0, flags).map_err(rustix::io::Errno::raw_os_error)?;
                    let own = crate::own::OwnFd::duplicate_of(new.as_raw_fd())?;
                    // Another thread may have been faster.
                    let _ = context.paging.set(own);
                }
                &context.pollers
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(Self { context, counter, mask })
    }

    /// What is waited to change. Before this thread looks for events.
    fn seen(&self) -> u32 {
        let seen = self.context.wakes.load(Ordering::Acquire);
        if self.mask.is_some()
            && let Some(eventfd) = self.context.paging.get()
        {
            uaio_driver::doorbell::quiet(std::os::fd::AsFd::as_fd(eventfd));
        }
        // Pairs with the fence in `Context::wake`.
        fence(Ordering::SeqCst);
        seen
    }

    fn wait(&self, seen: u32, left: Duration) -> Waited {
        match (self.mask, self.context.paging.get()) {
            (Some(mask), Some(eventfd)) => poll(eventfd.as_raw_fd(), left, mask),
            _ => futex::wait(&self.context.wakes, seen, left),
        }
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.counter.fetch_sub(1, Ordering::Relaxed);
        // Another one who polls may sleep, because this one has read the bell of both; what is left is his.
        if self.mask.is_some() && self.context.available() > 0 {
            self.context.wake();
        }
    }
}

/// ppoll(2) with a mask, so that a signal that it lets through ends the wait, whenever it comes.
fn poll(fd: i32, left: Duration, mask: u64) -> Waited {
    let mut fds = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let time = libc::timespec {
        tv_sec: left.as_secs() as libc::time_t,
        tv_nsec: left.subsec_nanos().into(),
    };
    let addresses = [
        (&raw mut fds).expose_provenance(),
        (&raw const time).expose_provenance(),
        (&raw const mask).expose_provenance(),
    ];
    let [fds_at, time_at, mask_at] = addresses;
    let result =
        crate::real::raw(libc::SYS_ppoll, [fds_at, 1, time_at, mask_at, size_of::<u64>(), 0]);
    match result {
        Ok(0) => Waited::TimedOut,
        Err(libc::EINTR) => Waited::Interrupted,
        Ok(_) | Err(_) => Waited::Woken,
    }
}
