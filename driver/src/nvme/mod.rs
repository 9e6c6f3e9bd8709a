//! NVMe: a polled driver for a drive's controller, from registers to queue pairs. No `unsafe` here.
//!
//! An [`NvmeController`] is one drive, enabled, with its admin queue; an [`NvmeNamespace`] of it is a
//! [`BlockDevice`](crate::BlockDevice); each queue of that is a queue pair of the controller, owned by
//! whoever opened it. Specifications: NVM Express Base 2.0c, NVM Command Set 1.0c.
//!
//! ```text
//!   NvmeNamespace ──open_queue──► NvmeQueue: submission ring, completion ring, in_flight, prp, discard
//!        │                              │ two doorbells a batch
//!   NvmeController: bring-up, admin, ───┤
//!        │          failure, teardown   ▼
//!        └────────────────────► Function: Registers + interrupts + cut_off
//!                                 vfio::VfioFunction   or   model::Model (in this process, for tests)
//! ```
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use uaio_driver::nvme::{ControllerOptions, NvmeController};
//! use uaio_driver::{BlockDevice, DmaPool, PoolOptions, QueueOptions, SystemClock};
//!
//! let pool = DmaPool::new(PoolOptions::frames(4096))?;
//! let clock = Arc::new(SystemClock::new());
//! let options = ControllerOptions::default();
//! let controller = NvmeController::open("0000:00:04.0".parse()?, pool, options, clock)?;
//! println!("{} with {} namespaces", controller.identify().model, controller.namespaces().len());
//! let namespace = controller.namespace(1)?;
//! let queue = namespace.open_queue(QueueOptions::polled(128))?;
//! drop(queue);
//! namespace.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Memory
//!
//! Everything the drive sees is of one pool, mapped for it once: rings, PRP lists and frames. The pool
//! may be shared with a cache and with other namespaces. A queue of depth N takes
//! [`NvmeController::frames_for_queue`] frames while it is open, in runs, so queues are opened before a
//! cache takes the rest. A pool can be of the drive's NUMA node
//! ([`PoolOptions::numa_node`](crate::PoolOptions::numa_node)); one that cannot be mapped, because it is
//! larger than 128 GiB or than the process may lock, is refused before anything is tried. VFIO's
//! no-IOMMU mode is not used. No rights are needed beyond those on `/dev/vfio/GROUP`.
//!
//! # I/O model
//!
//! Polled. A command is built in its ring slot by five stores; a commit rings the doorbell once; the
//! completion ring's is rung when the controller could run out of room, which is every half of a ring.
//! With [`ControllerOptions::shadow_doorbells`] a controller that offers it (emulated ones do) has its
//! doorbells in memory, and a register is written only when it has stopped looking. A 4 KiB read
//! takes at most 150 instructions of this driver for submit, commit and poll at depth 128, which
//! `cargo ci test` counts. An idle queue can be slept on; with an MSI-X vector of its own also one
//! with something in flight ([`arm`](crate::IoQueue::arm)). The vector is allowed at the first `arm`
//! and not any more after a thousand polls without one, so a poller takes no interrupts.
//!
//! Data is described by PRP entries, or by a scatter/gather list where the controller takes one and it
//! is the shorter: longer requests in frames that follow one another
//! ([`ControllerOptions::scatter_gather`]).
//!
//! Discards between two commits share a Dataset Management command of up to 256 ranges. Flush is sent
//! also to a controller without a volatile cache: it costs a round trip that nobody needs, and means
//! that durability never depends on how one bit of Identify is read.
//!
//! # Errors
//!
//! A command that fails fails its request (discards: those it carries) with the status beside the
//! translation. What goes wrong beyond that climbs a ladder, each rung bounded, counted
//! ([`ErrorStatistics`]) and told of ([`Event`]):
//!
//! | what | then | in [`ControllerOptions`] |
//! |---|---|---|
//! | a status without Do Not Retry (`queue/passing.rs`), but of a flush that was begun | sent again, after the delay that it names (CRD), within the deadline; then failed | `retries_max` 3 |
//! | a request is past its deadline | Abort; ended so, also unasked, it is sent again | `command_timeout` 30 s, `retries_max` 3 |
//! | the Abort does not show | controller reset: CC.EN = 0, RDY = 0, up again, queues made anew | `abort_timeout` 5 s |
//! | fatal status (CSTS.CFS), an admin command that is late, an admin queue that lies | controller reset | `admin_timeout` 30 s |
//! | it breaks the protocol on an I/O queue | that queue is deleted and fails; the others go on | - |
//! | it does not delete the queue, or one that it made by half | controller reset, which the others see as a delay | `admin_timeout` |
//! | it does not stop (CAP.TO) | subsystem reset, if allowed; else given up, cut off by the IOMMU | `subsystem_reset` no |
//! | it does not come back, or fails again | another reset, then given up | `resets_max` 5 in `resets_window` 10 min |
//! | after a reset a namespace is gone, or is another one | that namespace fails, its queues with it | - |
//! | it comes back as another drive, or takes less than before, is gone (all ones), is asked back by the kernel | given up | - |
//!
//! No deadline passes while the controller is busy with new firmware (CSTS.PP, as long as MTFA says and
//! 5 min at most) or with an admin command that may take long (a format, at most its own time limit).
//!
//! Each request that is failed with a status is told of with its range ([`Event::RequestFailed`]), and
//! the first bad block of one that failed on the medium too, when the controller's error log names it.
//!
//! What a reset or an Abort ended is sent again when doing it twice is doing it once and nobody can
//! have come between (`queue/trouble.rs` argues it): reads, flushes, and, on a namespace of one
//! controller, writes, zeroes and discards. The rest is failed. Requests are taken while it is reset.
//! What a caller had set with Set Features and did not save is back to what was saved after a reset.
//! A reset of the subsystem may lose what a volatile cache held: every queue that was open fails its next
//! flush then, once, so that nobody takes lost writes for stable ones.
//!
//! A controller that is given up answers every request in flight, once, with the [`Failure`], when it is
//! quiet: CSTS.RDY = 0, or its memory taken out of its reach by the IOMMU. If neither can be had, frames
//! in flight are leaked and their lists come back empty. Deadlines cost no clock on the data path
//! (`deadlines.rs`): a command is late after 30 s and before 38 s.
//!
//! # What was proven on what
//!
//! | | model, in `cargo test` | QEMU 7.2, kernels 6.12 and 7.2, IOMMU of 39 and 48 bits | a physical drive |
//! |---|---|---|---|
//! | bring-up, Identify, namespaces, Number of Queues | yes | yes | no |
//! | Read, Write, PRP lists up to MDTS | yes | yes | no |
//! | SGLs: data blocks, a last segment | yes | yes | no |
//! | FUA, Flush | yes, with power cuts | accepted, data there after reopening | no |
//! | Write Zeroes, also with DEAC | yes | without DEAC | no |
//! | Dataset Management, 256 ranges | yes | answered; what it frees not looked at | no |
//! | interrupts; a second owner refused | yes; no | yes | no |
//! | doorbells in memory (Doorbell Buffer Config) | yes | yes | no |
//! | a queue without a vector of its own is polled | yes | no | no |
//! | pools in hugepages; of a NUMA node | -; the call, not the effect | yes; no | no |
//! | pools above 128 GiB or the limit of locked memory, no rights on the group: refused | the check, the message | no | no |
//! | orderly shutdown, reopening | yes | yes | no |
//! | failures that pass sent again; retry delays; bad blocks by their number | yes | yes; no; no | no |
//! | a drive that stalls: requests late, controller reset with them in flight, all sent again | yes; resets also at every look at the state while requests are sent again, and from another thread | on 7.2; its Abort ends nothing | no |
//! | an Abort that works, subsystem reset, events | yes | no | no |
//! | the kernel wants the drive back (request interrupt): I/O failed, BAR and device given up; plugged in again | the driver's half | on 7.2 | no |
//! | errors of the medium on read, write and flush | yes | yes | no |
//! | accesses to a BAR that is gone (SIGBUS) read as ones | yes, on a file | no | no |
//! | lies, lateness, removal, a controller that does not stop | yes, and fuzzed | no | no |
//! | a namespace gone, replaced or reformatted during a reset | yes | no | no |
//! | block sizes of 512 and 4096 | yes | yes | no |
//!
//! The commands beside these have a table of their own, on the page of [`commands`]. Not done: serving
//! namespaces with metadata or of other command sets as block devices (a
//! [`CommandQueue`](commands::CommandQueue) reads and writes them). On machines other than x86-64 the order of doorbells behind stores is argued
//! (`vfio::mmio`), not proven.
#![forbid(unsafe_code)]

mod admin;
pub mod commands;
mod controller;
mod deadlines;
mod discard;
mod failure;
mod fate;
mod in_flight;
mod info;
mod limits;
pub mod model;
mod namespace;
pub mod protection;
mod prp;
mod queue;
mod record;
mod registers;
mod ring;
mod sgl;
mod shadow;
pub mod spec;
mod statistics;
#[cfg(test)]
mod tests;
mod transfer;

pub use commands::{Command, CommandError, Data};
pub use controller::{ControllerOptions, Event, NamespaceChanges, NvmeController};
pub use failure::{Failure, Violation};
pub use info::{ControllerInfo, NamespaceInfo};
pub use namespace::NvmeNamespace;
pub use registers::{Function, Registers};
pub use statistics::ErrorStatistics;
