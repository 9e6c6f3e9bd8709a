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
//! | module | one idea |
//! |---|---|
//! | [`page`] | the page machine: states, and every transition |
//! | [`wait`] | wait queues whose entries carry a callback |
//! | [`retry`] | where a woken operation goes |
//! | [`evict`] | which page goes when a frame is needed |
//! | [`writeback`] | dirty pages go to the device, and flushes end |
//! | [`errors`] | writeback errors, kept until everybody was told |

mod barrier;
mod buffer;
mod bypass;
mod cache;
mod cached_device;
pub mod errors;
pub mod evict;
mod lane;
mod list;
pub mod page;
mod read;
pub mod retry;
mod room;
mod shard;
mod stats;
pub mod wait;
mod write;
pub mod writeback;

pub use buffer::Buffer;
pub use cache::{Cache, CacheError, CacheMode, CacheOptions, Handle, PagePin};
pub use cached_device::CachedDevice;
pub use errors::WritebackError;
pub use lane::{Finished, Lane, OpKind, Operation};
pub use stats::CacheStats;
pub use writeback::{Flusher, Turn};
