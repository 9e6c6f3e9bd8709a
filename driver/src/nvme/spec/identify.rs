//! What Identify returns, as far as this driver reads it (Base 2.0c §5.17.2, NVM 1.0c §4.1.5).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Size of every Identify data structure in bytes.
pub const IDENTIFY_SIZE: usize = 4096;

/// Identify Controller data structure (CNS 01h).
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyController {
    /// PCI Vendor ID.
    pub vid: U16,
    /// PCI Subsystem Vendor ID.
    pub ssvid: U16,
    /// Serial Number, ASCII, padded with spaces.
    pub sn: [u8; 20],
    /// Model Number, ASCII, padded with spaces.
    pub mn: [u8; 40],
    /// Firmware Revision, ASCII, padded with spaces.
    pub fr: [u8; 8],
    /// Recommended Arbitration Burst.
    pub rab: u8,
    /// IEEE OUI Identifier.
    pub ieee: [u8; 3],
    /// Controller Multi-Path I/O and Namespace Sharing Capabilities.
    pub cmic: u8,
    /// Maximum Data Transfer Size: `4096 << mdts` bytes (CAP.MPSMIN is 0); 0 is no limit.
    pub mdts: u8,
    /// Controller ID.
    pub cntlid: U16,
    /// Version.
    pub ver: U32,
    /// RTD3 Resume Latency, in microseconds.
    pub rtd3r: U32,
    /// RTD3 Entry Latency: how long a normal shutdown takes, in microseconds; 0 is not reported.
    pub rtd3e: U32,
    /// Optional Asynchronous Events Supported.
    pub oaes: U32,
    reserved_96: [u8; 162],
    /// Abort Command Limit, 0's based.
    pub acl: u8,
    /// Asynchronous Event Request Limit, 0's based.
    pub aerl: u8,
    reserved_260: [u8; 252],
    /// Submission Queue Entry Size: required in bits 3:0, maximum in 7:4.
    pub sqes: u8,
    /// Completion Queue Entry Size: required in bits 3:0, maximum in 7:4.
    pub cqes: u8,
    /// Maximum Outstanding Commands; 0 is not reported.
    pub maxcmd: U16,
    /// Number of Namespaces: the largest valid namespace identifier.
    pub nn: U32,
    /// Optional NVM Command Support: bit 2 Dataset Management, bit 3 Write Zeroes.
    pub oncs: U16,
    /// Fused Operation Support.
    pub fuses: U16,
    /// Format NVM Attributes.
    pub fna: u8,
    /// Volatile Write Cache: bit 0 present.
    pub vwc: u8,
    /// Atomic Write Unit Normal, in blocks, 0's based.
    pub awun: U16,
    /// Atomic Write Unit Power Fail, in blocks, 0's based.
    pub awupf: U16,
    reserved_530: [u8; 3566],
}

/// ONCS: Dataset Management is supported.
pub const ONCS_DSM: u16 = 1 << 2;
/// ONCS: Write Zeroes is supported.
pub const ONCS_WRITE_ZEROES: u16 = 1 << 3;

/// I/O Command Set specific Identify Controller data structure of the NVM command set (CNS 06h).
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyControllerNvm {
    /// Verify Size Limit.
    pub vsl: u8,
    /// Write Zeroes Size Limit: `4096 << wzsl` bytes; 0 is no limit.
    pub wzsl: u8,
    /// Write Uncorrectable Size Limit.
    pub wusl: u8,
    /// Dataset Management Ranges Limit: ranges in one command; 0 is not reported.
    pub dmrl: u8,
    /// Dataset Management Range Size Limit: blocks in one range; 0 is not reported.
    pub dmrsl: U32,
    /// Dataset Management Size Limit: blocks in one command; 0 is not reported.
    pub dmsl: U64,
    reserved_16: [u8; 4080],
}

/// An LBA Format (NVM 1.0c figure 98).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LbaFormat {
    /// Metadata Size in bytes.
    pub ms: U16,
    /// LBA Data Size, as a power of two.
    pub lbads: u8,
    /// Relative Performance.
    pub rp: u8,
}

/// Identify Namespace data structure of the NVM command set (CNS 00h).
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Namespace Size in blocks; 0 for an inactive namespace.
    pub nsze: U64,
    /// Namespace Capacity in blocks.
    pub ncap: U64,
    /// Namespace Utilization in blocks.
    pub nuse: U64,
    /// Namespace Features.
    pub nsfeat: u8,
    /// Number of LBA Formats, 0's based.
    pub nlbaf: u8,
    /// Formatted LBA Size: index of the format, bits 3:0 low and 6:5 high.
    pub flbas: u8,
    /// Metadata Capabilities.
    pub mc: u8,
    /// End-to-end Data Protection Capabilities.
    pub dpc: u8,
    /// End-to-end Data Protection Type Settings.
    pub dps: u8,
    /// Namespace Multi-path I/O and Namespace Sharing Capabilities.
    pub nmic: u8,
    /// Reservation Capabilities.
    pub rescap: u8,
    /// Format Progress Indicator.
    pub fpi: u8,
    /// Deallocate Logical Block Features: bits 2:0 what a deallocated block reads as (001b zeroes),
    /// bit 3 that Write Zeroes takes DEAC.
    pub dlfeat: u8,
    reserved_34: [u8; 65],
    /// Namespace Attributes: bit 0 write protected.
    pub nsattr: u8,
    reserved_100: [u8; 4],
    /// Namespace Globally Unique Identifier.
    pub nguid: [u8; 16],
    /// IEEE Extended Unique Identifier, big-endian.
    pub eui64: [u8; 8],
    /// LBA Format Support.
    pub lbaf: [LbaFormat; 64],
    reserved_384: [u8; 3712],
}

const _: () = assert!(size_of::<IdentifyController>() == IDENTIFY_SIZE);
const _: () = assert!(size_of::<IdentifyControllerNvm>() == IDENTIFY_SIZE);
const _: () = assert!(size_of::<IdentifyNamespace>() == IDENTIFY_SIZE);

/// The text of a field of ASCII padded with spaces, with what is not printable left out.
pub fn text(field: &[u8]) -> String {
    let printable = field.iter().filter(|byte| (0x20..0x7f).contains(*byte));
    printable.map(|&byte| char::from(byte)).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        assert_eq!(offset_of!(IdentifyController, sn), 4);
        assert_eq!(offset_of!(IdentifyController, mn), 24);
        assert_eq!(offset_of!(IdentifyController, fr), 64);
        assert_eq!(offset_of!(IdentifyController, mdts), 77);
        assert_eq!(offset_of!(IdentifyController, cntlid), 78);
        assert_eq!(offset_of!(IdentifyController, ver), 80);
        assert_eq!(offset_of!(IdentifyController, rtd3e), 88);
        assert_eq!(offset_of!(IdentifyController, sqes), 512);
        assert_eq!(offset_of!(IdentifyController, cqes), 513);
        assert_eq!(offset_of!(IdentifyController, nn), 516);
        assert_eq!(offset_of!(IdentifyController, oncs), 520);
        assert_eq!(offset_of!(IdentifyController, vwc), 525);
        assert_eq!(offset_of!(IdentifyControllerNvm, dmrsl), 4);
        assert_eq!(offset_of!(IdentifyControllerNvm, dmsl), 8);
        assert_eq!(offset_of!(IdentifyNamespace, nlbaf), 25);
        assert_eq!(offset_of!(IdentifyNamespace, flbas), 26);
        assert_eq!(offset_of!(IdentifyNamespace, dlfeat), 33);
        assert_eq!(offset_of!(IdentifyNamespace, nsattr), 99);
        assert_eq!(offset_of!(IdentifyNamespace, nguid), 104);
        assert_eq!(offset_of!(IdentifyNamespace, eui64), 120);
        assert_eq!(offset_of!(IdentifyNamespace, lbaf), 128);
    }

    #[test]
    fn text_of_a_hostile_field_is_still_text() {
        assert_eq!(text(b"QEMU NVMe Ctrl      "), "QEMU NVMe Ctrl");
        assert_eq!(text(b"\x1b[2J\0\xffx  "), "[2Jx");
    }
}
