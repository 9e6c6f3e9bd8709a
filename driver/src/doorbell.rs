//! How a sleeping thread is woken from elsewhere, and why no wake-up is lost.
//!
//! A thread that owns queues sleeps in the kernel, with a poll of this doorbell's eventfd among what
//! ends the sleep. Ringing costs the waker a system call, so it only rings when the thread says that
//! it sleeps:
//!
//! | thread | waker |
//! |---|---|
//! | 1. `sleeping = true` | 1. put the work where the thread looks |
//! | 2. fence | 2. fence |
//! | 3. look for work again | 3. `sleeping` was true: ring |
//! | 4. none: sleep until the bell rings | |
//!
//! Each side writes, fences, and then reads what the other wrote. The two fences are sequentially
//! consistent and so have an order: if the thread's comes first, the waker reads `true` and rings; if
//! the waker's comes first, the thread finds the work. Both may happen, which costs one round; that
//! neither happens is what the fences exclude (without them each side's write may still sit in its
//! CPU's store buffer when the other reads, the argument above `waitqueue_active` in Linux). A ring
//! before step 4 is not lost either: the eventfd stays readable until it is read.
//!
//! The test runs this file's own code under loom, through every order that C11 allows.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::ReadWriteFlags;

use crate::block::Wake;

/// The atomics of the protocol, so that a model checker can put its own in their place.
trait Flag {
    fn store(&self, value: bool);
    fn load(&self) -> bool;
    fn fence();
}

impl Flag for AtomicBool {
    #[inline]
    fn store(&self, value: bool) {
        // Relaxed: the fences order it, see the module page.
        AtomicBool::store(self, value, Ordering::Relaxed);
    }

    #[inline]
    fn load(&self) -> bool {
        AtomicBool::load(self, Ordering::Relaxed)
    }

    #[inline]
    fn fence() {
        fence(Ordering::SeqCst);
    }
}

/// Whether the thread sleeps, as both sides see it.
#[derive(Debug)]
struct Sleeping<F>(F);

impl<F: Flag> Sleeping<F> {
    /// The thread is about to sleep: it looks for work once more after this, then sleeps.
    #[inline]
    fn announce(&self) {
        self.0.store(true);
        // Pairs with the fence in `must_ring`.
        F::fence();
    }

    /// The thread is awake, whatever woke it.
    #[inline]
    fn revoke(&self) {
        self.0.store(false);
    }

    #[inline]
    fn is(&self) -> bool {
        self.0.load()
    }

    /// The waker has put its work down: must it ring? Only the thread takes its announcement back:
    /// a waker that did would, if it were slow, take back the next one. So several wakers may ring
    /// one sleeper.
    #[inline]
    fn must_ring(&self) -> bool {
        // Pairs with the fence in `announce`.
        F::fence();
        self.0.load()
    }
}

/// The bell of one thread that owns queues. Shared: one thread sleeps on it, any thread rings it.
#[derive(Debug)]
pub struct Doorbell {
    sleeping: Sleeping<AtomicBool>,
    eventfd: OwnedFd,
}

impl Doorbell {
    /// A silent bell; nobody sleeps.
    ///
    /// # Errors
    ///
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { sleeping: Sleeping(AtomicBool::new(false)), eventfd })
    }

    /// Steps 1 and 2 of the thread: look for work once more after this, then sleep until
    /// [`as_fd`](Doorbell::as_fd) is readable.
    #[inline]
    pub fn announce_sleep(&self) {
        self.sleeping.announce();
    }

    /// The thread is awake, whatever woke it.
    #[inline]
    pub fn revoke_sleep(&self) {
        self.sleeping.revoke();
    }

    /// Whether the thread has announced its sleep. For those who did the thread's work themselves,
    /// under a lock that the thread takes for step 3 too: they see what it announced before that.
    #[inline]
    pub fn is_sleeping(&self) -> bool {
        self.sleeping.is()
    }

    /// Makes the bell silent again. Never blocks.
    pub fn hush(&self) {
        quiet(self.eventfd.as_fd());
    }
}

impl AsFd for Doorbell {
    /// What becomes readable when the bell rings.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}

impl Wake for Doorbell {
    fn wake(&self) {
        if self.sleeping.must_ring() {
            // It fails only when the counter is full, and then it is readable, which is the point.
            let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
        }
    }
}

/// Reads an event descriptor empty, if it is one that can be: an eventfd is, whatever its flags;
/// another descriptor refuses and needs no reading (a ring is readable while it has entries). Never
/// blocks.
pub fn quiet(fd: BorrowedFd<'_>) {
    let mut count = [0u8; 8];
    // NOWAIT: another reader may have been faster, and then the read must not block.
    let _ = rustix::io::preadv2(
        fd,
        &mut [IoSliceMut::new(&mut count)],
        u64::MAX,
        ReadWriteFlags::NOWAIT,
    );
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use loom::sync::Arc;
    use loom::sync::atomic as model;

    use super::*;

    impl Flag for model::AtomicBool {
        fn store(&self, value: bool) {
            model::AtomicBool::store(self, value, Ordering::Relaxed);
        }

        fn load(&self) -> bool {
            model::AtomicBool::load(self, Ordering::Relaxed)
        }

        fn fence() {
            model::fence(Ordering::SeqCst);
        }
    }

    struct Scene {
        sleeping: Sleeping<model::AtomicBool>,
        /// The work, relaxed: the protocol alone must make it visible.
        work: model::AtomicUsize,
        /// The eventfd: a semaphore that stays up until it is read.
        bell: model::AtomicBool,
    }

    /// One thread that sleeps once or finds everything, against `wakers` wakers. A lost wake-up is a
    /// thread that would sleep with work there and no bell: loom reports the deadlock as the assert.
    fn no_wakeup_is_lost(wakers: usize) {
        loom::model(move || {
            let scene = Arc::new(Scene {
                sleeping: Sleeping(model::AtomicBool::new(false)),
                work: model::AtomicUsize::new(0),
                bell: model::AtomicBool::new(false),
            });
            let threads: Vec<_> = (0..wakers)
                .map(|_| {
                    let scene = Arc::clone(&scene);
                    loom::thread::spawn(move || {
                        scene.work.fetch_add(1, Ordering::Relaxed);
                        if scene.sleeping.must_ring() {
                            scene.bell.store(true, Ordering::Release);
                        }
                    })
                })
                .collect();
            scene.sleeping.announce();
            let seen = scene.work.load(Ordering::Relaxed);
            // The thread now sleeps unless it saw work. Once every waker is through, whatever it did
            // not see must have rung, or it sleeps for ever.
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            let rung = scene.bell.load(Ordering::Acquire);
            assert!(seen == wakers || rung, "saw {seen} of {wakers} and no bell");
            scene.sleeping.revoke();
        });
    }

    #[test]
    fn no_wakeup_is_lost_with_one_waker() {
        no_wakeup_is_lost(1);
    }

    #[test]
    fn no_wakeup_is_lost_with_two_wakers() {
        no_wakeup_is_lost(2);
    }

    #[test]
    fn the_bell_rings_only_for_a_sleeper() {
        let bell = Doorbell::new().unwrap();
        let readable = || {
            let mut fds = [rustix::event::PollFd::new(&bell.eventfd, rustix::event::PollFlags::IN)];
            let timeout = rustix::event::Timespec::try_from(Duration::ZERO).unwrap();
            rustix::event::poll(&mut fds, Some(&timeout)).unwrap() == 1
        };
        bell.wake();
        assert!(!readable(), "nobody sleeps");
        bell.announce_sleep();
        bell.wake();
        assert!(readable());
        bell.wake();
        bell.hush();
        assert!(!readable(), "one reading silences all of them");
        bell.revoke_sleep();
        bell.wake();
        assert!(!readable(), "awake again");
        // Silent already: must not block.
        bell.hush();
    }
}
