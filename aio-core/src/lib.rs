//! Asynchronous I/O in which nothing blocks the submitter.
//!
//! A command ([`Iocb`]) owns its memory. [`Context::submit`] takes it or hands it back whole; what is
//! cached is answered in the caller's thread, of anything else the first step is done there and the
//! rest goes on when the [`Reactor`] turns. Its [`Event`] brings the result and the memory. A
//! synchronous call is the same with a wait added at the end: there is no second code path.
//!
//! ```text
//!   submit(iocb) ──► event slot ──► cached? ──────────────── yes ──────────────► Event ──► get_events
//!                                     │ no                                         ▲        eventfd
//!                                     ▼                                            │
//!                        first step here, or the volume's inbox                    │
//!                                     │                                            │
//!                                     ▼                                            │
//!            Reactor::turn:  take in · step what was woken · commit · poll · complete
//!                                     │ Lane (page-cache)            │ Flusher
//!                                     ▼                              ▼
//!                            IoQueue of the device          another of its queues
//! ```
//!
//! # Example
//!
//! ```
//! use std::sync::Arc;
//! use uaio_core::{ContextOptions, Iocb, OpenOptions, Reactor, VolumeOptions};
//! use uaio_driver::{DmaPool, PoolOptions, SystemClock, ram::RamDevice};
//! use uaio_page_cache::{Cache, CacheOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A device, a cache of 256 pages over it, and a reactor that serves it.
//! let pool = DmaPool::new(PoolOptions::frames(512))?;
//! let device = Arc::new(RamDevice::new(16 << 20, 512, pool)?);
//! let cache = Cache::new(device, CacheOptions::frames(256))?;
//! let reactor = Reactor::new(Arc::new(SystemClock::new()))?;
//! let volume = reactor.attach(cache, VolumeOptions::default())?;
//! let handle = volume.open(OpenOptions::default());
//!
//! // Asynchronous: two commands at once, and a sync when both are done.
//! let context = reactor.context(ContextOptions::events(8))?;
//! context.submit(Iocb::pwrite(&handle, 10, b"hello".to_vec()).with_user_data(1)).unwrap();
//! context.submit(Iocb::pwritev(&handle, 4094, vec![vec![1], vec![2, 3]])).unwrap();
//! let mut events = Vec::with_capacity(8);
//! context.get_events(2, 8, &mut events, None)?;
//! assert!(events.iter().all(|event| event.result.is_ok()));
//! context.submit(Iocb::fsync(&handle)).unwrap();
//! context.get_events(1, 8, &mut events, None)?;
//! assert_eq!(events[2].result, Ok(0));
//!
//! // Synchronous: the same with a wait at the end.
//! let mut out = [0; 5];
//! assert_eq!(handle.pread(&mut out, 10)?, 5);
//! assert_eq!(&out, b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! # I/O model
//!
//! * **Who turns.** One thread at a time: the one in [`Reactor::run`], or, on a reactor without a
//!   thread, one of those that wait (`baton`). Whoever turns sleeps when nothing goes on; the bound
//!   on what that adds is [`reactor::POLL_FOR`] and [`reactor::NAP_MAX`].
//! * **Order.** Commands in progress are independent. A sync covers the writes whose *event* was
//!   there when it was submitted.
//! * **Bounds.** Event slots, commands in progress and the inbox are made at start. Having none is a
//!   refusal at submit (EAGAIN), never a wait there. Nothing is allocated on the way of a command but
//!   the memory it brings; synchronous calls that miss the cache use memory kept from earlier ones.
//! * **Locks.** `submit` tries the volume's lock and never waits for it. An event queue's lock is
//!   held for a push or a move. A cached read takes, beside those, the lock of a shard of the cache.
//!
//! # Errors
//!
//! | where | type | what |
//! |---|---|---|
//! | at submit | [`Refused`] | not taken: the iocb comes back with the reason |
//! | in the event | [`uaio_driver::IoError`] | taken and failed, with the device's own status |
//! | synchronous calls | [`CallError`] | one of the two; becomes an [`std::io::Error`] with `?` |
//! | at close | [`CloseError`] | acknowledged data that could not be made stable, by range |
//!
//! A writeback that failed while nobody waited is told once to each [`Handle`] that was open then, by
//! its next sync.

#![expect(clippy::result_large_err, reason = "what is refused comes back whole, and unallocated")]

mod baton;
mod buffers;
mod cached;
mod call;
mod cancel;
mod context;
mod deadline;
mod event;
mod future;
pub mod host;
mod hosted;
mod inbox;
mod iocb;
mod listio;
mod notify;
pub mod ops;
mod queue;
pub mod reactor;
mod refusal;
mod request;
mod ring;
mod scope;
mod signal;
mod station;
mod suspend;
mod sync;
mod ticket;
mod volume;
mod waiters;

pub use buffers::Buffers;
pub use call::CallError;
pub use cancel::Cancel;
pub use context::{Context, ContextOptions, InvalidRange};
pub use event::Event;
pub use future::{AsyncContext, EventStream, Finished, Running};
pub use hosted::{Host, HostOptions, HostReply};
pub use iocb::{BUFFERS_MAX, Iocb, Priority};
pub use listio::Listed;
pub use notify::{Callback, Callbacks, NoticeFd, Notify};
pub use reactor::Reactor;
pub use refusal::{Refusal, Refused};
pub use scope::Scope;
pub use signal::Signal;
pub use suspend::suspend;
pub use ticket::Ticket;
pub use uaio_page_cache::Advice;
pub use volume::{CloseError, Handle, OpenOptions, Volume, VolumeOptions};
