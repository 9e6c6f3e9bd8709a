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
//! | [`nvme`] over [`vfio`] | an NVMe drive, bound to vfio-pci | `nvme:0000:00:04.0/1` |
//!
//! Block devices **stack**: a cache, a fault injector, a limiter is a `BlockDevice` over a
//! `BlockDevice`, and every one of them passes the same suite, [`conformance`].
//!
//! [`ublk`] goes the other way: it makes an ordinary `/dev/ublkbN` of any of them.
//!
//! # I/O model
//!
//! A device is opened once and shared; each queue has one owner, who submits what it has, commits
//! once, and polls until there is nothing left. Requests own their frames from `submit` to the
//! completion. Nothing is ordered but by waiting for completions; a flush covers the writes that had
//! completed when it was submitted. An owner with nothing to do arms the queue and sleeps.
//!
//! ```
//! use uaio_driver::{BlockDevice, DmaPool, Lba, PoolOptions, QueueOptions, Request, SgList, Token};
//! use uaio_driver::ram::RamDevice;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = DmaPool::new(PoolOptions::frames(16))?;
//! let device = RamDevice::new(1 << 20, 4096, pool.clone())?;
//! let mut queue = device.open_queue(QueueOptions::polled(8))?;
//! let data = SgList::new(vec![pool.take().expect("a free frame")]);
//! data.copy_from_slice(0, b"hello");
//! queue.submit(Request::write(Token::from_u64(1), Lba(3), 1, data, false)).expect("room");
//! queue.commit();
//! let mut done = Vec::with_capacity(8);
//! while queue.poll(8, &mut done) == 0 {}
//! done[0].result?;
//! # Ok(())
//! # }
//! ```
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
mod prefetch;
pub mod ram;
pub mod request;
pub mod sim;
mod sink;
pub mod slots;
pub mod ublk;
pub mod uring;
pub mod url;
pub mod vfio;

pub use block::{
    Armed, BlockDevice, Cancel, Capabilities, Geometry, Health, IoQueue, QueueOptions, Wake,
};
pub use clock::{Clock, SystemClock};
pub use dma::{DmaBuf, DmaPool, DmaRegion, FRAME_SIZE, FrameSet, Iova, PoolOptions};
pub use doorbell::Doorbell;
pub use error::{DeviceError, IoError, IoErrorKind, IoResult};
pub use prefetch::prefetch;
pub use request::{Completion, Lba, Op, Refusal, Refused, Request, SgList};
pub use slots::{Slots, Token};
