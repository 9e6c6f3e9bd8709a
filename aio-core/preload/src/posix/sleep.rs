//! Sleeping on a word until somebody wakes: futex(2) and nothing else, so that a signal handler may, and as a
//! cancellation point, so that pthread_cancel(3) ends it.
#![expect(unsafe_code, reason = "the cancellation type of a thread; the clock")]

use std::ffi::c_int;
use std::sync::atomic::AtomicU32;

use crate::real;

/// Past this point of CLOCK_MONOTONIC a sleep ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(libc::timespec);

impl Deadline {
    /// So long from now; none for a time that is not one: below zero, or with a billion nanoseconds or more.
    pub(super) fn after(time: libc::timespec) -> Option<Self> {
        const SECOND_NS: i64 = 1_000_000_000;
        if time.tv_sec < 0 || !(0..SECOND_NS).contains(&time.tv_nsec) {
            return None;
        }
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the address of a value of ours. The clock is there, so it cannot fail.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
        let ns = now.tv_nsec + time.tv_nsec;
        let sec = now.tv_sec.saturating_add(time.tv_sec).saturating_add(ns / SECOND_NS);
        Some(Self(libc::timespec { tv_sec: sec, tv_nsec: ns % SECOND_NS }))
    }
}

/// Why a sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Somebody woke us, or the word was another: look again.
    Woken,
    /// The deadline is past.
    TimedOut,
    /// A signal handler ran.
    Interrupted,
}

/// Whether pthread_cancel(3) ends a sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cancellation {
    /// It does.
    Point,
    /// It waits until the thread comes to another point.
    None,
}

unsafe extern "C-unwind" {
    /// pthread_setcanceltype(3), which acts on a cancel that is pending by unwinding.
    fn pthread_setcanceltype(kind: c_int, old: *mut c_int) -> c_int;
}
/// `PTHREAD_CANCEL_ASYNCHRONOUS` of `<pthread.h>`.
const ASYNCHRONOUS: c_int = 1;

/// Sleeps while `word` is `value`.
///
/// A thread that is cancelled is unwound from here through its caller up to the program's code, so no caller of a
/// sleep that is a cancellation point has anything to be dropped.
#[inline(never)]
pub(super) fn wait(
    word: *const AtomicU32,
    value: u32,
    deadline: Option<&Deadline>,
    cancellation: Cancellation,
) -> Ended {
    // With a bitset the time is a point in time. All bits: whoever wakes the word wakes us.
    const OPERATION: usize = (libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG) as usize;
    const ALL: usize = u32::MAX as usize;
    let until = deadline.map_or(0, |deadline| (&raw const deadline.0).expose_provenance());
    let arguments = [word.addr(), OPERATION, value as usize, until, 0, ALL];
    let point = cancellation == Cancellation::Point;
    let mut before = 0;
    if point {
        // SAFETY: as the C library's own cancellation points did it for twenty years: between the two calls
        // there is one system call, and wherever that is cut off nothing is lost.
        unsafe { pthread_setcanceltype(ASYNCHRONOUS, &raw mut before) };
    }
    let result = real::raw(libc::SYS_futex, arguments);
    if point {
        // SAFETY: what it was.
        unsafe { pthread_setcanceltype(before, &raw mut before) };
    }
    match result {
        Err(libc::ETIMEDOUT) => Ended::TimedOut,
        Err(libc::EINTR) => Ended::Interrupted,
        Ok(_) | Err(_) => Ended::Woken,
    }
}

/// Wakes all who sleep on this word. The memory may be gone: the kernel looks at the address alone.
pub(super) fn wake(word: *const AtomicU32) {
    const OPERATION: usize = (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as usize;
    // How many there were is no matter, and an address of no memory is a word that nobody sleeps on.
    let _ = real::raw(libc::SYS_futex, [word.addr(), OPERATION, i32::MAX as usize, 0, 0, 0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_is_none_makes_no_deadline() {
        let after = |tv_sec, tv_nsec| Deadline::after(libc::timespec { tv_sec, tv_nsec });
        assert!(after(-1, 0).is_none());
        assert!(after(0, -1).is_none());
        assert!(after(0, 1_000_000_000).is_none());
        assert!(after(i64::MAX, 999_999_999).is_some());
        assert!(after(0, 0).is_some());
    }

    #[test]
    fn a_sleep_ends_at_its_deadline_or_when_the_word_is_another() {
        let word = AtomicU32::new(1);
        let deadline = Deadline::after(libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 }).unwrap();
        for cancellation in [Cancellation::Point, Cancellation::None] {
            assert_eq!(wait(&word, 1, Some(&deadline), cancellation), Ended::TimedOut);
            assert_eq!(wait(&word, 2, None, cancellation), Ended::Woken);
        }
    }

    #[test]
    fn a_wake_of_no_memory_is_nothing() {
        wake(std::ptr::without_provenance(0x1000));
    }
}
