//! Status of a completed command, Base 2.0c §3.3.3.2.1.

use crate::error::{IoError, IoErrorKind, IoResult};

/// The status field of a completion without its phase bit: SC in bits 7:0, SCT in 10:8, CRD in 12:11,
/// More in 13, Do Not Retry in 14. An open set: vendors have codes of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status(pub u16);

impl Status {
    /// Generic: Successful Completion.
    pub const SUCCESS: Self = Self(0x000);
    /// Generic: Invalid Command Opcode.
    pub const INVALID_OPCODE: Self = Self(0x001);
    /// Generic: Invalid Field in Command.
    pub const INVALID_FIELD: Self = Self(0x002);
    /// Generic: Data Transfer Error.
    pub const DATA_TRANSFER_ERROR: Self = Self(0x004);
    /// Generic: Internal Error.
    pub const INTERNAL_ERROR: Self = Self(0x006);
    /// Generic: Command Abort Requested.
    pub const ABORT_REQUESTED: Self = Self(0x007);
    /// Generic: Command Aborted due to SQ Deletion.
    pub const ABORTED_SQ_DELETION: Self = Self(0x008);
    /// Generic: Invalid Namespace or Format.
    pub const INVALID_NAMESPACE: Self = Self(0x00b);
    /// Generic: Invalid SGL Segment Descriptor.
    pub const SGL_SEGMENT_INVALID: Self = Self(0x00d);
    /// Generic: Data SGL Length Invalid.
    pub const SGL_LENGTH_INVALID: Self = Self(0x00f);
    /// Generic: SGL Descriptor Type Invalid.
    pub const SGL_TYPE_INVALID: Self = Self(0x011);
    /// Generic: PRP Offset Invalid.
    pub const PRP_OFFSET_INVALID: Self = Self(0x013);
    /// Generic: Namespace is Write Protected.
    pub const NAMESPACE_WRITE_PROTECTED: Self = Self(0x020);
    /// Generic: Command Interrupted.
    pub const COMMAND_INTERRUPTED: Self = Self(0x021);
    /// Generic: Transient Transport Error.
    pub const TRANSIENT_TRANSPORT_ERROR: Self = Self(0x022);
    /// Generic: Namespace Not Ready.
    pub const NAMESPACE_NOT_READY: Self = Self(0x082);
    /// Generic (NVM command set): LBA Out of Range.
    pub const LBA_OUT_OF_RANGE: Self = Self(0x080);
    /// Generic (NVM command set): Capacity Exceeded.
    pub const CAPACITY_EXCEEDED: Self = Self(0x081);
    /// Command specific: Completion Queue Invalid.
    pub const COMPLETION_QUEUE_INVALID: Self = Self(0x100);
    /// Command specific: Invalid Queue Identifier.
    pub const INVALID_QUEUE_IDENTIFIER: Self = Self(0x101);
    /// Command specific: Invalid Queue Size.
    pub const INVALID_QUEUE_SIZE: Self = Self(0x102);
    /// Command specific: Invalid Queue Deletion.
    pub const INVALID_QUEUE_DELETION: Self = Self(0x10c);
    /// Command specific (NVM command set): Attempted Write to Read Only Range.
    pub const WRITE_TO_READ_ONLY_RANGE: Self = Self(0x182);
    /// Media and data integrity: Write Fault.
    pub const WRITE_FAULT: Self = Self(0x280);
    /// Media and data integrity: Unrecovered Read Error.
    pub const UNRECOVERED_READ_ERROR: Self = Self(0x281);

    /// Generic: Command Aborted due to Failed Fused Command.
    pub const ABORTED_FAILED_FUSED: Self = Self(0x009);
    /// Generic: Command Aborted due to Missing Fused Command.
    pub const ABORTED_MISSING_FUSED: Self = Self(0x00a);
    /// Generic: Command Sequence Error.
    pub const COMMAND_SEQUENCE_ERROR: Self = Self(0x00c);
    /// Generic: Operation Denied.
    pub const OPERATION_DENIED: Self = Self(0x015);
    /// Generic: Sanitize Failed.
    pub const SANITIZE_FAILED: Self = Self(0x01c);
    /// Generic: Sanitize In Progress.
    pub const SANITIZE_IN_PROGRESS: Self = Self(0x01d);
    /// Generic: FDP Disabled.
    pub const FDP_DISABLED: Self = Self(0x029);
    /// Generic: Invalid Placement Handle List.
    pub const INVALID_PLACEMENT_HANDLE_LIST: Self = Self(0x02a);
    /// Generic: Reservation Conflict.
    pub const RESERVATION_CONFLICT: Self = Self(0x083);
    /// Command specific: Invalid Firmware Slot.
    pub const INVALID_FIRMWARE_SLOT: Self = Self(0x106);
    /// Command specific: Invalid Firmware Image.
    pub const INVALID_FIRMWARE_IMAGE: Self = Self(0x107);
    /// Command specific: Invalid Log Page.
    pub const INVALID_LOG_PAGE: Self = Self(0x109);
    /// Command specific: Invalid Format.
    pub const INVALID_FORMAT: Self = Self(0x10a);
    /// Command specific: Firmware Activation Requires Conventional Reset.
    pub const FIRMWARE_NEEDS_CONVENTIONAL_RESET: Self = Self(0x10b);
    /// Command specific: Feature Identifier Not Saveable.
    pub const FEATURE_NOT_SAVEABLE: Self = Self(0x10d);
    /// Command specific: Feature Not Changeable.
    pub const FEATURE_NOT_CHANGEABLE: Self = Self(0x10e);
    /// Command specific: Feature Not Namespace Specific.
    pub const FEATURE_NOT_NAMESPACE_SPECIFIC: Self = Self(0x10f);
    /// Command specific: Firmware Activation Requires NVM Subsystem Reset.
    pub const FIRMWARE_NEEDS_SUBSYSTEM_RESET: Self = Self(0x110);
    /// Command specific: Firmware Activation Requires Controller Level Reset.
    pub const FIRMWARE_NEEDS_CONTROLLER_RESET: Self = Self(0x111);
    /// Command specific: Overlapping Range.
    pub const OVERLAPPING_RANGE: Self = Self(0x114);
    /// Command specific: Namespace Insufficient Capacity.
    pub const NAMESPACE_INSUFFICIENT_CAPACITY: Self = Self(0x115);
    /// Command specific: Namespace Identifier Unavailable.
    pub const NAMESPACE_IDENTIFIER_UNAVAILABLE: Self = Self(0x116);
    /// Command specific: Namespace Already Attached.
    pub const NAMESPACE_ALREADY_ATTACHED: Self = Self(0x118);
    /// Command specific: Namespace Not Attached.
    pub const NAMESPACE_NOT_ATTACHED: Self = Self(0x11a);
    /// Command specific: Controller List Invalid.
    pub const CONTROLLER_LIST_INVALID: Self = Self(0x11c);
    /// Command specific: Device Self-test In Progress.
    pub const SELF_TEST_IN_PROGRESS: Self = Self(0x11d);
    /// Command specific: Conflicting Attributes.
    pub const CONFLICTING_ATTRIBUTES: Self = Self(0x180);
    /// Command specific: Invalid Protection Information.
    pub const INVALID_PROTECTION_INFORMATION: Self = Self(0x181);
    /// Command specific: Command Size Limit Exceeded.
    pub const COMMAND_SIZE_LIMIT_EXCEEDED: Self = Self(0x183);
    /// Command specific: Zoned Boundary Error.
    pub const ZONED_BOUNDARY_ERROR: Self = Self(0x1b8);
    /// Command specific: Zone Is Full.
    pub const ZONE_IS_FULL: Self = Self(0x1b9);
    /// Command specific: Zone Is Read Only.
    pub const ZONE_IS_READ_ONLY: Self = Self(0x1ba);
    /// Command specific: Zone Is Offline.
    pub const ZONE_IS_OFFLINE: Self = Self(0x1bb);
    /// Command specific: Zone Invalid Write.
    pub const ZONE_INVALID_WRITE: Self = Self(0x1bc);
    /// Command specific: Too Many Active Zones.
    pub const TOO_MANY_ACTIVE_ZONES: Self = Self(0x1bd);
    /// Command specific: Too Many Open Zones.
    pub const TOO_MANY_OPEN_ZONES: Self = Self(0x1be);
    /// Command specific: Invalid Zone State Transition.
    pub const INVALID_ZONE_STATE_TRANSITION: Self = Self(0x1bf);
    /// Media and data integrity: End-to-end Guard Check Error.
    pub const GUARD_CHECK_ERROR: Self = Self(0x282);
    /// Media and data integrity: End-to-end Application Tag Check Error.
    pub const APPLICATION_TAG_CHECK_ERROR: Self = Self(0x283);
    /// Media and data integrity: End-to-end Reference Tag Check Error.
    pub const REFERENCE_TAG_CHECK_ERROR: Self = Self(0x284);
    /// Media and data integrity: Compare Failure.
    pub const COMPARE_FAILURE: Self = Self(0x285);

    /// Do Not Retry.
    pub const DNR: u16 = 1 << 14;

    /// SCT and SC alone, to be compared with the constants.
    pub const fn code(self) -> Self {
        Self(self.0 & 0x7ff)
    }

    /// Status Code Type: 0 generic, 1 command specific, 2 media and data integrity, 3 path, 7 vendor.
    pub const fn sct(self) -> u16 {
        self.0 >> 8 & 7
    }

    /// Whether the controller says that trying the same again will fail again.
    pub const fn do_not_retry(self) -> bool {
        self.0 & Self::DNR != 0
    }

    /// Command Retry Delay: which of the controller's three delays to keep before the command is sent
    /// again, 1 to 3; 0 for none.
    pub const fn retry_delay(self) -> usize {
        (self.0 >> 11 & 0b11) as usize
    }

    /// Whether the same command, sent again, may do: the controller does not say otherwise, and it is
    /// not the command that is wrong.
    pub fn may_pass(self) -> bool {
        use IoErrorKind::{Device, Media};
        let conflict = self.code() == Self::RESERVATION_CONFLICT;
        !self.do_not_retry() && !conflict && matches!(self.to_io_error().kind, Device | Media)
    }

    /// Whether it says that nothing of the command was done.
    pub const fn was_not_begun(self) -> bool {
        matches!(
            self.code(),
            Self::COMMAND_INTERRUPTED | Self::TRANSIENT_TRANSPORT_ERROR | Self::NAMESPACE_NOT_READY
        )
    }

    /// Whether the error log has more about it.
    pub const fn more(self) -> bool {
        self.0 & 1 << 13 != 0
    }

    /// What the status means to the submitter: nothing, when SCT and SC are 0, whatever the other bits.
    pub const fn to_result(self) -> IoResult {
        if self.code().0 == 0 { Ok(()) } else { Err(self.to_io_error()) }
    }

    /// What the status means to the submitter, when it is not success.
    #[cold]
    #[inline(never)]
    pub const fn to_io_error(self) -> IoError {
        let kind = match self.code() {
            Self::INVALID_OPCODE => IoErrorKind::Unsupported,
            Self::INVALID_FIELD
            | Self::SGL_SEGMENT_INVALID
            | Self::SGL_LENGTH_INVALID
            | Self::SGL_TYPE_INVALID
            | Self::PRP_OFFSET_INVALID
            | Self::LBA_OUT_OF_RANGE => IoErrorKind::Invalid,
            Self::ABORT_REQUESTED | Self::ABORTED_SQ_DELETION => IoErrorKind::Cancelled,
            Self::INVALID_NAMESPACE => IoErrorKind::Gone,
            Self::NAMESPACE_WRITE_PROTECTED | Self::WRITE_TO_READ_ONLY_RANGE => {
                IoErrorKind::ReadOnly
            }
            Self::CAPACITY_EXCEEDED => IoErrorKind::NoSpace,
            other if other.sct() == 2 => IoErrorKind::Media,
            _ => IoErrorKind::Device,
        };
        IoError { kind, status: self.0 & (Self::DNR | 0x7ff), do_not_retry: self.do_not_retry() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_keeps_its_code_beside_the_translation() {
        let error = Status(Status::UNRECOVERED_READ_ERROR.0 | Status::DNR | 1 << 13).to_io_error();
        assert_eq!(error.kind, IoErrorKind::Media);
        assert_eq!(error.status, 0x4281, "SCT<<8 | SC | DNR<<14, without More");
        assert!(error.do_not_retry);
        let error = Status::INTERNAL_ERROR.to_io_error();
        assert_eq!((error.kind, error.do_not_retry), (IoErrorKind::Device, false));
    }

    #[test]
    fn every_status_is_some_error() {
        for raw in 1..1 << 15 {
            let error = Status(raw).to_io_error();
            assert_eq!(error.kind == IoErrorKind::Media, raw >> 8 & 7 == 2, "{raw:#x}");
        }
    }
}
