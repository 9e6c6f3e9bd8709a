//! Operations of the host, made and taken apart: one function a system call, of the same name.
//!
//! A function makes a [`HostOp`] of what the call takes; it does nothing. [`Iocb::host`] submits it, or
//! an [`Engine`](crate::host::Engine) starts it. The answer brings the operation back, and
//! `into_bytes`, `into_descriptor` and their like take out what it has become.
//!
//! ```
//! use std::os::fd::OwnedFd;
//! use uaio_core::host::{Descriptor, Engine, EngineOptions, HostDone};
//! use uaio_core::ops;
//! use uaio_driver::Token;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut engine = Engine::new(EngineOptions::depth(8))?;
//! let mut run = |op| -> Result<HostDone, Box<dyn std::error::Error>> {
//!     engine.start(Token::from_u64(1), op).map_err(|refused| refused.reason)?;
//!     let mut done = Vec::new();
//!     while engine.poll(1, &mut done) == 0 {
//!         engine.commit_and_wait(std::time::Duration::from_secs(1));
//!     }
//!     Ok(done.remove(0))
//! };
//! let done = run(ops::open(c"/proc/self/comm", libc::O_RDONLY).into())?;
//! let file = Descriptor::new(done.op.and_then(|op| op.into_descriptor()).ok_or("not opened")?);
//! let done = run(ops::pread(&file, vec![0; 64], 0).into())?;
//! let len = done.result? as usize;
//! let bytes = done.op.map(|op| op.into_bytes()).unwrap_or_default();
//! assert_eq!(bytes[..len].last(), Some(&b'\n'));
//! # Ok(())
//! # }
//! ```
//!
//! [`Iocb::host`]: crate::Iocb::host

mod answer;
mod files;
mod names;
mod sockets;
mod waits;

pub use files::{
    copy_file_range, fadvise, fallocate, fdatasync, fsync, ftruncate, pread, preadv, pwrite,
    pwrite_stable, pwritev, read, readahead, readv, splice, sync_file_range, write, writev,
};
pub use names::{
    close, create, linkat, mkdirat, name, open, openat, renameat, statx, symlinkat, unlinkat,
};
pub use sockets::{accept, connect, recv, recv_from, recvmsg, send, send_to, sendmsg, shutdown};
pub use waits::{call, epoll_wait, poll, poll_all, sleep};

#[cfg(doc)]
use crate::host::HostOp;
