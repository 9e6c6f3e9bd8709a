//! The C face: `libuaio.so`, with `include/uaio.h`, which says what each call does.
//!
//! ```text
//!   uaio_iocb ──► command (checked) ──► Context::submit ──► Event ──► uaio_event
//!                     │                                       │
//!                     └──► flight: whose iocb, where the bytes go ──┘
//! ```
//!
//! A context of C is a [`Context`](uaio_core::Context) with a reactor, a thread that turns it, and the
//! volumes that were opened on it. Names are looked up, so one that has been destroyed is EINVAL and
//! not a crash.
//!
//! A command on a descriptor of the host goes to the kernel with the caller's addresses, which checks
//! them. One on a volume goes through memory of ours: a write is copied at submit, a read when its event
//! is taken out.

mod command;
mod errno;
pub mod exports;
mod host;
pub mod layout;
mod state;
mod user;

pub(crate) use errno::Errno;
