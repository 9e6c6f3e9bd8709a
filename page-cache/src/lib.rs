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
//! Reads that follow each other are read ahead ([`readahead`]), and what lies between reads at random that come
//! close to each other, while frames are free; those commands are the lane's own, so a
//! lane is turned, or sleeps on what it armed, also while no operation is in flight. How much may be
//! dirty, and how long a writer may wait, is in [`limits`].
//!
//! # Stable writes
//!
//! A write that is to be stable (O_DSYNC, FUA) never blocks its submitter, and any number may be in
//! flight: each is issued at once, and when the device has it, waits for a device flush that it shares
//! with all who were there when that was sent, flushes and stable writes of every lane. One that is alone is a
//! single FUA command instead. The [`Flusher`] sends those device flushes, one at a time, so a flush waits for no
//! lane that has gone silent, unless that holds a page which the flush covers: it has a command at it, or the turn at
//! it, or a discard or direct write of the range. Whoever waits for one can be cancelled at once.
//!
//! # When a device flush fails
//!
//! What the device had taken since the last flush that succeeded may be gone, and a flush that succeeds
//! later proves nothing about it. So all of it that is cached is dirty again, older than everything else,
//! and the next flush succeeds only when that is written and flushed. What had been evicted by then, or was
//! written past the cache, is *lost*: [`Cache::lost_ranges`] lists it, and each flush that covers it fails
//! until it is written again, discarded, or accepted with [`Cache::accept_loss`]. A stable write that was
//! in progress fails. [`stability`] says how, and why pages may be evicted before a flush covers them.
//!
//! # Error model
//!
//! A read that fails is not cached; it is tried again block by block, so a bad block costs only who
//! wants it. A write-back that fails leaves its data dirty and readable, is tried again with growing
//! pauses, and fails every flush that covers it while it stays so. What failed with nobody waiting is
//! told once to every [`Handle`] that was open, with the range and the count in [`Handle::last_told`]; a
//! flush of a range tells of that range and leaves the rest for later. [`Cache::writeback_errors`] has them
//! all. When the device is gone, or what fails holds half of a shard's room and has for ten seconds, or
//! will not heal as the device says, whoever waits for room there gets the error; [`Cache::dirty_ranges`] says what would be lost.
//!
//! # Cancellation
//!
//! [`Lane::cancel`] takes an operation back without blocking. Its memory is detached at once, because
//! no device ever reads or writes it: data goes through frames. The one exception is an operation in
//! whose name the device is changing data just now, which runs on; see [`Cancelled`] for what each
//! outcome means. An operation leaves its wait queue safely against a concurrent wake, and a frame,
//! room or slot that was taken in its name goes to the next who waits.
//!
//! # Eviction
//!
//! [`evict::Lap`] chooses what goes: S3-FIFO that lets a page back into its main queue only if it was away
//! for at most a quarter of the time that the queue's hand takes to go round. A hit is a store into a mark, and none
//! when the mark is set. Miss ratios on the page references of a block trace (a sample of a
//! CloudPhysics virtual disk as distributed with libCacheSim: 1,141,869 references to 269,210 pages), policy
//! only; `cargo ci trace FILE` measures ours, LRU's, S3-FIFO's and the optimum with the cache's own code and plots
//! them over the size, 2Q's, ARC's and LIRS's are libCacheSim's:
//!
//! | pages held | LRU | 2Q | ARC | LIRS | S3-FIFO | Lap | optimal |
//! |---|---|---|---|---|---|---|---|
//! | 2,692 (1 %) | .8969 | .8941 | .8979 | .9083 | .8931 | .8942 | .8646 |
//! | 13,460 (5 %) | .8871 | .8756 | .8555 | .8534 | .8648 | **.8538** | .7703 |
//! | 26,921 (10 %) | .8741 | .8443 | .8245 | .8145 | .8104 | **.7800** | .6761 |
//! | 53,842 (20 %) | .8129 | .7238 | .7813 | .7729 | .7290 | **.7066** | .5466 |
//!
//! The part of a lap and the number of ghosts were looked at on this trace too, not only argued: any
//! part from a fiftieth to nearly a third, with two ghosts a frame, is within .005 of the best row at every size. Where
//! each parameter comes from, what was known when, and what becomes of the ratios when one is half or twice as large, is at
//! [`evict::LapParameters`]; `cargo ci trace` prints it. On generated patterns, at a tenth of their pages (a loop: at
//! 5,000):
//!
//! | pattern | LRU | S3-FIFO | Lap | optimal |
//! |---|---|---|---|---|
//! | Zipf | .2859 | .2345 | .2306 | .1656 |
//! | a loop 1.2 times the cache | 1.0000 | .3378 | .3300 | .2000 |
//! | a loop 1.8 times the cache | 1.0000 | .7073 | .5513 | .4667 |
//! | Zipf with scans | .3064 | .2609 | .2571 | .2151 |
//! | Zipf with scans as long as the cache | .4386 | .3571 | .3554 | .3012 |
//!
//! # Memory
//!
//! At most 64 bytes a page beside its frame, by the allocator's count (`tests/memory.rs`): a record of 40, links
//! of 8, an index of 5, ghosts of 4, a reference count of 4, and marks. [`Cache::memory`] tells it,
//! and [`CacheOptions::memory_max`] and [`Cache::set_memory_max`] keep it, lanes included, at or below so many
//! bytes in all.
//!
//! # Administration
//!
//! [`Cache::residency`], [`Cache::resident`], [`Cache::drop_clean`], [`Cache::stats`] look into a cache in use and
//! drop from it; [`CacheStats::waits`] says how often and how long operations waited for what; [`OpKind::FlushRange`] makes a part of it stable. [`Cache::resize`] gives it another size, within the device's pool. Frames belong to their shard
//! all the same: a shard that is to be smaller returns them to the pool as they become free, before it hands
//! any over.
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
//! | [`stability`] | what the device has taken and may still lose |

mod admin;
mod around;
mod barrier;
mod buffer;
mod bypass;
mod cache;
mod cached_device;
mod commit;
mod covered;
pub mod errors;
pub mod evict;
mod index;
#[cfg(all(test, feature = "loom"))]
mod interleavings;
mod lane;
pub mod limits;
mod memory;
pub mod page;
mod read;
pub mod readahead;
pub mod retry;
mod room;
mod shard;
pub mod stability;
mod stats;
mod sync;
pub mod wait;
mod waited;
mod write;
pub mod writeback;

pub use admin::{Dropped, Residency};
pub use buffer::Buffer;
pub use cache::{Cache, CacheError, CacheMode, CacheOptions, Handle, PagePin};
pub use cached_device::CachedDevice;
pub use errors::WritebackError;
pub use lane::{Cancelled, Finished, Lane, OpKind, Operation};
pub use limits::{Amount, DirtyLimits};
pub use memory::MemoryUse;
pub use readahead::Advice;
pub use stats::CacheStats;
pub use waited::{Waited, Waits};
pub use writeback::{Flusher, Turn};
