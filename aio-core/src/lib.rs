//! Asynchronous I/O.
