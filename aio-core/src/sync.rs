//! What [`crate::baton`], [`crate::ring`], [`crate::runner`], [`crate::waiters`], [`crate::ticket`], [`crate::watch`] and the table of
//! futures are built on. Their model tests bring loom's of the same names instead.

pub(crate) use atomic_waker::AtomicWaker;
pub(crate) use parking_lot::Mutex as Lock;
pub(crate) use std::sync::atomic::{
    AtomicBool, AtomicIsize, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
pub(crate) use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
pub(crate) use std::thread::{Thread, current};

/// Numbers that are free, taken and given back by any thread.
pub(crate) type FreeList = crossbeam_queue::ArrayQueue<u32>;

/// A cell with loom's face, so that a model test can see who reads and writes it.
#[derive(Debug)]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    #[inline]
    pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get())
    }

    #[inline]
    pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}

/// While another thread finishes a few instructions; it may have been preempted in them.
#[inline]
pub(crate) fn pause() {
    std::thread::yield_now();
}
