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
    /// Admin: Get Log Page.
    pub const GET_LOG_PAGE: Self = Self(0x02);
    /// Admin: Identify.
    pub const IDENTIFY: Self = Self(0x06);
    /// Admin: Abort.
    pub const ABORT: Self = Self(0x08);
    /// Admin: Set Features.
    pub const SET_FEATURES: Self = Self(0x09);
    /// Admin: Get Features.
    pub const GET_FEATURES: Self = Self(0x0a);
    /// Admin: Asynchronous Event Request.
    pub const ASYNCHRONOUS_EVENT_REQUEST: Self = Self(0x0c);
    /// Admin: Namespace Management.
    pub const NAMESPACE_MANAGEMENT: Self = Self(0x0d);
    /// Admin: Firmware Commit.
    pub const FIRMWARE_COMMIT: Self = Self(0x10);
    /// Admin: Firmware Image Download.
    pub const FIRMWARE_DOWNLOAD: Self = Self(0x11);
    /// Admin: Device Self-test.
    pub const DEVICE_SELF_TEST: Self = Self(0x14);
    /// Admin: Namespace Attachment.
    pub const NAMESPACE_ATTACHMENT: Self = Self(0x15);
    /// Admin: Directive Send.
    pub const DIRECTIVE_SEND: Self = Self(0x19);
    /// Admin: Directive Receive.
    pub const DIRECTIVE_RECEIVE: Self = Self(0x1a);
    /// Admin: Doorbell Buffer Config.
    pub const DOORBELL_BUFFER_CONFIG: Self = Self(0x7c);
    /// Admin: Format NVM.
    pub const FORMAT_NVM: Self = Self(0x80);
    /// Admin: Security Send.
    pub const SECURITY_SEND: Self = Self(0x81);
    /// Admin: Security Receive.
    pub const SECURITY_RECEIVE: Self = Self(0x82);
    /// Admin: Sanitize.
    pub const SANITIZE: Self = Self(0x84);
    /// I/O: Flush.
    pub const FLUSH: Self = Self(0x00);
    /// I/O: Write.
    pub const WRITE: Self = Self(0x01);
    /// I/O: Read.
    pub const READ: Self = Self(0x02);
    /// I/O: Write Uncorrectable.
    pub const WRITE_UNCORRECTABLE: Self = Self(0x04);
    /// I/O: Compare.
    pub const COMPARE: Self = Self(0x05);
    /// I/O: Write Zeroes.
    pub const WRITE_ZEROES: Self = Self(0x08);
    /// I/O: Dataset Management.
    pub const DATASET_MANAGEMENT: Self = Self(0x09);
    /// I/O: Verify.
    pub const VERIFY: Self = Self(0x0c);
    /// I/O: Reservation Register.
    pub const RESERVATION_REGISTER: Self = Self(0x0d);
    /// I/O: Reservation Report.
    pub const RESERVATION_REPORT: Self = Self(0x0e);
    /// I/O: Reservation Acquire.
    pub const RESERVATION_ACQUIRE: Self = Self(0x11);
    /// I/O: I/O Management Receive.
    pub const IO_MANAGEMENT_RECEIVE: Self = Self(0x12);
    /// I/O: Reservation Release.
    pub const RESERVATION_RELEASE: Self = Self(0x15);
    /// I/O: Copy.
    pub const COPY: Self = Self(0x19);
    /// I/O: I/O Management Send.
    pub const IO_MANAGEMENT_SEND: Self = Self(0x1d);
    /// I/O, zoned: Zone Management Send.
    pub const ZONE_MANAGEMENT_SEND: Self = Self(0x79);
    /// I/O, zoned: Zone Management Receive.
    pub const ZONE_MANAGEMENT_RECEIVE: Self = Self(0x7a);
    /// I/O, zoned: Zone Append.
    pub const ZONE_APPEND: Self = Self(0x7d);

    /// The name of an admin command.
    pub fn admin_name(self) -> String {
        let name = match self {
            Self::DELETE_IO_SQ => "Delete I/O Submission Queue",
            Self::CREATE_IO_SQ => "Create I/O Submission Queue",
            Self::GET_LOG_PAGE => "Get Log Page",
            Self::DELETE_IO_CQ => "Delete I/O Completion Queue",
            Self::CREATE_IO_CQ => "Create I/O Completion Queue",
            Self::IDENTIFY => "Identify",
            Self::ABORT => "Abort",
            Self::SET_FEATURES => "Set Features",
            Self::GET_FEATURES => "Get Features",
            Self::ASYNCHRONOUS_EVENT_REQUEST => "Asynchronous Event Request",
            Self::NAMESPACE_MANAGEMENT => "Namespace Management",
            Self::FIRMWARE_COMMIT => "Firmware Commit",
            Self::FIRMWARE_DOWNLOAD => "Firmware Image Download",
            Self::DEVICE_SELF_TEST => "Device Self-test",
            Self::NAMESPACE_ATTACHMENT => "Namespace Attachment",
            Self::DIRECTIVE_SEND => "Directive Send",
            Self::DIRECTIVE_RECEIVE => "Directive Receive",
            Self::DOORBELL_BUFFER_CONFIG => "Doorbell Buffer Config",
            Self::FORMAT_NVM => "Format NVM",
            Self::SECURITY_SEND => "Security Send",
            Self::SECURITY_RECEIVE => "Security Receive",
            Self::SANITIZE => "Sanitize",
            Self(opcode) => return format!("admin command {opcode:#04x}"),
        };
        name.to_owned()
    }

    /// The name of an I/O command.
    pub fn io_name(self) -> String {
        let name = match self {
            Self::FLUSH => "Flush",
            Self::WRITE => "Write",
            Self::READ => "Read",
            Self::WRITE_UNCORRECTABLE => "Write Uncorrectable",
            Self::COMPARE => "Compare",
            Self::WRITE_ZEROES => "Write Zeroes",
            Self::DATASET_MANAGEMENT => "Dataset Management",
            Self::VERIFY => "Verify",
            Self::RESERVATION_REGISTER => "Reservation Register",
            Self::RESERVATION_REPORT => "Reservation Report",
            Self::RESERVATION_ACQUIRE => "Reservation Acquire",
            Self::IO_MANAGEMENT_RECEIVE => "I/O Management Receive",
            Self::RESERVATION_RELEASE => "Reservation Release",
            Self::COPY => "Copy",
            Self::IO_MANAGEMENT_SEND => "I/O Management Send",
            Self::ZONE_MANAGEMENT_SEND => "Zone Management Send",
            Self::ZONE_MANAGEMENT_RECEIVE => "Zone Management Receive",
            Self::ZONE_APPEND => "Zone Append",
            Self(opcode) => return format!("I/O command {opcode:#04x}"),
        };
        name.to_owned()
    }
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
    /// I/O Command Set specific Identify Namespace data structure.
    pub const NAMESPACE_CSI: u32 = 0x05;
    /// I/O Command Set specific Identify Controller data structure.
    pub const CONTROLLER_CSI: u32 = 0x06;
    /// Allocated Namespace ID list: attached to this controller or not.
    pub const ALLOCATED_NAMESPACES: u32 = 0x10;
    /// Identify Namespace data structure of an allocated namespace.
    pub const ALLOCATED_NAMESPACE: u32 = 0x11;
    /// List of the controllers that a namespace is attached to.
    pub const ATTACHED_CONTROLLERS: u32 = 0x12;
    /// List of the controllers of the subsystem.
    pub const CONTROLLERS: u32 = 0x13;
    /// I/O Command Sets that the controller does, and in which combinations.
    pub const COMMAND_SETS: u32 = 0x1c;
}

/// I/O Command Set Identifiers (Base 2.0c figure 274).
pub mod csi {
    /// NVM.
    pub const NVM: u8 = 0x00;
    /// Key Value.
    pub const KEY_VALUE: u8 = 0x01;
    /// Zoned Namespace.
    pub const ZONED: u8 = 0x02;
}

/// Set Features: Number of Queues (Base 2.0c §5.27.1.5).
pub const FEATURE_NUMBER_OF_QUEUES: u32 = 0x07;

/// Set Features: Host Memory Buffer (Base 2.0c §5.27.1.9).
pub const FEATURE_HOST_MEMORY_BUFFER: u32 = 0x0d;

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
