//! A userspace page cache whose wait queues notify instead of block.
//!
//! A [`Cache`] holds pages of a [`BlockDevice`](uaio_driver::BlockDevice) in frames of its pool. An
//! operation on it is a state machine: each step is done, or has left one entry on one wait queue and
//! is stepped again when that entry's callback runs. Nothing in here blocks, starts a thread or reads
//! a clock.
//!
//! ```text
//!   CachedDevice (a BlockDevice)          aio-core          a Rust caller: try_read, try_pin
//!        │ Operation                          │                        │ hit, inline
//!        ▼                                    ▼                        ▼
//!      Lane: steps, wakes, settles ───────► Cache: shards, each pages + wait queues + frames
//!        │ own IoQueue                        ▲
//!        ▼                                    │ writes back, flushes
//!      the device ◄──────────────────────── Flusher: own IoQueue
//! ```
//!
//! # I/O model
//!
//! A hit is done in the caller's thread: find, pin, unlock, copy. A miss puts a page into *Reading*,
//! sends one command for it and its neighbours, and leaves everybody else who wants it on the page's
//! wait queue. A write is acknowledged as the [`CacheMode`] says. Frames and room for dirty pages are
//! bounded and made at the start; running out is a wait, first come first served, never an error and
//! never a growth. Who started an operation turns its lane until it is finished; nobody polls another
//! one's device queue.
//!
//! # Error model
//!
//! A read that fails is not cached; it is tried again block by block, so a bad block costs only who
//! wants it. A write-back that fails leaves its data dirty and readable, is tried again with growing
//! pauses, and fails every flush that covers it while it stays so. What failed with nobody waiting is
//! told once to every [`Handle`] that was open, with the range and the count kept in
//! [`Cache::writeback_errors`]. When the device is gone, or has failed for ten seconds, whoever waits
//! for room gets the error; [`Cache::dirty_ranges`] says what would be lost.
//!
//! # Cancellation
//!
//! [`Lane::cancel`] takes an operation back without blocking. Its memory is detached at once, because
//! no device ever reads or writes it: data goes through frames. The one exception is an operation in
//! whose name the device is changing data just now, which runs on; see [`Cancelled`] for what each
//! outcome means. An operation leaves its wait queue safely against a concurrent wake, and a frame,
//! room or slot that was taken in its name goes to the next who waits.
//!
//! # Example
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//! use uaio_driver::{DmaPool, PoolOptions, Token, block::PollsAnyway, ram::RamDevice};
//! use uaio_page_cache::{Buffer, Cache, CacheOptions, Flusher, Lane, OpKind, Operation};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = DmaPool::new(PoolOptions::frames(64))?;
//! let device = Arc::new(RamDevice::new(1 << 20, 512, pool)?);
//! let cache = Cache::new(device, CacheOptions::frames(64))?;
//! let mut flusher = Flusher::new(Arc::clone(&cache), 4, Arc::new(PollsAnyway))?;
//! let mut lane = Lane::new(Arc::clone(&cache), 8, 8, Arc::new(PollsAnyway))?;
//!
//! for (number, kind, bytes) in [
//!     (1, OpKind::Write { stable: false, direct: false }, vec![7; 100]),
//!     (2, OpKind::Flush, vec![]),
//! ] {
//!     let operation = Operation {
//!         token: Token::from_u64(number),
//!         kind,
//!         offset: 1000,
//!         len: bytes.len() as u64,
//!         buffer: Buffer::Bytes(bytes),
//!         handle: cache.open(),
//!     };
//!     lane.start(operation).expect("a free place");
//!     let finished = loop {
//!         if let Some(finished) = lane.pop_finished() {
//!             break finished;
//!         }
//!         lane.turn();
//!         flusher.turn(Duration::ZERO);
//!     };
//!     finished.result?;
//! }
//! let mut hit = [0; 100];
//! assert!(cache.try_read(1000, &mut hit));
//! assert_eq!(hit, [7; 100]);
//! # Ok(())
//! # }
//! ```
//!
//! | module | one idea |
//! |---|---|
//! | [`page`] | the page machine: states, and every transition |
//! | [`wait`] | wait queues whose entries carry a callback |
//! | [`retry`] | where a woken operation goes |
//! | [`evict`] | which page goes when a frame is needed |
//! | [`readahead`] | pages are on their way before they are asked for |
//! | [`limits`] | how much may be dirty, and for how long |
//! | [`writeback`] | dirty pages go to the device, and flushes end |
//! | [`errors`] | writeback errors, kept until everybody was told |

mod admin;
mod barrier;
mod buffer;
mod bypass;
mod cache;
mod cached_device;
mod commit;
pub mod errors;
pub mod evict;
mod index;
#[cfg(all(test, feature = "loom"))]
mod interleavings;
mod lane;
pub mod limits;
pub mod page;
mod read;
pub mod readahead;
pub mod retry;
mod room;
mod shard;
mod stats;
mod sync;
pub mod wait;
mod write;
pub mod writeback;

pub use admin::{Dropped, MemoryUse, Residency};
pub use buffer::Buffer;
pub use cache::{Cache, CacheError, CacheMode, CacheOptions, Handle, PagePin};
pub use cached_device::CachedDevice;
pub use errors::WritebackError;
pub use lane::{Cancelled, Finished, Lane, OpKind, Operation};
pub use limits::{Amount, DirtyLimits};
pub use readahead::Advice;
pub use stats::CacheStats;
pub use writeback::{Flusher, Turn};
