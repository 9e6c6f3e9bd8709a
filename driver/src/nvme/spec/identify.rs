//! What Identify returns (Base 2.0c §5.17.2, NVM 1.0c §4.1.5, ZNS 1.1b §4.1.5).

use super::layout::{Array, Hex, Text, layout};

/// Size of every Identify data structure in bytes.
pub const IDENTIFY_SIZE: usize = 4096;

layout! {
    /// Power State Descriptor (Base 2.0c figure 276).
    pub struct PowerState: 32 {
        /// Maximum Power, in the scale of `flags` bit 0: 0.01 W, or 0.0001 W when it is set.
        0 mp: u16,
        /// Bit 0 Max Power Scale, bit 1 Non-Operational State.
        3 flags: u8,
        /// Entry Latency in microseconds.
        4 enlat: u32,
        /// Exit Latency in microseconds.
        8 exlat: u32,
        /// Relative Read Throughput: less is more.
        12 rrt: u8,
        /// Relative Read Latency.
        13 rrl: u8,
        /// Relative Write Throughput.
        14 rwt: u8,
        /// Relative Write Latency.
        15 rwl: u8,
        /// Idle Power.
        16 idlp: u16,
        /// Idle Power Scale in bits 7:6.
        18 ips: u8,
        /// Active Power.
        20 actp: u16,
        /// Active Power Workload in bits 2:0, its scale in bits 7:6.
        22 apws: u8,
    }

    /// Identify Controller data structure (CNS 01h, Base 2.0c figure 275).
    pub struct IdentifyController: 4096 {
        /// PCI Vendor ID.
        0 vid: u16,
        /// PCI Subsystem Vendor ID.
        2 ssvid: u16,
        /// Serial Number.
        4 sn: Text<20>,
        /// Model Number.
        24 mn: Text<40>,
        /// Firmware Revision.
        64 fr: Text<8>,
        /// Recommended Arbitration Burst.
        72 rab: u8,
        /// IEEE OUI Identifier, least significant byte first.
        73 ieee: Array<u8, 3>,
        /// Controller Multi-Path I/O and Namespace Sharing Capabilities.
        76 cmic: u8,
        /// Maximum Data Transfer Size: `4096 << mdts` bytes (CAP.MPSMIN is 0); 0 is no limit.
        77 mdts: u8,
        /// Controller ID.
        78 cntlid: u16,
        /// Version.
        80 ver: u32,
        /// RTD3 Resume Latency, in microseconds.
        84 rtd3r: u32,
        /// RTD3 Entry Latency: how long a normal shutdown takes, in microseconds; 0 is not reported.
        88 rtd3e: u32,
        /// Optional Asynchronous Events Supported.
        92 oaes: u32,
        /// Controller Attributes: bit 0 128-bit host identifiers, bit 15 extended LBA formats.
        96 ctratt: u32,
        /// Read Recovery Levels Supported.
        100 rrls: u16,
        /// Controller Type: 1 I/O, 2 discovery, 3 administrative.
        111 cntrltype: u8,
        /// FRU Globally Unique Identifier.
        112 fguid: Hex<16>,
        /// Command Retry Delay Time 1, in units of 100 ms.
        128 crdt1: u16,
        /// Command Retry Delay Time 2, in units of 100 ms.
        130 crdt2: u16,
        /// Command Retry Delay Time 3, in units of 100 ms.
        132 crdt3: u16,
        /// NVM Subsystem Report.
        253 nvmsr: u8,
        /// VPD Write Cycle Information.
        254 vwci: u8,
        /// Management Endpoint Capabilities.
        255 mec: u8,
        /// Optional Admin Command Support: the constants [`oacs`].
        256 oacs: u16,
        /// Abort Command Limit, 0's based.
        258 acl: u8,
        /// Asynchronous Event Request Limit, 0's based.
        259 aerl: u8,
        /// Firmware Updates: bit 0 slot 1 read-only, bits 3:1 slots, bit 4 activation without reset.
        260 frmw: u8,
        /// Log Page Attributes: bit 0 SMART for each namespace, bit 2 offsets, bit 3 telemetry, bit 4
        /// persistent events.
        261 lpa: u8,
        /// Error Log Page Entries, 0's based.
        262 elpe: u8,
        /// Number of Power States Support, 0's based.
        263 npss: u8,
        /// Admin Vendor Specific Command Configuration.
        264 avscc: u8,
        /// Autonomous Power State Transition Attributes: bit 0 supported.
        265 apsta: u8,
        /// Warning Composite Temperature Threshold in kelvin.
        266 wctemp: u16,
        /// Critical Composite Temperature Threshold in kelvin.
        268 cctemp: u16,
        /// Maximum Time for Firmware Activation, in units of 100 ms.
        270 mtfa: u16,
        /// Host Memory Buffer Preferred Size, in units of 4 KiB.
        272 hmpre: u32,
        /// Host Memory Buffer Minimum Size, in units of 4 KiB.
        276 hmmin: u32,
        /// Total NVM Capacity in bytes.
        280 tnvmcap: u128,
        /// Unallocated NVM Capacity in bytes.
        296 unvmcap: u128,
        /// Replay Protected Memory Block Support.
        312 rpmbs: u32,
        /// Extended Device Self-test Time in minutes.
        316 edstt: u16,
        /// Device Self-test Options: bit 0 one at a time in the subsystem.
        318 dsto: u8,
        /// Firmware Update Granularity, in units of 4 KiB; 0 not known, FFh no restriction.
        319 fwug: u8,
        /// Keep Alive Support, in units of 100 ms.
        320 kas: u16,
        /// Host Controlled Thermal Management Attributes.
        322 hctma: u16,
        /// Minimum Thermal Management Temperature in kelvin.
        324 mntmt: u16,
        /// Maximum Thermal Management Temperature in kelvin.
        326 mxtmt: u16,
        /// Sanitize Capabilities: bit 0 crypto erase, bit 1 block erase, bit 2 overwrite.
        328 sanicap: u32,
        /// Host Memory Buffer Minimum Descriptor Entry Size, in units of 4 KiB.
        332 hmminds: u32,
        /// Host Memory Maximum Descriptors Entries.
        336 hmmaxd: u16,
        /// NVM Set Identifier Maximum.
        338 nsetidmax: u16,
        /// Endurance Group Identifier Maximum.
        340 endgidmax: u16,
        /// ANA Transition Time in seconds.
        342 anatt: u8,
        /// Asymmetric Namespace Access Capabilities.
        343 anacap: u8,
        /// ANA Group Identifier Maximum.
        344 anagrpmax: u32,
        /// Number of ANA Group Identifiers.
        348 nanagrpid: u32,
        /// Persistent Event Log Size, in units of 64 KiB.
        352 pels: u32,
        /// Domain Identifier.
        356 domainid: u16,
        /// Max Endurance Group Capacity in bytes.
        368 megcap: u128,
        /// Submission Queue Entry Size: required in bits 3:0, maximum in 7:4.
        512 sqes: u8,
        /// Completion Queue Entry Size: required in bits 3:0, maximum in 7:4.
        513 cqes: u8,
        /// Maximum Outstanding Commands; 0 is not reported.
        514 maxcmd: u16,
        /// Number of Namespaces: the largest valid namespace identifier.
        516 nn: u32,
        /// Optional NVM Command Support: the constants [`oncs`].
        520 oncs: u16,
        /// Fused Operation Support: bit 0 Compare and Write.
        522 fuses: u16,
        /// Format NVM Attributes: bit 0 formats all namespaces, bit 1 erases all, bit 2 cryptographic
        /// erase, bit 3 not with the broadcast identifier.
        524 fna: u8,
        /// Volatile Write Cache: bit 0 present.
        525 vwc: u8,
        /// Atomic Write Unit Normal, in blocks, 0's based.
        526 awun: u16,
        /// Atomic Write Unit Power Fail, in blocks, 0's based.
        528 awupf: u16,
        /// I/O Command Set Vendor Specific Command Configuration.
        530 icsvscc: u8,
        /// Namespace Write Protection Capabilities.
        531 nwpc: u8,
        /// Atomic Compare & Write Unit, in blocks, 0's based.
        532 acwu: u16,
        /// Optional Copy Formats Supported: a bit for each format.
        534 ocfs: u16,
        /// SGL Support.
        536 sgls: u32,
        /// Maximum Number of Allowed Namespaces.
        540 mnan: u32,
        /// Maximum Domain Namespace Attachments.
        544 maxdna: u128,
        /// Maximum I/O Controller Namespace Attachments.
        560 maxcna: u32,
        /// NVM Subsystem NVMe Qualified Name.
        768 subnqn: Text<256>,
        /// Power State Descriptors; as many as `npss` says.
        2048 psd: Array<PowerState, 32>,
    }

    /// Identify Controller of the NVM command set (CNS 06h, NVM 1.0c figure 102).
    pub struct IdentifyControllerNvm: 4096 {
        /// Verify Size Limit: `4096 << vsl` bytes; 0 is no limit.
        0 vsl: u8,
        /// Write Zeroes Size Limit: `4096 << wzsl` bytes; 0 is no limit.
        1 wzsl: u8,
        /// Write Uncorrectable Size Limit: `4096 << wusl` bytes; 0 is no limit.
        2 wusl: u8,
        /// Dataset Management Ranges Limit: ranges in one command; 0 is not reported.
        3 dmrl: u8,
        /// Dataset Management Range Size Limit: blocks in one range; 0 is not reported.
        4 dmrsl: u32,
        /// Dataset Management Size Limit: blocks in one command; 0 is not reported.
        8 dmsl: u64,
    }

    /// Identify Controller of the zoned command set (CNS 06h, CSI 02h, ZNS 1.1b figure 52).
    pub struct IdentifyControllerZoned: 4096 {
        /// Zone Append Size Limit: `4096 << zasl` bytes; 0 is that of MDTS.
        0 zasl: u8,
    }

    /// An LBA Format (NVM 1.0c figure 98).
    #[derive(Copy)]
    pub struct LbaFormat: 4 {
        /// Metadata Size in bytes.
        0 ms: u16,
        /// LBA Data Size, as a power of two.
        2 lbads: u8,
        /// Relative Performance, less is better, in bits 1:0.
        3 rp: u8,
    }

    /// Identify Namespace data structure of the NVM command set (CNS 00h, NVM 1.0c figure 97).
    pub struct IdentifyNamespace: 4096 {
        /// Namespace Size in blocks; 0 for an inactive namespace.
        0 nsze: u64,
        /// Namespace Capacity in blocks.
        8 ncap: u64,
        /// Namespace Utilization in blocks.
        16 nuse: u64,
        /// Namespace Features: bit 0 thin provisioning, bit 4 the optimal I/O fields are set.
        24 nsfeat: u8,
        /// Number of LBA Formats, 0's based.
        25 nlbaf: u8,
        /// Formatted LBA Size: index of the format, bits 3:0 low and 6:5 high; bit 4 metadata at the
        /// end of the data.
        26 flbas: u8,
        /// Metadata Capabilities: bit 0 with the data, bit 1 in a buffer of its own.
        27 mc: u8,
        /// End-to-end Data Protection Capabilities: bits 2:0 types 1 to 3, bit 3 first and bit 4 last
        /// in the metadata.
        28 dpc: u8,
        /// End-to-end Data Protection Type Settings: bits 2:0 the type, bit 3 first in the metadata.
        29 dps: u8,
        /// Namespace Multi-path I/O and Namespace Sharing Capabilities.
        30 nmic: u8,
        /// Reservation Capabilities.
        31 rescap: u8,
        /// Format Progress Indicator: bit 7 supported, bits 6:0 percent left.
        32 fpi: u8,
        /// Deallocate Logical Block Features: bits 2:0 what a deallocated block reads as (001b
        /// zeroes), bit 3 that Write Zeroes takes DEAC.
        33 dlfeat: u8,
        /// Namespace Atomic Write Unit Normal.
        34 nawun: u16,
        /// Namespace Atomic Write Unit Power Fail.
        36 nawupf: u16,
        /// Namespace Atomic Compare & Write Unit.
        38 nacwu: u16,
        /// Namespace Atomic Boundary Size Normal.
        40 nabsn: u16,
        /// Namespace Atomic Boundary Offset.
        42 nabo: u16,
        /// Namespace Atomic Boundary Size Power Fail.
        44 nabspf: u16,
        /// Namespace Optimal I/O Boundary in blocks.
        46 noiob: u16,
        /// NVM Capacity in bytes.
        48 nvmcap: u128,
        /// Namespace Preferred Write Granularity.
        64 npwg: u16,
        /// Namespace Preferred Write Alignment.
        66 npwa: u16,
        /// Namespace Preferred Deallocate Granularity.
        68 npdg: u16,
        /// Namespace Preferred Deallocate Alignment.
        70 npda: u16,
        /// Namespace Optimal Write Size.
        72 nows: u16,
        /// Maximum Single Source Range Length of Copy, in blocks.
        74 mssrl: u16,
        /// Maximum Copy Length, in blocks.
        76 mcl: u32,
        /// Maximum Source Range Count of Copy, 0's based.
        80 msrc: u8,
        /// Number of Unique Capability LBA Formats.
        82 nulbaf: u8,
        /// ANA Group Identifier.
        92 anagrpid: u32,
        /// Namespace Attributes: bit 0 write protected.
        99 nsattr: u8,
        /// NVM Set Identifier.
        100 nvmsetid: u16,
        /// Endurance Group Identifier.
        102 endgid: u16,
        /// Namespace Globally Unique Identifier.
        104 nguid: Hex<16>,
        /// IEEE Extended Unique Identifier, big-endian.
        120 eui64: Hex<8>,
        /// LBA Format Support; as many as `nlbaf` says.
        128 lbaf: Array<LbaFormat, 64>,
    }

    /// Identify Namespace of the NVM command set, what is beyond the common one (CNS 05h, NVM 1.0c
    /// figure 100).
    pub struct IdentifyNamespaceNvm: 4096 {
        /// Logical Block Storage Tag Mask.
        0 lbstm: u64,
        /// Protection Information Capabilities: bit 0 16-bit guard with storage tag, bit 1 storage tag
        /// as a whole.
        8 pic: u8,
        /// Extended LBA Formats: bits 8:7 the guard (0 16 bits, 1 32 bits, 2 64 bits), bits 6:0 the
        /// storage tag's bits.
        12 elbaf: Array<u32, 64>,
    }

    /// An LBA Format Extension of a zoned namespace (ZNS 1.1b figure 50).
    pub struct ZonedFormat: 16 {
        /// Zone Size in blocks.
        0 zsze: u64,
        /// Zone Descriptor Extension Size, in units of 64 bytes.
        8 zdes: u8,
    }

    /// Identify Namespace of the zoned command set (CNS 05h, CSI 02h, ZNS 1.1b figure 48).
    pub struct IdentifyNamespaceZoned: 4096 {
        /// Zone Operation Characteristics.
        0 zoc: u16,
        /// Optional Zoned Command Support: bit 0 reads across zone boundaries.
        2 ozcs: u16,
        /// Maximum Active Resources, 0's based; FFFFFFFFh is no limit.
        4 mar: u32,
        /// Maximum Open Resources, 0's based; FFFFFFFFh is no limit.
        8 mor: u32,
        /// Reset Recommended Limit in seconds.
        12 rrl: u32,
        /// Finish Recommended Limit in seconds.
        16 frl: u32,
        /// LBA Format Extensions, one for each LBA format.
        2816 lbafe: Array<ZonedFormat, 64>,
    }
}

/// Bits of [`IdentifyController::oacs`].
pub mod oacs {
    /// Security Send and Receive.
    pub const SECURITY: u16 = 1 << 0;
    /// Format NVM.
    pub const FORMAT: u16 = 1 << 1;
    /// Firmware Image Download and Commit.
    pub const FIRMWARE: u16 = 1 << 2;
    /// Namespace Management and Attachment.
    pub const NAMESPACES: u16 = 1 << 3;
    /// Device Self-test.
    pub const SELF_TEST: u16 = 1 << 4;
    /// Directives.
    pub const DIRECTIVES: u16 = 1 << 5;
    /// Doorbell Buffer Config.
    pub const DOORBELL_BUFFER: u16 = 1 << 8;
}

/// Bits of [`IdentifyController::oncs`].
pub mod oncs {
    /// Compare.
    pub const COMPARE: u16 = 1 << 0;
    /// Write Uncorrectable.
    pub const WRITE_UNCORRECTABLE: u16 = 1 << 1;
    /// Dataset Management.
    pub const DSM: u16 = 1 << 2;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u16 = 1 << 3;
    /// Save and Select of features.
    pub const SAVE_SELECT: u16 = 1 << 4;
    /// Reservations.
    pub const RESERVATIONS: u16 = 1 << 5;
    /// Timestamp.
    pub const TIMESTAMP: u16 = 1 << 6;
    /// Verify.
    pub const VERIFY: u16 = 1 << 7;
    /// Copy.
    pub const COPY: u16 = 1 << 8;
}

impl IdentifyController {
    /// Whether it does an optional admin command ([`oacs`]).
    pub fn does_admin(&self, bit: u16) -> bool {
        self.oacs & bit != 0
    }

    /// Whether it does an optional I/O command ([`oncs`]).
    pub fn does(&self, bit: u16) -> bool {
        self.oncs & bit != 0
    }
}

impl IdentifyNamespace {
    /// Index of the format in use (NVM 1.0c figure 97: bits 6:5 count only when there are more than 16
    /// formats).
    pub fn format_index(&self) -> u8 {
        let high = if self.nlbaf > 16 { (self.flbas >> 5 & 0b11) << 4 } else { 0 };
        self.flbas & 0xf | high
    }

    /// The format in use.
    pub fn format(&self) -> LbaFormat {
        self.lbaf[usize::from(self.format_index())]
    }

    /// The formats it can have.
    pub fn formats(&self) -> &[LbaFormat] {
        let count = usize::from(self.nlbaf) + 1;
        &self.lbaf[..count.min(self.lbaf.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::{Layout, assert_places};
    use super::*;

    /// Base 2.0c figures 275 and 276, NVM 1.0c figures 97, 98, 100 and 102, ZNS 1.1b figures 48, 50
    /// and 52.
    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        assert_places::<IdentifyController>(
            4096,
            "vid@0+2 ssvid@2+2 sn@4+20 mn@24+40 fr@64+8 rab@72+1 ieee@73+3 cmic@76+1 mdts@77+1 \
             cntlid@78+2 ver@80+4 rtd3r@84+4 rtd3e@88+4 oaes@92+4 ctratt@96+4 rrls@100+2 \
             cntrltype@111+1 fguid@112+16 crdt1@128+2 crdt2@130+2 crdt3@132+2 nvmsr@253+1 \
             vwci@254+1 mec@255+1 oacs@256+2 acl@258+1 aerl@259+1 frmw@260+1 lpa@261+1 elpe@262+1 \
             npss@263+1 avscc@264+1 apsta@265+1 wctemp@266+2 cctemp@268+2 mtfa@270+2 hmpre@272+4 \
             hmmin@276+4 tnvmcap@280+16 unvmcap@296+16 rpmbs@312+4 edstt@316+2 dsto@318+1 \
             fwug@319+1 kas@320+2 hctma@322+2 mntmt@324+2 mxtmt@326+2 sanicap@328+4 hmminds@332+4 \
             hmmaxd@336+2 nsetidmax@338+2 endgidmax@340+2 anatt@342+1 anacap@343+1 anagrpmax@344+4 \
             nanagrpid@348+4 pels@352+4 domainid@356+2 megcap@368+16 sqes@512+1 cqes@513+1 \
             maxcmd@514+2 nn@516+4 oncs@520+2 fuses@522+2 fna@524+1 vwc@525+1 awun@526+2 \
             awupf@528+2 icsvscc@530+1 nwpc@531+1 acwu@532+2 ocfs@534+2 sgls@536+4 mnan@540+4 \
             maxdna@544+16 maxcna@560+4 subnqn@768+256 psd@2048+1024",
        );
        assert_places::<PowerState>(
            32,
            "mp@0+2 flags@3+1 enlat@4+4 exlat@8+4 rrt@12+1 rrl@13+1 rwt@14+1 rwl@15+1 idlp@16+2 \
             ips@18+1 actp@20+2 apws@22+1",
        );
        assert_places::<IdentifyControllerNvm>(
            4096,
            "vsl@0+1 wzsl@1+1 wusl@2+1 dmrl@3+1 dmrsl@4+4 dmsl@8+8",
        );
        assert_places::<IdentifyControllerZoned>(4096, "zasl@0+1");
        assert_places::<LbaFormat>(4, "ms@0+2 lbads@2+1 rp@3+1");
        assert_places::<IdentifyNamespace>(
            4096,
            "nsze@0+8 ncap@8+8 nuse@16+8 nsfeat@24+1 nlbaf@25+1 flbas@26+1 mc@27+1 dpc@28+1 \
             dps@29+1 nmic@30+1 rescap@31+1 fpi@32+1 dlfeat@33+1 nawun@34+2 nawupf@36+2 nacwu@38+2 \
             nabsn@40+2 nabo@42+2 nabspf@44+2 noiob@46+2 nvmcap@48+16 npwg@64+2 npwa@66+2 \
             npdg@68+2 npda@70+2 nows@72+2 mssrl@74+2 mcl@76+4 msrc@80+1 nulbaf@82+1 anagrpid@92+4 \
             nsattr@99+1 nvmsetid@100+2 endgid@102+2 nguid@104+16 eui64@120+8 lbaf@128+256",
        );
        assert_places::<IdentifyNamespaceNvm>(4096, "lbstm@0+8 pic@8+1 elbaf@12+256");
        assert_places::<ZonedFormat>(16, "zsze@0+8 zdes@8+1");
        assert_places::<IdentifyNamespaceZoned>(
            4096,
            "zoc@0+2 ozcs@2+2 mar@4+4 mor@8+4 rrl@12+4 frl@16+4 lbafe@2816+1024",
        );
    }

    #[test]
    fn text_of_a_hostile_field_is_still_text() {
        assert_eq!(Text(*b"QEMU NVMe Ctrl      ").to_string(), "QEMU NVMe Ctrl");
        assert_eq!(Text(*b"\x1b[2J\0\xffx  ").to_string(), "[2Jx");
    }

    #[test]
    fn no_format_index_is_outside_of_the_formats() {
        let mut id = IdentifyNamespace::decode(&[0xff; 4096]);
        for flbas in 0..=u8::MAX {
            id.flbas = flbas;
            let _ = id.format();
        }
        assert_eq!(id.formats().len(), 64);
    }
}
