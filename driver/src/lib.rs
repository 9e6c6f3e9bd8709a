//! Block devices driven from userspace.
//!
//! A [`BlockDevice`] is the control plane of one device: what it is, what it can do, how it is. An
//! [`IoQueue`] is its data plane: one owner submits [`Request`]s, makes them visible with one
//! `commit`, and polls [`Completion`]s out. Nothing in the data plane blocks or allocates.
//!
//! ```text
//!   page-cache, aio-core, ublk server          any owner of a queue
//!            │ Request  (frames go in)                ▲ Completion (frames come back)
//!            ▼                                        │
//!      IoQueue::submit ──► IoQueue::commit ──► IoQueue::poll(budget)
//!            │                    │ one doorbell, one io_uring_enter
//!            ▼                    ▼
//!      nvme over vfio      uring: file or kernel block device      ram      sim
//! ```
//!
//! # Implementations
//!
//! | module | device | backend string of `aioctl` |
//! |---|---|---|
//! | [`ram`] | memory; the reference implementation, read it first | `ram:1G` |
//! | [`uring`] | a file, or a block device of the kernel, through io_uring | `file:PATH` |
//! | [`sim`] | memory that delays, reorders, fails, tears and forgets, from one seed; for tests | - |
//!
//! Block devices **stack**: a cache, a fault injector, a limiter is a `BlockDevice` over a
//! `BlockDevice`, and every one of them passes the same suite, [`conformance`].
//!
//! [`ublk`] goes the other way: it makes an ordinary `/dev/ublkbN` of any of them.
//!
//! # Errors
//!
//! Three tiers. A completion carries [`IoError`], small and `Copy`, with the device's own status
//! beside the errno. Opening and attaching return enums with what is needed to act
//! ([`DeviceError`]). A refused request comes back whole ([`Refused`]).

pub mod block;
pub mod clock;
pub mod conformance;
pub mod dma;
pub mod doorbell;
pub mod error;
pub mod nvme;
pub mod ram;
pub mod request;
pub mod sim;
pub mod slots;
pub mod ublk;
pub mod uring;
pub mod vfio;

pub use block::{Armed, BlockDevice, Capabilities, Geometry, Health, IoQueue, QueueOptions, Wake};
pub use clock::{Clock, SystemClock};
pub use dma::{DmaBuf, DmaPool, DmaRegion, FRAME_SIZE, Iova, PoolOptions};
pub use doorbell::Doorbell;
pub use error::{DeviceError, IoError, IoErrorKind, IoResult};
pub use request::{Completion, Lba, Op, Refusal, Refused, Request, SgList};
pub use slots::{Slots, Token};
