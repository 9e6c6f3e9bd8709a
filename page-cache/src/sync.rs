//! What the wait queues are built on. Their model test brings loom's of the same names instead.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

pub(crate) use parking_lot::Mutex;
