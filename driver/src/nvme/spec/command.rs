//! Submission and completion queue entries, Base 2.0c §3.3.3, and the commands this driver sends.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Size of a submission queue entry in bytes; CC.IOSQES is its logarithm.
pub const SQE_SIZE: usize = 64;
/// Size of a completion queue entry in bytes; CC.IOCQES is its logarithm.
pub const CQE_SIZE: usize = 16;
/// CC.IOSQES for [`SQE_SIZE`].
pub const IOSQES: u8 = 6;
/// CC.IOCQES for [`CQE_SIZE`].
pub const IOCQES: u8 = 4;

/// An opcode; which set it is of depends on the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Opcode(pub u8);

impl Opcode {
    /// Admin: Delete I/O Submission Queue.
    pub const DELETE_IO_SQ: Self = Self(0x00);
    /// Admin: Create I/O Submission Queue.
    pub const CREATE_IO_SQ: Self = Self(0x01);
    /// Admin: Delete I/O Completion Queue.
    pub const DELETE_IO_CQ: Self = Self(0x04);
    /// Admin: Create I/O Completion Queue.
    pub const CREATE_IO_CQ: Self = Self(0x05);
    /// Admin: Identify.
    pub const IDENTIFY: Self = Self(0x06);
    /// Admin: Abort.
    pub const ABORT: Self = Self(0x08);
    /// Admin: Asynchronous Event Request.
    pub const ASYNC_EVENT_REQUEST: Self = Self(0x0c);
    /// Admin: Get Log Page.
    pub const GET_LOG_PAGE: Self = Self(0x02);
    /// Admin: Set Features.
    pub const SET_FEATURES: Self = Self(0x09);
    /// I/O: Flush.
    pub const FLUSH: Self = Self(0x00);
    /// I/O: Write.
    pub const WRITE: Self = Self(0x01);
    /// I/O: Read.
    pub const READ: Self = Self(0x02);
    /// I/O: Write Zeroes.
    pub const WRITE_ZEROES: Self = Self(0x08);
    /// I/O: Dataset Management.
    pub const DATASET_MANAGEMENT: Self = Self(0x09);
}

/// Identify CNS values (Base 2.0c §5.17).
pub mod cns {
    /// Identify Namespace data structure.
    pub const NAMESPACE: u32 = 0x00;
    /// Identify Controller data structure.
    pub const CONTROLLER: u32 = 0x01;
    /// Active Namespace ID list.
    pub const ACTIVE_NAMESPACES: u32 = 0x02;
    /// Namespace Identification Descriptor list.
    pub const NAMESPACE_DESCRIPTORS: u32 = 0x03;
    /// I/O Command Set specific Identify Controller data structure.
    pub const CONTROLLER_CSI: u32 = 0x06;
}

/// Set Features: Number of Queues (Base 2.0c §5.27.1.5).
pub const FEATURE_NUMBER_OF_QUEUES: u32 = 0x07;

/// Command Dword 12 of Read and Write: Force Unit Access.
pub const CDW12_FUA: u32 = 1 << 30;
/// Command Dword 12 of Write Zeroes: Deallocate.
pub const CDW12_DEAC: u32 = 1 << 25;
/// Command Dword 11 of Dataset Management: Attribute – Deallocate.
pub const CDW11_DSM_AD: u32 = 1 << 2;
/// How many ranges one Dataset Management command can name (NVM 1.0c §3.2.3).
pub const DSM_RANGES_MAX: usize = 256;
/// How many blocks a command with a 16-bit, 0's based Number of Logical Blocks can name.
pub const NLB_MAX: u32 = 1 << 16;

/// A submission queue entry in the common format (Base 2.0c figure 87).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SubmissionEntry {
    /// Opcode in bits 7:0, FUSE in 9:8, PSDT in 15:14, Command Identifier in 31:16.
    pub cdw0: U32,
    /// Namespace Identifier.
    pub nsid: U32,
    /// Command specific.
    pub cdw2: U32,
    /// Command specific.
    pub cdw3: U32,
    /// Metadata Pointer.
    pub mptr: U64,
    /// PRP Entry 1.
    pub prp1: U64,
    /// PRP Entry 2.
    pub prp2: U64,
    /// Command specific.
    pub cdw10: U32,
    /// Command specific.
    pub cdw11: U32,
    /// Command specific.
    pub cdw12: U32,
    /// Command specific.
    pub cdw13: U32,
    /// Command specific.
    pub cdw14: U32,
    /// Command specific.
    pub cdw15: U32,
}

/// A completion queue entry (Base 2.0c figure 90).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CompletionEntry {
    /// Command specific.
    pub dw0: U32,
    /// Command specific.
    pub dw1: U32,
    /// SQ Head Pointer: how far the controller has fetched.
    pub sqhd: U16,
    /// SQ Identifier.
    pub sqid: U16,
    /// Command Identifier.
    pub cid: U16,
    /// Phase Tag in bit 0, Status in 15:1.
    pub status: U16,
}

/// A range of a Dataset Management command (NVM 1.0c figure 38).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DsmRange {
    /// Context Attributes.
    pub cattr: U32,
    /// Length in logical blocks.
    pub nlb: U32,
    /// Starting LBA.
    pub slba: U64,
}

const _: () = assert!(size_of::<SubmissionEntry>() == SQE_SIZE);
const _: () = assert!(size_of::<CompletionEntry>() == CQE_SIZE);
const _: () = assert!(size_of::<DsmRange>() == 16);

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn entries_lie_as_the_specification_draws_them() {
        assert_eq!(offset_of!(SubmissionEntry, nsid), 4);
        assert_eq!(offset_of!(SubmissionEntry, mptr), 16);
        assert_eq!(offset_of!(SubmissionEntry, prp1), 24);
        assert_eq!(offset_of!(SubmissionEntry, prp2), 32);
        assert_eq!(offset_of!(SubmissionEntry, cdw10), 40);
        assert_eq!(offset_of!(SubmissionEntry, cdw15), 60);
        assert_eq!(offset_of!(CompletionEntry, sqhd), 8);
        assert_eq!(offset_of!(CompletionEntry, sqid), 10);
        assert_eq!(offset_of!(CompletionEntry, cid), 12);
        assert_eq!(offset_of!(CompletionEntry, status), 14);
        assert_eq!(offset_of!(DsmRange, nlb), 4);
        assert_eq!(offset_of!(DsmRange, slba), 8);
    }
}
