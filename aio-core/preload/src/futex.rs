//! futex(2): how a thread of the program waits for the reactor, and with nothing else, so that it can be done in a
//! signal handler.

use std::sync::atomic::AtomicU32;
use std::time::Duration;

use crate::real;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// Somebody woke us, or the word was another, or neither: look again.
    Woken,
    /// The time was up.
    TimedOut,
    /// A signal handler ran.
    Interrupted,
}

/// Sleeps while `word` is `value`, so long at most. A handler that runs ends it, whatever SA_RESTART says: the kernel
/// does not begin a wait with a time again.
pub(crate) fn wait(word: &AtomicU32, value: u32, timeout: Duration) -> Waited {
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs().min(1 << 40) as libc::time_t,
        tv_nsec: timeout.subsec_nanos().into(),
    };
    let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    let word = std::ptr::from_ref(word).expose_provenance();
    let timeout = (&raw const timeout).expose_provenance();
    match real::raw(libc::SYS_futex, [word, operation as usize, value as usize, timeout, 0, 0]) {
        Err(libc::ETIMEDOUT) => Waited::TimedOut,
        Err(libc::EINTR) => Waited::Interrupted,
        Ok(_) | Err(_) => Waited::Woken,
    }
}

/// Wakes all who wait on `word`.
pub(crate) fn wake(word: &AtomicU32) {
    let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    let word = std::ptr::from_ref(word).expose_provenance();
    // It says how many there were, and cannot fail: the address is good.
    let _ = real::raw(libc::SYS_futex, [word, operation as usize, i32::MAX as usize, 0, 0, 0]);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn a_wait_ends_when_woken_when_the_word_is_another_and_when_its_time_is_up() {
        let word = AtomicU32::new(1);
        assert_eq!(wait(&word, 0, Duration::from_secs(60)), Waited::Woken);
        assert_eq!(wait(&word, 1, Duration::from_millis(1)), Waited::TimedOut);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                while word.load(Ordering::Acquire) == 1 {
                    assert_ne!(wait(&word, 1, Duration::from_secs(60)), Waited::TimedOut);
                }
            });
            word.store(2, Ordering::Release);
            wake(&word);
            waiter.join().unwrap();
        });
    }
}
