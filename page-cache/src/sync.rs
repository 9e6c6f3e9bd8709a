//! Locks and atomics of the cache: the real ones, or, with the feature `loom`, those of the model
//! checker, for `interleavings.rs` alone.
//!
//! Whatever in this crate is shared between threads takes them from here, or the model does not see it.

#[cfg(feature = "loom")]
pub(crate) use loom::thread::yield_now;
#[cfg(not(feature = "loom"))]
pub(crate) use parking_lot::{Mutex, MutexGuard};
#[cfg(not(feature = "loom"))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

#[cfg(not(feature = "loom"))]
pub(crate) use std::thread::yield_now;

#[cfg(feature = "loom")]
pub(crate) use model::{
    AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering,
};

#[cfg(feature = "loom")]
mod model {
    pub(crate) use loom::sync::MutexGuard;
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

    /// With the face of `parking_lot`'s: not poisoned.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }
    }
}

/// A flag beside a lock: somebody under the lock wants what may come free without the lock.
///
/// | who wants | who frees |
/// |---|---|
/// | 1. raise the flag | 1. free it |
/// | 2. look again whether it is free | 2. look at the flag |
/// | 3. not free: queue | 3. raised: take the lock and hand over |
///
/// Each side writes and then reads what the other wrote, and one of them must see the other. All four
/// accesses are sequentially consistent, so they have one order, in which the later of the two writes
/// comes before the reading of the other side. On x86 that costs the one who frees nothing: its write
/// is a locked instruction anyway.
///
/// `interleavings.rs` has loom try every order.
#[derive(Debug, Default)]
pub(crate) struct Wanted(AtomicBool);

impl Wanted {
    /// Step 1 of who wants, under the lock.
    pub(crate) fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether it is still wanted; under the lock.
    pub(crate) fn set(&self, wanted: bool) {
        self.0.store(wanted, Ordering::SeqCst);
    }

    /// Step 2 of who frees. Step 1 was sequentially consistent.
    #[inline]
    pub(crate) fn is_raised(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
