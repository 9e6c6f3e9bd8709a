//! The thread that turns the cache's flusher.
//!
//! # No wake-up is lost
//!
//! The sleeper sets `sleeping`, fences, and turns the flusher once more; only if that found nothing
//! does it sleep. The waker has queued its work, fences, and reads `sleeping`. Whichever fence comes
//! first: either the waker sees `sleeping` and rings, or the last turn sees the work. A ring that
//! comes before the sleep makes the sleep end at once, because an eventfd keeps its count.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::ReadWriteFlags;
use uaio_driver::{Armed, Wake};
use uaio_page_cache::{Cache, Flusher};

use crate::exit::Failure;

/// Requests that the flusher has in flight at most.
const DEPTH: u16 = 32;

/// Turns without anything to do, while a device that must be polled has something in flight, before
/// the thread begins to sleep between them, and for how long then. A flush waits at most this much
/// longer, and the kernel's timer slack (50 µs).
const IDLE_TURNS: u32 = 200;
const IDLE_SLEEP: Duration = Duration::from_micros(20);

/// Rings the flusher's thread.
#[derive(Debug)]
struct Bell {
    event: OwnedFd,
    sleeping: AtomicBool,
    stop: AtomicBool,
}

impl Bell {
    fn new() -> Result<Self, Failure> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let event = rustix::event::eventfd(0, flags)
            .map_err(|error| Failure::os("create an eventfd", error))?;
        Ok(Self { event, sleeping: AtomicBool::new(false), stop: AtomicBool::new(false) })
    }

    fn ring(&self) {
        // The only error is EAGAIN: the count is at its maximum, so it will be read.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    fn silence(&self) {
        read_empty(self.event.as_fd());
    }
}

impl Wake for Bell {
    fn wake(&self) {
        // Pairs with the fence in `turn_until_stopped`; see the module page.
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) {
            self.ring();
        }
    }
}

/// A flusher that is being turned. Dropping it stops the thread; what is dirty then stays so.
#[derive(Debug)]
pub(crate) struct FlusherThread {
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

impl FlusherThread {
    /// Starts turning. `prepare` runs first, in the thread.
    ///
    /// # Errors
    ///
    /// When the device gives no queue for it, or there is no thread.
    pub(crate) fn start(
        cache: &Arc<Cache>,
        prepare: impl FnOnce() + Send + 'static,
    ) -> Result<Self, Failure> {
        let bell = Arc::new(Bell::new()?);
        let wake = Arc::clone(&bell) as Arc<dyn Wake>;
        let flusher = Flusher::new(Arc::clone(cache), DEPTH, wake)
            .map_err(|error| Failure::device("open the flusher's queue", &error))?;
        let thread = std::thread::Builder::new()
            .name("flusher".into())
            .spawn({
                let bell = Arc::clone(&bell);
                move || {
                    prepare();
                    turn_until_stopped(flusher, &bell);
                }
            })
            .map_err(|error| Failure::os("start a thread", error))?;
        Ok(Self { bell, thread: Some(thread) })
    }
}

impl Drop for FlusherThread {
    fn drop(&mut self) {
        self.bell.stop.store(true, Ordering::Release);
        self.bell.ring();
        if let Some(thread) = self.thread.take() {
            // A flusher that panicked has written what it has written; who waits for more is told
            // by the cache that there is no flusher.
            let _ = thread.join();
        }
    }
}

fn turn_until_stopped(mut flusher: Flusher, bell: &Bell) {
    let start = Instant::now();
    let mut idle = 0;
    while !bell.stop.load(Ordering::Acquire) {
        if flusher.turn(start.elapsed()).busy {
            idle = 0;
            continue;
        }
        bell.sleeping.store(true, Ordering::Relaxed);
        // Pairs with the fence in `wake`; see the module page.
        fence(Ordering::SeqCst);
        let turn = flusher.turn(start.elapsed());
        if !turn.busy {
            match flusher.arm() {
                Armed::Ready => {}
                Armed::MustPoll => {
                    idle += 1;
                    pause(idle);
                }
                Armed::Yes => sleep(&flusher, bell, turn.next.saturating_sub(start.elapsed())),
            }
        }
        bell.sleeping.store(false, Ordering::Relaxed);
        bell.silence();
    }
}

fn pause(idle: u32) {
    if idle < IDLE_TURNS { std::thread::yield_now() } else { std::thread::sleep(IDLE_SLEEP) }
}

fn sleep(flusher: &Flusher, bell: &Bell, at_most: Duration) {
    let own = PollFd::new(&bell.event, PollFlags::IN);
    let timeout = Timespec::try_from(at_most).ok();
    // An interrupted or failed sleep is a short one: the next turn looks again.
    match flusher.event_fd() {
        Some(device) => {
            let _ = rustix::event::poll(
                &mut [own, PollFd::new(&device, PollFlags::IN)],
                timeout.as_ref(),
            );
            read_empty(device);
        }
        None => {
            let _ = rustix::event::poll(&mut [own], timeout.as_ref());
        }
    }
}

/// Silences an eventfd. What is none (a ring, readable while it has completions) refuses the read.
fn read_empty(event: BorrowedFd<'_>) {
    let mut count = [0; 8];
    let mut parts = [IoSliceMut::new(&mut count)];
    // At the file's own position, and never blocking, whatever the descriptor's flags are.
    let _ = rustix::io::preadv2(event, &mut parts, u64::MAX, ReadWriteFlags::NOWAIT);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_before_the_sleep_ends_it_and_the_bell_is_silent_after() {
        let bell = Bell::new().expect("an eventfd");
        let readable = || {
            let mut own = [PollFd::new(&bell.event, PollFlags::IN)];
            rustix::event::poll(&mut own, Some(&Timespec::default())) == Ok(1)
        };
        bell.wake();
        assert!(!readable(), "nobody sleeps, so nobody is rung");
        bell.sleeping.store(true, Ordering::Relaxed);
        bell.wake();
        bell.wake();
        assert!(readable());
        bell.silence();
        assert!(!readable());
        bell.silence();
    }
}
