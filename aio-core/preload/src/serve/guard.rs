//! What a descriptor's number means is settled at submission.
//!
//! A program may close a number as soon as io_submit has returned, and open another file that gets the same number;
//! the kernel's own AIO holds the file by then. Here the reactor has yet to give the number to the kernel, and a
//! write would go to the wrong file. A duplicate at submission is no answer: closing it would take the process's
//! record locks on that file away (fcntl(2)), and databases hold those.
//!
//! So each number has a counter of requests that are not answered, and whoever is about to close a number whose counter
//! is not zero asks the reactor first, which answers when the kernel has everything submitted on it. Numbers share
//! counters, which makes a close wait sometimes for nothing.
//!
//! close(2) may be called in a signal handler. So nothing here allocates or takes a lock, and a thread that was
//! interrupted while it submitted does not wait: the reactor may be waiting for it.

use std::cell::Cell;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use uaio_driver::{Doorbell, Wake};

use crate::futex;

/// Counters; a power of two.
const COUNTERS: usize = 4096;
/// Closes that can wait at a time; others come again.
const CLOSES: usize = 32;

thread_local! {
    /// This thread is in the middle of a submission, or is the reactor.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, this thread waits for nothing in a close.
#[derive(Debug)]
pub(crate) struct Inside(bool);

impl Inside {
    /// Whether this thread is.
    pub(crate) fn is() -> bool {
        INSIDE.try_with(Cell::get).unwrap_or(true)
    }

    pub(crate) fn enter() -> Self {
        // A thread that is ending has no such words any more, and no handler that would need it.
        Self(INSIDE.try_with(|inside| inside.replace(true)).unwrap_or(true))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = INSIDE.try_with(|inside| inside.set(self.0));
    }
}

/// The counters of a process, and those who wait to close.
#[derive(Debug)]
pub(crate) struct Guard {
    unanswered: Box<[AtomicU32]>,
    highest: AtomicU32,
    /// How many of `closes` are taken.
    closing: AtomicUsize,
    /// Zero, or 1 + a number that somebody waits to close, or [`CLAIMED`].
    closes: [AtomicU32; CLOSES],
}

/// Taken, and the number is not there yet.
const CLAIMED: u32 = u32::MAX;

impl Guard {
    pub(crate) fn new() -> Self {
        let unanswered = (0..COUNTERS).map(|_| AtomicU32::new(0)).collect();
        let closes = std::array::from_fn(|_| AtomicU32::new(0));
        let highest = AtomicU32::new(0);
        Self { unanswered, highest, closing: AtomicUsize::new(0), closes }
    }

    fn counter(&self, fd: RawFd) -> &AtomicU32 {
        &self.unanswered[fd as usize % COUNTERS]
    }

    /// A request on this number is about to be submitted.
    pub(crate) fn hold(&self, fd: RawFd) {
        // Relaxed: the program's own order of submit and close makes it visible.
        self.counter(fd).fetch_add(1, Ordering::Relaxed);
        let number = fd.max(0).cast_unsigned();
        if self.highest.load(Ordering::Relaxed) < number {
            self.highest.fetch_max(number, Ordering::Relaxed);
        }
    }

    /// One is answered.
    pub(crate) fn release(&self, fd: RawFd) {
        self.counter(fd).fetch_sub(1, Ordering::Relaxed);
    }

    /// The highest number that anything was ever submitted on.
    pub(crate) fn highest(&self) -> u32 {
        self.highest.load(Ordering::Relaxed)
    }

    /// Whether nothing on this number is unanswered, and it can be closed as it is.
    #[inline]
    pub(crate) fn is_free(&self, fd: RawFd) -> bool {
        fd < 0 || self.counter(fd).load(Ordering::Relaxed) == 0
    }

    /// Waits until the kernel has whatever was submitted on this number. Async-signal-safe.
    pub(crate) fn before_close(&self, fd: RawFd, bell: &Doorbell) {
        if Inside::is() {
            return;
        }
        let slot = loop {
            let take = |slot: &&AtomicU32| {
                slot.compare_exchange(0, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            };
            match self.closes.iter().find(take) {
                Some(slot) => break slot,
                None => std::thread::yield_now(),
            }
        };
        let word = fd.cast_unsigned() + 1;
        slot.store(word, Ordering::Release);
        // Release: the reactor that sees it sees the word, and what was submitted before it.
        self.closing.fetch_add(1, Ordering::Release);
        bell.wake();
        while slot.load(Ordering::Acquire) == word {
            futex::wait(slot, word, Duration::from_secs(1));
        }
        slot.store(0, Ordering::Release);
    }

    /// Who waits to close, as it is now; `None` when nobody does. What they submitted before is in the inbox already.
    #[inline]
    pub(crate) fn asked(&self) -> Option<Asked> {
        if self.closing.load(Ordering::Acquire) == 0 {
            return None;
        }
        Some(Asked(std::array::from_fn(|at| self.closes[at].load(Ordering::Acquire))))
    }

    /// For the reactor, which has taken everything out of the inbox since it saw who [asked](Guard::asked): lets those go
    /// for whose number `issued` says that the kernel has everything. Who asked later is not looked at.
    pub(crate) fn answer(&self, asked: &Asked, mut issued: impl FnMut(RawFd) -> bool) {
        for (slot, word) in self.closes.iter().zip(asked.0) {
            if word == 0 || word == CLAIMED || !issued((word - 1).cast_signed()) {
                continue;
            }
            // Only who answers takes it away, so it is the one that was seen.
            slot.store(CLAIMED, Ordering::Release);
            self.closing.fetch_sub(1, Ordering::Relaxed);
            // It may have gone on already, and the word may be another's by now, who then looks again.
            futex::wake(slot);
        }
    }
}

/// Who waited to close at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked([u32; CLOSES]);

impl Asked {
    /// The numbers that are waited for.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = RawFd> {
        let words = self.0.iter().filter(|word| **word != 0 && **word != CLAIMED);
        words.map(|word| (word - 1).cast_signed())
    }
}
