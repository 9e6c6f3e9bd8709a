//! The server: any [`BlockDevice`] becomes `/dev/ublkbN`.
//!
//! ublk is the kernel's block driver for servers in userspace: the kernel makes the disk, and hands
//! each of its requests to us through an io_uring. This module serves a device with it.
//!
//! ```text
//!   a filesystem, a program                      the kernel
//!        │ /dev/ublkbN                                │
//!   ═════▼════════════ ublk_drv ══════════════════════▼═════════════════════════════
//!        │ one ring a queue: request ▼  ▲ result      │ /dev/ublk-control
//!        │ data: preadv, pwritev on /dev/ublkcN       │ add, start, stop, delete
//!   ┌────▼──────────── queue thread (one each) ───┐  ┌▼── control thread ──┐
//!   │ ring ──► tags ──► IoQueue::submit · commit  │  │ libublk's UblkCtrl  │◄── Server
//!   │      ◄──      ◄── IoQueue::poll             │  │ the device itself   │    start · stop
//!   └────▲────────────────────────────────────────┘  └─────────────────────┘    stats · fail_new_io
//!        │ Wake: eventfd, in the same ring
//!   whoever completes a request of this queue elsewhere (a cache's other queues)
//! ```
//!
//! # Use
//!
//! ```no_run
//! use std::{sync::Arc, time::Duration};
//! use uaio_driver::{DmaPool, PoolOptions, ram::RamDevice, ublk};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! println!("{}", ublk::shield_process());
//! let pool = DmaPool::new(PoolOptions::frames(8192))?;
//! let device = Arc::new(RamDevice::new(1 << 30, 4096, pool)?);
//! let server = ublk::Server::start(device, ublk::ServerOptions::default())?;
//! println!("serving {}", server.path().display());
//! # let until_asked = || {};
//! until_asked();
//! server.stop(Duration::from_secs(30))?;
//! # Ok(())
//! # }
//! ```
//!
//! # I/O model
//!
//! A queue's thread owns the queue's ring and its own queue of the device; nothing on the data path
//! is shared, locked or allocated. One turn takes all new requests, commits them to the device at
//! once, takes all completions and hands all results back with one `io_uring_enter`. While the
//! device works the thread looks for its completions, as long as that pays, and then sleeps in that
//! same ring, with the device's event descriptor and the queue's [`Wake`](crate::Wake) armed in it.
//! A device that only can be polled is polled, with a back-off whose cost is stated
//! ([`PollOptions`]).
//!
//! Data is in frames of the device's pool only while a request is in flight. A request that finds no
//! frames or no slot in the device's queue waits in a line and is served in order. A discard or
//! write-zeroes larger than the device takes is done in pieces.
//!
//! # What an acknowledgement means
//!
//! A result goes to the kernel after the device's completion and never before. The kernel is told of
//! a volatile cache, and of FUA, exactly when the device has such a cache; it then sends a flush for
//! every fsync and FUA for every write that must be stable, and both go to the device as they are.
//! Without such a cache a completed write is stable, and there is nothing to send.
//!
//! # Errors
//!
//! A request that fails gives its error to whoever asked ([`IoError::errno`](crate::IoError::errno)),
//! and no other request notices. A request that cannot be right is answered with `EINVAL`, one that
//! the device cannot do with `EOPNOTSUPP`. When the kernel itself refuses a result, a request would
//! hang for ever, so the server ends: the kernel fails what was in flight, the device goes away, and
//! [`Server::state`] has the reason. Starting and stopping tell of what went wrong with
//! [`ServerError`]; each has a deadline, says which step did not end, and can be asked again.
//!
//! A server that is killed leaves no hung request: the kernel ends the disk as soon as the process
//! is gone. Its number stays taken until somebody removes it: [`dead_devices`], [`remove`].
//!
//! # Flags
//!
//! | UBLK_F_ | | why |
//! |---|---|---|
//! | USER_COPY (6.5) | required | data moves between frames and request, no buffer is bound to a tag |
//! | CMD_IOCTL_ENCODE, URING_CMD_COMP_IN_TASK | the kernel sets them | |
//! | USER_RECOVERY and its kin | not used | a dead server's requests fail instead of waiting for a new server |
//! | SUPPORT_ZERO_COPY, AUTO_BUF_REG | not used | data must be seen by a cache |
//! | UNPRIVILEGED_DEV | not used | the kernel forbids it together with USER_COPY |
//!
//! [`ServerInfo::flags`] has those in force.
//!
//! # What is taken from libublk
//!
//! Adding, starting and stopping the device, and the mapping of a queue's descriptors. Not its wait
//! loop, which waits for one completion at a time, nor `run_target`, which starts threads; the I/O
//! commands and those for other processes' devices are sent by this module (the sources say why).
//! libublk writes no state file of ours, because it is never told of a queue's thread.
//!
//! [`BlockDevice`]: crate::BlockDevice

mod command;
mod control;
mod error;
mod looking;
mod options;
mod queue;
mod ring;
mod server;
mod shield;
mod stats;
mod tags;

pub use control::{DeviceState, UblkDevice, dead_devices, devices, remove};
pub use error::ServerError;
pub use looking::PollOptions;
pub use options::ServerOptions;
pub use server::{Server, ServerInfo, ServerState};
pub use shield::{ShieldReport, Shielded, shield_process, shield_thread};
pub use stats::{Latency, OpKind, OpStats, ServerStats};
