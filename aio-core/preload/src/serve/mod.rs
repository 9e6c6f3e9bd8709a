//! Serving requests: from the thread that submits to the reactor, to the kernel, and back to where the result goes.
//!
//! ```text
//!   submit ──► inbox ──► lines (order) ──► Engine ──► io_uring
//!      │ bell                                  │
//!      └── guard: "unanswered on this number"  └──► Landing: event, or control block
//! ```
//!
//! # Contracts
//!
//! * **Submission does not block.** It puts an [`Operation`] into a queue and rings a bell if the reactor sleeps.
//! * **Order.** See [`Order`].
//! * **A number means what it meant.** A descriptor that is closed, or made to be another file, waits until the kernel
//!   has what was submitted on it; see [`guard`].
//! * **A child of fork(2) has nothing** of all this until it asks for its own; see [`process`].

pub(crate) mod guard;
mod inbox;
mod lines;
pub(crate) mod process;
mod reactor;
mod reply;
mod service;
mod spin;

use std::os::fd::RawFd;

use uaio_core::host::HostOp;

use crate::user::List;

pub(crate) use lines::{Order, Way};
pub(crate) use process::service;
pub(crate) use service::{Counters, Service, Which};

/// One request of a program, checked, with where its result goes.
#[derive(Debug)]
pub(crate) struct Operation {
    /// The descriptor that it is on.
    pub(crate) fd: RawFd,
    /// What the kernel is to do.
    pub(crate) op: HostOp,
    /// With what priority, as ioprio_set(2) has it; 0 for the process's.
    pub(crate) priority: u16,
    /// After what.
    pub(crate) order: Order,
    /// Where the result goes.
    pub(crate) landing: Landing,
    /// The list of a vectored transfer, to which `op` has the address.
    pub(crate) list: Option<List>,
}

/// Where a result goes.
#[derive(Debug)]
pub(crate) enum Landing {
    /// Into the ring of a context of libaio.
    Event(crate::libaio::Landing),
    /// Into a control block of POSIX AIO.
    Control(crate::posix::Landing),
}

/// What a turn of the reactor has to tell when it has put down its results.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    events: crate::libaio::Batch,
    controls: crate::posix::Batch,
}

impl Batch {
    /// Puts a result down: what the system call of the same name returns, or a negative errno.
    fn land(&mut self, landing: Landing, result: i64) {
        match landing {
            Landing::Event(landing) => self.events.land(landing, result),
            Landing::Control(landing) => self.controls.land(landing, result),
        }
    }

    /// Tells whoever waits.
    fn tell(&mut self) {
        self.events.tell();
        self.controls.tell();
    }
}
