//! The thread that turns the cache's flusher. It sleeps on a [`Doorbell`], so that no wake-up is
//! lost: it announces the sleep, turns once more, and sleeps only if that found nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use uaio_driver::doorbell::{self, Doorbell};
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

/// A flusher that is being turned. Dropping it stops the thread; what is dirty then stays so.
#[derive(Debug)]
pub(crate) struct FlusherThread {
    bell: Arc<Doorbell>,
    stop: Arc<AtomicBool>,
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
        let bell = Doorbell::new().map_err(|error| Failure::os("create an eventfd", error))?;
        let (bell, stop) = (Arc::new(bell), Arc::new(AtomicBool::new(false)));
        let wake = Arc::clone(&bell) as Arc<dyn Wake>;
        let flusher = Flusher::new(Arc::clone(cache), DEPTH, wake)
            .map_err(|error| Failure::device("open the flusher's queue", &error))?;
        let thread = std::thread::Builder::new()
            .name("flusher".into())
            .spawn({
                let (bell, stop) = (Arc::clone(&bell), Arc::clone(&stop));
                move || {
                    prepare();
                    turn_until(&stop, flusher, &bell);
                }
            })
            .map_err(|error| Failure::os("start a thread", error))?;
        Ok(Self { bell, stop, thread: Some(thread) })
    }
}

impl Drop for FlusherThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.bell.wake();
        if let Some(thread) = self.thread.take() {
            // A flusher that panicked has written what it has written; who waits for more is told
            // by the cache that there is no flusher.
            let _ = thread.join();
        }
    }
}

fn turn_until(stop: &AtomicBool, mut flusher: Flusher, bell: &Doorbell) {
    let start = Instant::now();
    let mut idle = 0;
    while !stop.load(Ordering::Acquire) {
        if flusher.turn(start.elapsed()).busy {
            idle = 0;
            continue;
        }
        bell.announce_sleep();
        let turn = flusher.turn(start.elapsed());
        if !turn.busy && !stop.load(Ordering::Acquire) {
            match flusher.arm() {
                Armed::Ready => {}
                Armed::MustPoll => {
                    idle += 1;
                    pause(idle);
                }
                Armed::Yes => sleep(&flusher, bell, turn.next.saturating_sub(start.elapsed())),
            }
        }
        bell.revoke_sleep();
        bell.hush();
    }
}

fn pause(idle: u32) {
    if idle < IDLE_TURNS { std::thread::yield_now() } else { std::thread::sleep(IDLE_SLEEP) }
}

fn sleep(flusher: &Flusher, bell: &Doorbell, at_most: Duration) {
    let own = PollFd::new(bell, PollFlags::IN);
    let timeout = Timespec::try_from(at_most).ok();
    // An interrupted or failed sleep is a short one: the next turn looks again.
    match flusher.event_fd() {
        Some(device) => {
            let _ = rustix::event::poll(
                &mut [own, PollFd::new(&device, PollFlags::IN)],
                timeout.as_ref(),
            );
            doorbell::quiet(device);
        }
        None => {
            let _ = rustix::event::poll(&mut [own], timeout.as_ref());
        }
    }
}
