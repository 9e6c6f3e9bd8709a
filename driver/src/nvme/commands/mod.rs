//! Commands beside the data path: one path for every admin command, and a file for each family.
//!
//! All of them are calls that wait, on the control path: they take memory of the controller's pool for
//! as long as they last, and none is called by a queue. What is sent is checked before, against the
//! sizes of the specification and what Identify says is supported; what comes back is copied out of the
//! device's reach and decoded. Admin commands are methods of [`NvmeController`](super::NvmeController);
//! I/O commands that a block device does not have go through a [`CommandQueue`], a queue pair of its own,
//! which need not wait.
//!
//! ```text
//!   NvmeController::{smart_log, format, …} ──► admin ──► the admin queue
//!   CommandQueue::{verify, zones, …} ──► submit · commit · poll ──► a queue pair, raw entries
//! ```
//!
//! A command of a caller's is never sent again by the driver: what a reset or an Abort ends is answered
//! with an error. While a format runs, which may take an hour, the timeout is the command's own.
//!
//! # What was proven on what
//!
//! Everything here was proven on the controller in this process, in `cargo test`, from the command line
//! of `aioctl nvme` too; what QEMU 7.2's drive does of it, in a guest (`ci/scenarios/nvme-commands`);
//! nothing on a physical drive. The controller in this process was written by the same hands as the
//! driver: where both misread the specification, no test of it finds that.
//!
//! | | controller in this process | QEMU's drive |
//! |---|---|---|
//! | Identify: controller, namespaces | yes | yes, field by field as nvme-cli |
//! | namespaces listed, names | yes | yes |
//! | namespaces attached and detached | yes | no: refused outside of a subsystem |
//! | namespaces created, deleted, rescanned, resized | yes | no |
//! | format | yes | yes, without secure erase |
//! | sanitize, self-test, firmware, security | yes | no: self-test refused as unsupported |
//! | features by name | yes | write cache, temperature threshold |
//! | timestamp | yes | read |
//! | APST, host behavior, host identifier | yes | no |
//! | SMART log | yes | yes, field by field as nvme-cli |
//! | error, firmware, effects logs | yes | answered |
//! | changed namespaces, self-test, telemetry, endurance, persistent event, sanitize, FDP logs | yes | no |
//! | reservation notification log | yes | no |
//! | changed zones log | empty ones only | no |
//! | Write with FUA, Flush, Compare, Copy, Write Zeroes, of blocks of 512 and 4096 bytes | yes | yes |
//! | Dataset Management | yes | answered |
//! | Verify | yes | no: it does not announce it |
//! | fused Compare and Write, Write Uncorrectable | yes | no |
//! | metadata in a buffer of its own | yes | yes, unchecked |
//! | metadata with the data; protection information made and checked by both sides, 16-bit guard | yes | no |
//! | guards of 32 and 64 bits | refused by command queues | no |
//! | storage tags | decoded by Identify only | no |
//! | zones: report, finish, reset, append | yes | yes |
//! | zones: open, close | yes | no |
//! | zones: offline | refused by it | no |
//! | reservations | yes | no: refused as unsupported |
//! | directives (streams), flexible data placement | yes | no |
//! | admin passthrough; I/O passthrough | yes | yes; no |

pub mod directive;
pub mod feature;
pub mod firmware;
pub mod format;
pub mod identify;
pub mod log;
pub mod namespaces;
pub mod nvm;
pub mod placement;
pub mod queue;
pub mod reservation;
pub mod security;
pub mod zone;

pub use log::NSID_ALL;
pub use queue::{Answer, Buffer, CommandQueue, IoCommand};

use std::fmt;
use std::time::Duration;

use crate::error::DeviceError;

use super::spec::{Opcode, Status};

/// A command, without what the driver fills in: identifier and data pointers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// What to do; of the admin set or of an I/O command set, by where it is sent.
    pub opcode: Opcode,
    /// The namespace; 0 for none, FFFFFFFFh for all.
    pub nsid: u32,
    /// Command Dword 2.
    pub cdw2: u32,
    /// Command Dword 3.
    pub cdw3: u32,
    /// Command Dwords 10 to 15.
    pub cdw10: [u32; 6],
    /// How long it may take before the controller is given up; `None` is what the controller was
    /// opened with.
    pub timeout: Option<Duration>,
}

impl Command {
    /// A command whose dwords are all zero.
    pub const fn new(opcode: Opcode, nsid: u32) -> Self {
        Self { opcode, nsid, cdw2: 0, cdw3: 0, cdw10: [0; 6], timeout: None }
    }

    /// With Command Dword `number`, 10 to 15.
    ///
    /// # Panics
    ///
    /// For another number.
    #[must_use]
    pub const fn dword(mut self, number: usize, value: u32) -> Self {
        self.cdw10[number - 10] = value;
        self
    }

    /// With the 64 bits of two dwords, the lower first.
    ///
    /// # Panics
    ///
    /// For a number other than 10 to 14.
    #[must_use]
    pub const fn qword(self, number: usize, value: u64) -> Self {
        self.dword(number, value as u32).dword(number + 1, (value >> 32) as u32)
    }

    /// Whether it may change anything: every one but those that only give data (Base 2.0c figure 88, the
    /// opcode's lowest bits).
    pub(super) const fn may_change(&self) -> bool {
        self.opcode.0 & 0b11 != 0b10
    }

    /// With a time limit of its own.
    #[must_use]
    pub const fn within(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

/// The data of a command, seen from the host.
#[derive(Debug)]
pub enum Data<'a> {
    /// None.
    None,
    /// The controller writes it.
    In(&'a mut [u8]),
    /// The controller reads it.
    Out(&'a [u8]),
}

impl Data<'_> {
    /// Its length in bytes.
    pub fn len_bytes(&self) -> usize {
        match self {
            Self::None => 0,
            Self::In(bytes) => bytes.len(),
            Self::Out(bytes) => bytes.len(),
        }
    }
}

/// Why a command did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The controller answered with an error; it goes on.
    #[error("{device}: {command} failed: {status}")]
    Status {
        /// The device.
        device: String,
        /// What was sent.
        command: String,
        /// What it answered.
        status: Status,
    },
    /// It was not sent, because it cannot be right.
    #[error("{0}")]
    Invalid(String),
    /// It was not sent, because the device says that it does not do it.
    #[error("{0}")]
    Unsupported(String),
    /// It was sent, and ended before it was answered: it was late, or the controller was reset or failed.
    #[error("{device}: {command} was ended before it was answered: {reason}")]
    Ended {
        /// The device.
        device: String,
        /// What was sent.
        command: String,
        /// Why it was ended.
        reason: String,
        /// Whether what it changes may have been changed, in part or in whole. `false` for one that
        /// changes nothing.
        may_have_been_done: bool,
    },
    /// The device did not get it.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl CommandError {
    /// What the controller answered, if it did.
    pub const fn status(&self) -> Option<Status> {
        match self {
            Self::Status { status, .. } => Some(*status),
            Self::Invalid(_) | Self::Unsupported(_) | Self::Ended { .. } | Self::Device(_) => None,
        }
    }

    pub(super) fn unsupported(device: &str, what: impl fmt::Display) -> Self {
        Self::Unsupported(format!("{device}: {what}"))
    }

    pub(super) fn invalid(device: &str, what: impl fmt::Display) -> Self {
        Self::Invalid(format!("{device}: {what}"))
    }
}
