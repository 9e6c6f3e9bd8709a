//! What [`crate::baton`] is built on. Its model test brings loom's of the same names instead.

pub(crate) use std::sync::{Mutex, MutexGuard, PoisonError};
pub(crate) use std::thread::{Thread, current};
