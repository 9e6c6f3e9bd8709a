//! A userspace page cache.
