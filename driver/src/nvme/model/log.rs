//! Log pages of the model (Base 2.0c §5.16).

use crate::nvme::spec::command::Opcode;
use crate::nvme::spec::layout::{Array, Layout, Text};
use crate::nvme::spec::log::{
    ChangedNamespaces, EffectsLog, EnduranceGroupLog, ErrorEntry, FdpConfiguration,
    FdpConfigurations, FdpStatistics, FirmwareLog, LogId, PersistentEvent, PersistentEventHeader,
    SanitizeLog, SelfTestLog, SelfTestResult, SmartLog, SupportedLogs, TelemetryHeader, effect,
};
use crate::nvme::spec::{Status, SubmissionEntry};

use super::identify::ELPE;
use super::{State, transfer};

/// The pages it has.
const PAGES: [LogId; 17] = [
    LogId::SUPPORTED,
    LogId::ERROR,
    LogId::SMART,
    LogId::FIRMWARE,
    LogId::CHANGED_NAMESPACES,
    LogId::EFFECTS,
    LogId::SELF_TEST,
    LogId::TELEMETRY_HOST,
    LogId::TELEMETRY_CONTROLLER,
    LogId::ENDURANCE_GROUP,
    LogId::PERSISTENT_EVENT,
    LogId::FDP_CONFIGURATIONS,
    LogId::FDP_HANDLE_USAGE,
    LogId::FDP_STATISTICS,
    LogId::RESERVATION,
    LogId::SANITIZE,
    LogId::CHANGED_ZONES,
];

impl State {
    pub(super) fn get_log_page(&mut self, entry: &SubmissionEntry) -> Result<u32, Status> {
        let (cdw10, cdw11) = (entry.cdw10.get(), entry.cdw11.get());
        let len = ((u64::from(cdw11 & 0xffff) << 16 | u64::from(cdw10 >> 16)) + 1) * 4;
        let offset = u64::from(entry.cdw13.get()) << 32 | u64::from(entry.cdw12.get());
        let id = LogId(cdw10 as u8);
        let (specific, retain) = (cdw10 as u16 >> 8 & 0x7f, cdw10 & 1 << 15 != 0);
        if len > 1 << 20 || !offset.is_multiple_of(4) {
            return Err(Status::INVALID_FIELD);
        }
        let page = self.page(id, entry.nsid.get(), specific, retain, (cdw11 >> 16) as u16)?;
        if !retain {
            self.log_was_read(id.0);
        }
        // Base 2.0c §5.16: an offset behind the page is an error, a length is not.
        if offset > page.len() as u64 {
            return Err(Status::INVALID_FIELD);
        }
        let rest = &page[offset as usize..];
        let mut bytes = vec![0; len as usize];
        let count = rest.len().min(bytes.len());
        bytes[..count].copy_from_slice(&rest[..count]);
        transfer::give(self, entry, &bytes)?;
        Ok(0)
    }

    fn page(
        &mut self,
        id: LogId,
        nsid: u32,
        specific: u16,
        retain: bool,
        specific_id: u16,
    ) -> Result<Vec<u8>, Status> {
        Ok(match id {
            LogId::SUPPORTED => {
                let mut entries = Array([0; 256]);
                PAGES.iter().for_each(|page| entries[usize::from(page.0)] = 1);
                SupportedLogs { entries }.encode()
            }
            LogId::ERROR => {
                let entries = self.admin.errors.iter().flat_map(Layout::encode);
                let mut page: Vec<u8> = entries.collect();
                page.resize((usize::from(ELPE) + 1) * ErrorEntry::SIZE, 0);
                page
            }
            LogId::SMART if nsid == u32::MAX || nsid == 0 || self.media.contains_key(&nsid) => {
                self.smart().encode()
            }
            LogId::SMART => return Err(Status::INVALID_NAMESPACE),
            LogId::FIRMWARE => {
                let firmware = &self.admin.firmware;
                let slot = |index: usize| firmware.slots.get(index).copied().flatten();
                let revisions = std::array::from_fn(|index| slot(index).unwrap_or(Text([0; 8])));
                let active_firmware = firmware.active | firmware.next << 4;
                FirmwareLog { active_firmware, revisions: Array(revisions) }.encode()
            }
            LogId::CHANGED_NAMESPACES => {
                let mut nsids = Array([0; 1024]);
                let told = self.events.changed_namespaces.iter();
                let changed = told.chain(&self.admin.changed);
                nsids.iter_mut().zip(changed).for_each(|(out, nsid)| *out = *nsid);
                if !retain {
                    self.admin.changed.clear();
                    self.events.changed_namespaces.clear();
                }
                ChangedNamespaces { nsids }.encode()
            }
            LogId::EFFECTS => effects().encode(),
            LogId::SELF_TEST => self.self_test_page(),
            LogId::TELEMETRY_HOST | LogId::TELEMETRY_CONTROLLER => {
                if id == LogId::TELEMETRY_HOST && specific & 1 != 0 {
                    self.admin.telemetry_generation += 1;
                }
                let mut page = TelemetryHeader {
                    log_identifier: id.0,
                    data_area_1_last_block: 1,
                    data_area_2_last_block: 3,
                    data_area_3_last_block: 40,
                    host_generation: self.admin.telemetry_generation,
                    ..Default::default()
                }
                .encode();
                // Each block holds its number.
                page.extend((1..=40u8).flat_map(|block| [block; 512]));
                page
            }
            LogId::ENDURANCE_GROUP if specific_id == 1 => EnduranceGroupLog {
                available_spare_percent: 99,
                percentage_used: 2,
                data_written_gb: 12,
                ..Default::default()
            }
            .encode(),
            LogId::PERSISTENT_EVENT => return self.persistent_events(specific),
            LogId::FDP_CONFIGURATIONS if specific_id == 1 => {
                let size_bytes = (FdpConfigurations::SIZE + FdpConfiguration::SIZE) as u32 + 8;
                let header = FdpConfigurations { n: 0, version: 0, size_bytes };
                let configuration = FdpConfiguration {
                    size_bytes: FdpConfiguration::SIZE as u16 + 8,
                    attributes: 1 << 7,
                    reclaim_groups: 1,
                    reclaim_unit_handles: 2,
                    placement_identifiers_max: 1,
                    namespaces: 8,
                    reclaim_unit_bytes: 1 << 20,
                    ..Default::default()
                };
                let mut page = header.encode();
                page.extend(configuration.encode());
                // A descriptor for each of the two handles.
                page.extend([1, 0, 0, 0, 1, 0, 0, 0]);
                page
            }
            LogId::FDP_STATISTICS if specific_id == 1 => FdpStatistics {
                host_written_bytes: 1000,
                media_written_bytes: 1100,
                media_erased_bytes: 0,
            }
            .encode(),
            LogId::ENDURANCE_GROUP | LogId::FDP_CONFIGURATIONS | LogId::FDP_STATISTICS => {
                return Err(Status::INVALID_FIELD);
            }
            LogId::RESERVATION => {
                let notices = &mut self.events.reservation_notices;
                let mut page = vec![0; 64];
                if let Some(&kind) = notices.front() {
                    page[0] = 1;
                    page[8] = kind;
                    page[9] = notices.len() as u8 - 1;
                    page[12] = 1;
                }
                if !retain {
                    notices.pop_front();
                }
                page
            }
            LogId::SANITIZE => self.sanitize_page(),
            LogId::CHANGED_ZONES => vec![0; 4096],
            _ => return Err(Status::INVALID_LOG_PAGE),
        })
    }

    fn smart(&self) -> SmartLog {
        SmartLog {
            temperature_kelvin: 310,
            available_spare_percent: 100,
            available_spare_threshold_percent: 10,
            percentage_used: 3,
            power_on_hours: 77,
            power_cycles: 5,
            error_log_entries: self.admin.error_count.into(),
            temperature_sensors_kelvin: Array([311, 0, 0, 0, 0, 0, 0, 0]),
            ..Default::default()
        }
    }

    /// A test that runs is at half when it is looked at first, and done the second time.
    fn self_test_page(&mut self) -> Vec<u8> {
        let none = SelfTestResult { status: 0xf, ..Default::default() };
        let results = |tests: &std::collections::VecDeque<SelfTestResult>| {
            Array(std::array::from_fn(|index| tests.get(index).unwrap_or(&none).clone()))
        };
        let page = SelfTestLog {
            current_operation: self.admin.self_test,
            completion_percent: if self.admin.self_test == 0 { 0 } else { 50 },
            results: results(&self.admin.self_tests),
        };
        if self.admin.self_test != 0 {
            self.end_self_test(0, 0);
        }
        page.encode()
    }

    fn sanitize_page(&mut self) -> Vec<u8> {
        let (status, cdw10) = self.admin.sanitize;
        let runs = status & 0b111 == 2;
        let page = SanitizeLog {
            progress_of_65536: if runs { 0x8000 } else { 0xffff },
            status,
            cdw10,
            overwrite_seconds: 100,
            block_erase_seconds: 20,
            crypto_erase_seconds: 1,
            overwrite_no_deallocate_seconds: u32::MAX,
            block_erase_no_deallocate_seconds: u32::MAX,
            crypto_erase_no_deallocate_seconds: u32::MAX,
        };
        if runs {
            self.admin.sanitize.0 = 1;
        }
        page.encode()
    }

    /// One context at a time; two events, the second one longer.
    fn persistent_events(&mut self, specific: u16) -> Result<Vec<u8>, Status> {
        match specific & 0b11 {
            0 if !self.admin.reporting => return Err(Status::COMMAND_SEQUENCE_ERROR),
            1 if self.admin.reporting => return Err(Status::COMMAND_SEQUENCE_ERROR),
            1 => self.admin.reporting = true,
            2 => self.admin.reporting = false,
            _ => {}
        }
        let event = |event_type, length_bytes| PersistentEvent {
            event_type,
            revision: 1,
            header_length_bytes: 21,
            length_bytes,
            ..Default::default()
        };
        let mut events = event(4, 8).encode();
        events.extend([0; 8]);
        events.extend(event(7, 20).encode());
        events.extend([0; 20]);
        let mut page = PersistentEventHeader {
            log_identifier: LogId::PERSISTENT_EVENT.0,
            events: 2,
            length_bytes: 512 + events.len() as u64,
            revision: 2,
            ..Default::default()
        }
        .encode();
        page.extend(events);
        Ok(page)
    }

    /// Takes a failed command into the error log.
    pub(super) fn log_error(&mut self, qid: u16, entry: &SubmissionEntry, status: Status) {
        // Hosts try some commands to learn whether there are any; those are no errors to remember.
        if status == Status::INVALID_OPCODE {
            return;
        }
        self.admin.error_count += 1;
        let lba = self.first_bad(entry).filter(|_| status.sct() == 2);
        self.admin.errors.push_front(ErrorEntry {
            error_count: self.admin.error_count,
            sqid: qid,
            cid: (entry.cdw0.get() >> 16) as u16,
            status_field: status.0 << 1,
            parameter_error_location: u16::MAX,
            lba: lba.unwrap_or(0),
            nsid: entry.nsid.get(),
            ..Default::default()
        });
        self.admin.errors.truncate(usize::from(ELPE) + 1);
    }
}

fn effects() -> EffectsLog {
    let mut log = EffectsLog::default();
    for opcode in [Opcode::IDENTIFY, Opcode::GET_LOG_PAGE, Opcode::GET_FEATURES] {
        log.admin[usize::from(opcode.0)] = effect::SUPPORTED;
    }
    log.admin[usize::from(Opcode::FORMAT_NVM.0)] =
        effect::SUPPORTED | effect::CONTENT | effect::NAMESPACE_CAPABILITY;
    log.admin[usize::from(Opcode::NAMESPACE_MANAGEMENT.0)] =
        effect::SUPPORTED | effect::NAMESPACE_INVENTORY;
    log.io[usize::from(Opcode::READ.0)] = effect::SUPPORTED;
    log.io[usize::from(Opcode::WRITE.0)] = effect::SUPPORTED | effect::CONTENT;
    log
}
