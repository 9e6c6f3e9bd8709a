//! Log pages (Base 2.0c §5.16.1, ZNS 1.1b §4.1.4; those of Flexible Data Placement from Base 2.1
//! §5.1.12.1.28 to §5.1.12.1.31).

use super::layout::{Array, Hex, Text, layout};

/// A log page identifier. An open set: vendors have pages of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogId(pub u8);

impl LogId {
    /// Supported Log Pages.
    pub const SUPPORTED: Self = Self(0x00);
    /// Error Information.
    pub const ERROR: Self = Self(0x01);
    /// SMART / Health Information.
    pub const SMART: Self = Self(0x02);
    /// Firmware Slot Information.
    pub const FIRMWARE: Self = Self(0x03);
    /// Changed Namespace List.
    pub const CHANGED_NAMESPACES: Self = Self(0x04);
    /// Commands Supported and Effects.
    pub const EFFECTS: Self = Self(0x05);
    /// Device Self-test.
    pub const SELF_TEST: Self = Self(0x06);
    /// Telemetry Host-Initiated.
    pub const TELEMETRY_HOST: Self = Self(0x07);
    /// Telemetry Controller-Initiated.
    pub const TELEMETRY_CONTROLLER: Self = Self(0x08);
    /// Endurance Group Information.
    pub const ENDURANCE_GROUP: Self = Self(0x09);
    /// Persistent Event Log.
    pub const PERSISTENT_EVENT: Self = Self(0x0d);
    /// FDP Configurations.
    pub const FDP_CONFIGURATIONS: Self = Self(0x20);
    /// Reclaim Unit Handle Usage.
    pub const FDP_HANDLE_USAGE: Self = Self(0x21);
    /// FDP Statistics.
    pub const FDP_STATISTICS: Self = Self(0x22);
    /// FDP Events.
    pub const FDP_EVENTS: Self = Self(0x23);
    /// Reservation Notification.
    pub const RESERVATION: Self = Self(0x80);
    /// Sanitize Status.
    pub const SANITIZE: Self = Self(0x81);
    /// Changed Zone List.
    pub const CHANGED_ZONES: Self = Self(0xbf);
}

layout! {
    /// Supported Log Pages (Base 2.0c figure 202): bit 0 of each entry, by identifier.
    pub struct SupportedLogs: 1024 {
        /// Bit 0 supported, bit 1 an index offset is taken.
        0 entries: Array<u32, 256>,
    }

    /// An Error Information Log Entry (Base 2.0c figure 205).
    pub struct ErrorEntry: 64 {
        /// Unique number of the error; 0 is an entry without one.
        0 error_count: u64,
        /// Submission Queue ID.
        8 sqid: u16,
        /// Command ID.
        10 cid: u16,
        /// Status Field in bits 15:1, Phase Tag in bit 0.
        12 status_field: u16,
        /// Byte and bit of the command's parameter that is wrong.
        14 parameter_error_location: u16,
        /// The first block of the error.
        16 lba: u64,
        /// Namespace.
        24 nsid: u32,
        /// A log page with more about it.
        28 vendor_log_page: u8,
        /// Transport Type.
        29 trtype: u8,
        /// Command specific.
        32 command_specific: u64,
        /// Transport specific.
        40 transport_specific: u16,
    }

    /// SMART / Health Information (Base 2.0c figure 207).
    pub struct SmartLog: 512 {
        /// Bit 0 spare, 1 temperature, 2 reliability, 3 read-only, 4 memory backup, 5 persistent memory.
        0 critical_warning: u8,
        /// Composite Temperature.
        1 temperature_kelvin: u16,
        /// Available Spare.
        3 available_spare_percent: u8,
        /// Available Spare Threshold.
        4 available_spare_threshold_percent: u8,
        /// Percentage Used; may be above 100.
        5 percentage_used: u8,
        /// Endurance Group Critical Warning Summary.
        6 endurance_group_critical_warning: u8,
        /// Data Units Read: thousands of 512 bytes, rounded up.
        32 data_units_read_512000_bytes: u128,
        /// Data Units Written: thousands of 512 bytes, rounded up.
        48 data_units_written_512000_bytes: u128,
        /// Host Read Commands.
        64 host_read_commands: u128,
        /// Host Write Commands.
        80 host_write_commands: u128,
        /// Controller Busy Time.
        96 controller_busy_minutes: u128,
        /// Power Cycles.
        112 power_cycles: u128,
        /// Power On Hours.
        128 power_on_hours: u128,
        /// Unsafe Shutdowns.
        144 unsafe_shutdowns: u128,
        /// Media and Data Integrity Errors.
        160 media_errors: u128,
        /// Number of Error Information Log Entries over the life of the controller.
        176 error_log_entries: u128,
        /// Warning Composite Temperature Time.
        192 warning_temperature_minutes: u32,
        /// Critical Composite Temperature Time.
        196 critical_temperature_minutes: u32,
        /// Temperature Sensors 1 to 8; 0 is none.
        200 temperature_sensors_kelvin: Array<u16, 8>,
        /// Thermal Management Temperature 1 Transition Count.
        216 thermal_management_1_transitions: u32,
        /// Thermal Management Temperature 2 Transition Count.
        220 thermal_management_2_transitions: u32,
        /// Total Time For Thermal Management Temperature 1.
        224 thermal_management_1_seconds: u32,
        /// Total Time For Thermal Management Temperature 2.
        228 thermal_management_2_seconds: u32,
    }

    /// Firmware Slot Information (Base 2.0c figure 209).
    pub struct FirmwareLog: 512 {
        /// Active Firmware Info: bits 2:0 the slot that runs, bits 6:4 the slot after the next reset.
        0 active_firmware: u8,
        /// Firmware Revisions of slots 1 to 7.
        8 revisions: Array<Text<8>, 7>,
    }

    /// Changed Namespace List (Base 2.0c §5.16.1.5); a first entry of FFFFFFFFh says there are more
    /// than fit.
    pub struct ChangedNamespaces: 4096 {
        /// Namespace identifiers, ascending; 0 ends them.
        0 nsids: Array<u32, 1024>,
    }

    /// Commands Supported and Effects (Base 2.0c figure 211).
    pub struct EffectsLog: 4096 {
        /// Of admin commands, by opcode: the bits of [`effect`].
        0 admin: Array<u32, 256>,
        /// Of I/O commands, by opcode.
        1024 io: Array<u32, 256>,
    }

    /// A Self-test Result (Base 2.0c figure 214).
    pub struct SelfTestResult: 28 {
        /// Bits 3:0 the result (Fh no entry), bits 7:4 the test (1 short, 2 extended).
        0 status: u8,
        /// The segment that failed.
        1 segment: u8,
        /// Which of the fields below are valid.
        2 valid: u8,
        /// Power On Hours.
        4 power_on_hours: u64,
        /// Namespace.
        12 nsid: u32,
        /// Failing LBA.
        16 failing_lba: u64,
        /// Status Code Type.
        24 sct: u8,
        /// Status Code.
        25 sc: u8,
        /// Vendor specific.
        26 vendor: u16,
    }

    /// Device Self-test (Base 2.0c figure 213).
    pub struct SelfTestLog: 564 {
        /// Current Device Self-Test Operation: 0 none, 1 short, 2 extended.
        0 current_operation: u8,
        /// Current Device Self-Test Completion.
        1 completion_percent: u8,
        /// Results, the newest first.
        4 results: Array<SelfTestResult, 20>,
    }

    /// The header of a telemetry log (Base 2.0c figures 216 and 217).
    pub struct TelemetryHeader: 512 {
        /// Log Identifier.
        0 log_identifier: u8,
        /// IEEE OUI Identifier.
        5 ieee: Array<u8, 3>,
        /// Data Area 1 Last Block, in blocks of 512 bytes.
        8 data_area_1_last_block: u16,
        /// Data Area 2 Last Block.
        10 data_area_2_last_block: u16,
        /// Data Area 3 Last Block.
        12 data_area_3_last_block: u16,
        /// Data Area 4 Last Block.
        16 data_area_4_last_block: u32,
        /// Host-Initiated Data Generation Number.
        381 host_generation: u8,
        /// Controller-Initiated Data Available.
        382 controller_data_available: u8,
        /// Controller-Initiated Data Generation Number.
        383 controller_generation: u8,
        /// Reason Identifier.
        384 reason: Hex<128>,
    }

    /// Endurance Group Information (Base 2.0c figure 218).
    pub struct EnduranceGroupLog: 512 {
        /// Bit 0 spare, bit 2 reliability, bit 3 read-only.
        0 critical_warning: u8,
        /// Endurance Group Features.
        1 features: u8,
        /// Available Spare.
        3 available_spare_percent: u8,
        /// Available Spare Threshold.
        4 available_spare_threshold_percent: u8,
        /// Percentage Used.
        5 percentage_used: u8,
        /// Domain Identifier.
        6 domain: u16,
        /// Endurance Estimate.
        32 endurance_estimate_gb: u128,
        /// Data Units Read, in 10^9 bytes.
        48 data_read_gb: u128,
        /// Data Units Written.
        64 data_written_gb: u128,
        /// Media Units Written.
        80 media_written_gb: u128,
        /// Host Read Commands.
        96 host_read_commands: u128,
        /// Host Write Commands.
        112 host_write_commands: u128,
        /// Media and Data Integrity Errors.
        128 media_errors: u128,
        /// Number of Error Information Log Entries.
        144 error_log_entries: u128,
        /// Total Endurance Group Capacity.
        160 capacity_bytes: u128,
        /// Unallocated Endurance Group Capacity.
        176 unallocated_bytes: u128,
    }

    /// The header of the Persistent Event Log (Base 2.0c figure 224).
    pub struct PersistentEventHeader: 512 {
        /// Log Identifier.
        0 log_identifier: u8,
        /// Total Number of Events.
        4 events: u32,
        /// Total Log Length in bytes.
        8 length_bytes: u64,
        /// Log Revision.
        16 revision: u8,
        /// Log Header Length in bytes, of what is behind its first 20.
        18 header_length_bytes: u16,
        /// Timestamp: milliseconds since 1970 in its lower 48 bits.
        20 timestamp: u64,
        /// Power on Hours.
        28 power_on_hours: u128,
        /// Power Cycle Count.
        44 power_cycles: u64,
        /// PCI Vendor ID.
        52 vid: u16,
        /// PCI Subsystem Vendor ID.
        54 ssvid: u16,
        /// Serial Number.
        56 sn: Text<20>,
        /// Model Number.
        76 mn: Text<40>,
        /// NVM Subsystem NVMe Qualified Name.
        116 subnqn: Text<256>,
        /// Generation Number.
        372 generation: u16,
        /// Reporting Context Information.
        374 context: u32,
        /// Supported Events Bitmap.
        480 supported_events: Hex<32>,
    }

    /// The header of a persistent event (Base 2.0c figure 225).
    pub struct PersistentEvent: 24 {
        /// Event Type.
        0 event_type: u8,
        /// Event Type Revision.
        1 revision: u8,
        /// Event Header Length in bytes, of what is behind its first 3.
        2 header_length_bytes: u8,
        /// Event Header Additional Info.
        3 additional: u8,
        /// Controller Identifier.
        4 cntlid: u16,
        /// Event Timestamp: milliseconds since 1970 in its lower 48 bits.
        6 timestamp: u64,
        /// Port Identifier.
        14 port: u16,
        /// Vendor Specific Information Length in bytes.
        20 vendor_length_bytes: u16,
        /// Event Length in bytes, with the vendor's information.
        22 length_bytes: u16,
    }

    /// Sanitize Status (Base 2.0c figure 271).
    pub struct SanitizeLog: 512 {
        /// Sanitize Progress, of 65536.
        0 progress_of_65536: u16,
        /// Sanitize Status: bits 2:0 the state, bits 7:3 completed overwrite passes, bit 8 nothing was
        /// written since.
        2 status: u16,
        /// Command Dword 10 of the command.
        4 cdw10: u32,
        /// Estimated Time For Overwrite; FFFFFFFFh is not reported, here and below.
        8 overwrite_seconds: u32,
        /// Estimated Time For Block Erase.
        12 block_erase_seconds: u32,
        /// Estimated Time For Crypto Erase.
        16 crypto_erase_seconds: u32,
        /// Estimated Time For Overwrite With No-Deallocate.
        20 overwrite_no_deallocate_seconds: u32,
        /// Estimated Time For Block Erase With No-Deallocate.
        24 block_erase_no_deallocate_seconds: u32,
        /// Estimated Time For Crypto Erase With No-Deallocate.
        28 crypto_erase_no_deallocate_seconds: u32,
    }

    /// Reservation Notification (Base 2.0c figure 270).
    pub struct ReservationLog: 64 {
        /// Log Page Count.
        0 count: u64,
        /// Type: 0 empty, 1 registration preempted, 2 released, 3 reservation preempted.
        8 notification: u8,
        /// Number of Available Log Pages.
        9 available: u8,
        /// Namespace.
        12 nsid: u32,
    }

    /// Changed Zone List (ZNS 1.1b figure 46).
    pub struct ChangedZones: 4096 {
        /// Number of Zone Identifiers; FFFFh is more than fit.
        0 count: u16,
        /// First blocks of the zones.
        8 zones: Array<u64, 511>,
    }

    /// The header of FDP Configurations (Base 2.1 figure 279).
    pub struct FdpConfigurations: 16 {
        /// Number of FDP Configurations, 0's based.
        0 n: u16,
        /// Version.
        2 version: u8,
        /// Size in bytes.
        4 size_bytes: u32,
    }

    /// An FDP Configuration Descriptor (Base 2.1 figure 280), without its handles.
    pub struct FdpConfiguration: 64 {
        /// Descriptor Size in bytes.
        0 size_bytes: u16,
        /// FDP Attributes: bit 7 valid, bit 4 volatile write cache, bits 3:0 Reclaim Group Identifier
        /// Format.
        2 attributes: u8,
        /// Vendor Specific Size in bytes.
        3 vendor_size_bytes: u8,
        /// Number of Reclaim Groups.
        4 reclaim_groups: u32,
        /// Number of Reclaim Unit Handles.
        8 reclaim_unit_handles: u16,
        /// Max Placement Identifiers, 0's based.
        10 placement_identifiers_max: u16,
        /// Number of Namespaces Supported.
        12 namespaces: u32,
        /// Reclaim Unit Nominal Size.
        16 reclaim_unit_bytes: u64,
        /// Estimated Reclaim Unit Time Limit in seconds.
        24 reclaim_unit_seconds: u32,
    }

    /// FDP Statistics (Base 2.1 figure 284).
    pub struct FdpStatistics: 64 {
        /// Host Bytes with Metadata Written.
        0 host_written_bytes: u128,
        /// Media Bytes with Metadata Written.
        16 media_written_bytes: u128,
        /// Media Bytes Erased.
        32 media_erased_bytes: u128,
    }
}

/// Bits of an entry of [`EffectsLog`] (Base 2.0c figure 212).
pub mod effect {
    /// Command Supported.
    pub const SUPPORTED: u32 = 1 << 0;
    /// Logical Block Content Change.
    pub const CONTENT: u32 = 1 << 1;
    /// Namespace Capability Change.
    pub const NAMESPACE_CAPABILITY: u32 = 1 << 2;
    /// Namespace Inventory Change.
    pub const NAMESPACE_INVENTORY: u32 = 1 << 3;
    /// Controller Capability Change.
    pub const CONTROLLER_CAPABILITY: u32 = 1 << 4;
}

#[cfg(test)]
mod tests {
    use super::super::layout::assert_places;
    use super::*;

    /// Base 2.0c figures 202 to 271, ZNS 1.1b figure 46, Base 2.1 figures 279 to 284.
    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        assert_places::<SupportedLogs>(1024, "entries@0+1024");
        assert_places::<ErrorEntry>(
            64,
            "error_count@0+8 sqid@8+2 cid@10+2 status_field@12+2 parameter_error_location@14+2 \
             lba@16+8 nsid@24+4 vendor_log_page@28+1 trtype@29+1 command_specific@32+8 \
             transport_specific@40+2",
        );
        assert_places::<SmartLog>(
            512,
            "critical_warning@0+1 temperature_kelvin@1+2 available_spare_percent@3+1 \
             available_spare_threshold_percent@4+1 percentage_used@5+1 \
             endurance_group_critical_warning@6+1 data_units_read_512000_bytes@32+16 \
             data_units_written_512000_bytes@48+16 host_read_commands@64+16 \
             host_write_commands@80+16 controller_busy_minutes@96+16 power_cycles@112+16 \
             power_on_hours@128+16 unsafe_shutdowns@144+16 media_errors@160+16 \
             error_log_entries@176+16 warning_temperature_minutes@192+4 \
             critical_temperature_minutes@196+4 temperature_sensors_kelvin@200+16 \
             thermal_management_1_transitions@216+4 thermal_management_2_transitions@220+4 \
             thermal_management_1_seconds@224+4 thermal_management_2_seconds@228+4",
        );
        assert_places::<FirmwareLog>(512, "active_firmware@0+1 revisions@8+56");
        assert_places::<ChangedNamespaces>(4096, "nsids@0+4096");
        assert_places::<EffectsLog>(4096, "admin@0+1024 io@1024+1024");
        assert_places::<SelfTestResult>(
            28,
            "status@0+1 segment@1+1 valid@2+1 power_on_hours@4+8 nsid@12+4 failing_lba@16+8 \
             sct@24+1 sc@25+1 vendor@26+2",
        );
        assert_places::<SelfTestLog>(
            564,
            "current_operation@0+1 completion_percent@1+1 results@4+560",
        );
        assert_places::<TelemetryHeader>(
            512,
            "log_identifier@0+1 ieee@5+3 data_area_1_last_block@8+2 data_area_2_last_block@10+2 \
             data_area_3_last_block@12+2 data_area_4_last_block@16+4 host_generation@381+1 \
             controller_data_available@382+1 controller_generation@383+1 reason@384+128",
        );
        assert_places::<EnduranceGroupLog>(
            512,
            "critical_warning@0+1 features@1+1 available_spare_percent@3+1 \
             available_spare_threshold_percent@4+1 percentage_used@5+1 domain@6+2 \
             endurance_estimate_gb@32+16 data_read_gb@48+16 data_written_gb@64+16 \
             media_written_gb@80+16 host_read_commands@96+16 host_write_commands@112+16 \
             media_errors@128+16 error_log_entries@144+16 capacity_bytes@160+16 \
             unallocated_bytes@176+16",
        );
        assert_places::<PersistentEventHeader>(
            512,
            "log_identifier@0+1 events@4+4 length_bytes@8+8 revision@16+1 header_length_bytes@18+2 \
             timestamp@20+8 power_on_hours@28+16 power_cycles@44+8 vid@52+2 ssvid@54+2 sn@56+20 \
             mn@76+40 subnqn@116+256 generation@372+2 context@374+4 supported_events@480+32",
        );
        assert_places::<PersistentEvent>(
            24,
            "event_type@0+1 revision@1+1 header_length_bytes@2+1 additional@3+1 cntlid@4+2 \
             timestamp@6+8 port@14+2 vendor_length_bytes@20+2 length_bytes@22+2",
        );
        assert_places::<SanitizeLog>(
            512,
            "progress_of_65536@0+2 status@2+2 cdw10@4+4 overwrite_seconds@8+4 \
             block_erase_seconds@12+4 crypto_erase_seconds@16+4 \
             overwrite_no_deallocate_seconds@20+4 block_erase_no_deallocate_seconds@24+4 \
             crypto_erase_no_deallocate_seconds@28+4",
        );
        assert_places::<ReservationLog>(64, "count@0+8 notification@8+1 available@9+1 nsid@12+4");
        assert_places::<ChangedZones>(4096, "count@0+2 zones@8+4088");
        assert_places::<FdpConfigurations>(16, "n@0+2 version@2+1 size_bytes@4+4");
        assert_places::<FdpConfiguration>(
            64,
            "size_bytes@0+2 attributes@2+1 vendor_size_bytes@3+1 reclaim_groups@4+4 \
             reclaim_unit_handles@8+2 placement_identifiers_max@10+2 namespaces@12+4 \
             reclaim_unit_bytes@16+8 reclaim_unit_seconds@24+4",
        );
        assert_places::<FdpStatistics>(
            64,
            "host_written_bytes@0+16 media_written_bytes@16+16 media_erased_bytes@32+16",
        );
    }
}
