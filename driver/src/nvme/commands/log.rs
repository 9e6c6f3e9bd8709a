//! Get Log Page: any page in pieces, and the pages that have names, decoded (Base 2.0c §5.16).

use std::time::Duration;

use serde::Serialize;

use crate::nvme::NvmeController;
use crate::nvme::spec::layout::Layout;
use crate::nvme::spec::log::{
    ChangedNamespaces, ChangedZones, EffectsLog, EnduranceGroupLog, ErrorEntry, FdpConfiguration,
    FdpConfigurations, FdpStatistics, FirmwareLog, LogId, PersistentEvent, PersistentEventHeader,
    ReservationLog, SanitizeLog, SelfTestLog, SmartLog, SupportedLogs, TelemetryHeader,
};
use crate::nvme::spec::{Opcode, Status};

use super::{Command, CommandError, Data};

/// The namespace identifier for all, and for the controller as a whole.
pub const NSID_ALL: u32 = u32::MAX;

/// The largest piece that a log page is fetched in, in bytes.
const PIECE_BYTES: usize = 16 << 10;

/// How long a controller may take to gather its telemetry.
const CREATE_TIMEOUT: Duration = Duration::from_secs(120);

/// Which part of which page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPage {
    /// The page.
    pub id: LogId,
    /// Whose; [`NSID_ALL`] for the controller.
    pub nsid: u32,
    /// Log Specific Field, 7 bits: what is asked for, as the page has it.
    pub specific: u8,
    /// Log Specific Identifier: such as the endurance group.
    pub specific_id: u16,
    /// Retain Asynchronous Event: reading the page does not clear it.
    pub retain: bool,
}

impl LogPage {
    /// A page of the controller.
    pub const fn new(id: LogId) -> Self {
        Self { id, nsid: NSID_ALL, specific: 0, specific_id: 0, retain: true }
    }
}

/// The data areas of a telemetry log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Telemetry {
    /// The header.
    pub header: TelemetryHeader,
    /// Header and data areas as they are, for the vendor's tools.
    #[serde(skip)]
    pub bytes: Vec<u8>,
}

/// The persistent event log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PersistentEvents {
    /// The header.
    pub header: PersistentEventHeader,
    /// The events' headers, as far as the log is sound.
    pub events: Vec<PersistentEvent>,
}

impl NvmeController {
    /// Fetches `out.len()` bytes of a page from `offset` on, both multiples of 4, in pieces.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for lengths that are not multiples of 4; those of
    /// [`admin`](NvmeController::admin).
    pub fn log_page(&self, page: LogPage, offset: u64, out: &mut [u8]) -> Result<(), CommandError> {
        if !offset.is_multiple_of(4) || !out.len().is_multiple_of(4) || out.is_empty() {
            let len = out.len();
            let what = format!("{len} bytes at {offset} of a log page; take multiples of 4");
            return Err(CommandError::invalid(&self.identify().name, what));
        }
        let largest = PIECE_BYTES.min(self.identify().transfer_max_bytes as usize);
        let mut at = offset;
        for piece in out.chunks_mut(largest) {
            let dwords = piece.len() / 4 - 1;
            let cdw10 = (dwords as u32 & 0xffff) << 16
                | u32::from(page.retain) << 15
                | u32::from(page.specific & 0x7f) << 8
                | u32::from(page.id.0);
            let command = Command::new(Opcode::GET_LOG_PAGE, page.nsid)
                .dword(10, cdw10)
                .dword(11, u32::from(page.specific_id) << 16 | dwords as u32 >> 16)
                .qword(12, at);
            let creates = page.id == LogId::TELEMETRY_HOST && page.specific & 1 != 0;
            let command = if creates { command.within(CREATE_TIMEOUT) } else { command };
            at += piece.len() as u64;
            self.admin(&command, Data::In(piece))?;
        }
        Ok(())
    }

    fn log_as<T: Layout>(&self, page: LogPage) -> Result<T, CommandError> {
        let mut bytes = vec![0; T::SIZE];
        self.log_page(page, 0, &mut bytes)?;
        Ok(T::decode(&bytes))
    }

    /// Which pages there are.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn supported_logs(&self) -> Result<Vec<LogId>, CommandError> {
        let log: SupportedLogs = self.log_as(LogPage::new(LogId::SUPPORTED))?;
        let supported = (0..=u8::MAX).zip(log.entries.iter()).filter(|(_, entry)| **entry & 1 != 0);
        Ok(supported.map(|(id, _)| LogId(id)).collect())
    }

    /// SMART / health of the controller ([`NSID_ALL`]) or of a namespace.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn smart_log(&self, nsid: u32) -> Result<SmartLog, CommandError> {
        self.log_as(LogPage { nsid, ..LogPage::new(LogId::SMART) })
    }

    /// The errors that the controller remembers, the newest first; empty entries left out.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn error_log(&self) -> Result<Vec<ErrorEntry>, CommandError> {
        let entries = usize::from(self.identify_controller()?.elpe) + 1;
        let mut bytes = vec![0; entries * ErrorEntry::SIZE];
        self.log_page(LogPage::new(LogId::ERROR), 0, &mut bytes)?;
        let entries = bytes.chunks_exact(ErrorEntry::SIZE).map(ErrorEntry::decode);
        Ok(entries.filter(|entry| entry.error_count != 0).collect())
    }

    /// The firmware slots.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn firmware_log(&self) -> Result<FirmwareLog, CommandError> {
        self.log_as(LogPage::new(LogId::FIRMWARE))
    }

    /// The namespaces that changed since the last call without `retain`, also those that the driver has
    /// read of since, to tell of them by [`Event`](crate::nvme::Event); `None` when they are too many to
    /// list. Reading it without `retain` clears it and allows the next event.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn changed_namespaces(&self, retain: bool) -> Result<Option<Vec<u32>>, CommandError> {
        let page = LogPage { retain, ..LogPage::new(LogId::CHANGED_NAMESPACES) };
        let log: ChangedNamespaces = self.log_as(page)?;
        let mut changed = self.changed_before(retain);
        changed.extend(log.nsids.iter().copied().take_while(|&nsid| nsid != 0));
        Ok((!changed.contains(&u32::MAX)).then(|| changed.into_iter().collect()))
    }

    /// What each command does to the drive, for command set `csi`.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn effects_log(&self, csi: u8) -> Result<EffectsLog, CommandError> {
        let mut bytes = vec![0; EffectsLog::SIZE];
        let dwords = (EffectsLog::SIZE / 4 - 1) as u32;
        let command = Command::new(Opcode::GET_LOG_PAGE, NSID_ALL)
            .dword(10, dwords << 16 | u32::from(LogId::EFFECTS.0))
            .dword(14, u32::from(csi) << 24);
        self.admin(&command, Data::In(&mut bytes))?;
        Ok(EffectsLog::decode(&bytes))
    }

    /// Self-tests: the one that runs and the last 20.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn self_test_log(&self) -> Result<SelfTestLog, CommandError> {
        self.log_as(LogPage::new(LogId::SELF_TEST))
    }

    /// The telemetry of data areas 1 to `areas` (1 to 3): made anew (`create`, host-initiated), what
    /// was made before, or what the controller made by itself.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for other areas; those of
    /// [`admin`](NvmeController::admin).
    pub fn telemetry(
        &self,
        controller_initiated: bool,
        create: bool,
        areas: u8,
    ) -> Result<Telemetry, CommandError> {
        let id = match controller_initiated {
            true => LogId::TELEMETRY_CONTROLLER,
            false => LogId::TELEMETRY_HOST,
        };
        let create = create && !controller_initiated;
        let mut bytes = vec![0; TelemetryHeader::SIZE];
        let first = LogPage { specific: u8::from(create), ..LogPage::new(id) };
        self.log_page(first, 0, &mut bytes)?;
        let header = TelemetryHeader::decode(&bytes);
        let last = match areas {
            1 => header.data_area_1_last_block,
            2 => header.data_area_2_last_block,
            3 => header.data_area_3_last_block,
            _ => {
                let what = format!("there is no telemetry data area {areas}; take 1 to 3");
                return Err(CommandError::invalid(&self.identify().name, what));
            }
        };
        // 16 bits of blocks of 512 bytes: at most 32 MiB.
        bytes.resize((usize::from(last) + 1) * 512, 0);
        if last > 0 {
            self.log_page(LogPage::new(id), 512, &mut bytes[512..])?;
        }
        if controller_initiated {
            // It was all read: the controller may save the next, and tell of it.
            let mut again = vec![0; TelemetryHeader::SIZE];
            self.log_page(LogPage { retain: false, ..LogPage::new(id) }, 0, &mut again)?;
        }
        Ok(Telemetry { header, bytes })
    }

    /// An endurance group.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn endurance_group_log(&self, group: u16) -> Result<EnduranceGroupLog, CommandError> {
        self.log_as(LogPage { specific_id: group, ..LogPage::new(LogId::ENDURANCE_GROUP) })
    }

    /// The persistent events. Takes the reporting context and gives it back.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for a log that claims more than 16 MiB; those of
    /// [`admin`](NvmeController::admin).
    pub fn persistent_events(&self) -> Result<PersistentEvents, CommandError> {
        const ESTABLISH_AND_READ: u8 = 1;
        const READ: u8 = 0;
        const RELEASE: u8 = 2;
        const LOG_MAX_BYTES: u64 = 16 << 20;
        let page = |specific| LogPage { specific, ..LogPage::new(LogId::PERSISTENT_EVENT) };
        let mut bytes = vec![0; PersistentEventHeader::SIZE];
        self.log_page(page(ESTABLISH_AND_READ), 0, &mut bytes)?;
        let header = PersistentEventHeader::decode(&bytes);
        let mut rest = Ok(());
        if header.length_bytes > LOG_MAX_BYTES {
            let bytes = header.length_bytes;
            let what = format!("the persistent event log claims {bytes} bytes");
            rest = Err(CommandError::invalid(&self.identify().name, what));
        } else if header.length_bytes > bytes.len() as u64 {
            let len = header.length_bytes as usize;
            bytes.resize(len.next_multiple_of(4), 0);
            rest = self.log_page(page(READ), 512, &mut bytes[512..]);
            bytes.truncate(len);
        }
        // Whether it was read or not, the context is given back; that it was read is what counts.
        let released = self.log_page(page(RELEASE), 0, &mut [0; 16]);
        rest?;
        match released {
            Ok(()) | Err(CommandError::Status { .. }) => {}
            Err(error) => return Err(error),
        }
        let events = persistent_events(&bytes[512..], header.events);
        Ok(PersistentEvents { header, events })
    }

    /// Sanitize: how far it is, how the last one ended.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn sanitize_log(&self) -> Result<SanitizeLog, CommandError> {
        self.log_as(LogPage::new(LogId::SANITIZE))
    }

    /// The next reservation notification; taken out of the queue.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn reservation_log(&self) -> Result<ReservationLog, CommandError> {
        self.log_as(LogPage { retain: false, ..LogPage::new(LogId::RESERVATION) })
    }

    /// The zones of a namespace that the controller changed since the last call; `None` when they are
    /// too many to list. Reading it allows the next event.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn changed_zones(&self, nsid: u32) -> Result<Option<Vec<u64>>, CommandError> {
        let log: ChangedZones =
            self.log_as(LogPage { nsid, retain: false, ..LogPage::new(LogId::CHANGED_ZONES) })?;
        let zones = log.zones.iter().copied().take(log.count.into()).collect();
        Ok((log.count != u16::MAX).then_some(zones))
    }

    /// The FDP configurations of an endurance group.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn fdp_configurations(&self, group: u16) -> Result<Vec<FdpConfiguration>, CommandError> {
        let page = LogPage { specific_id: group, ..LogPage::new(LogId::FDP_CONFIGURATIONS) };
        let header: FdpConfigurations = self.log_as(page)?;
        let len = (header.size_bytes as usize).clamp(FdpConfigurations::SIZE, 64 << 10);
        let mut bytes = vec![0; len.next_multiple_of(4)];
        self.log_page(page, 0, &mut bytes)?;
        let mut found = Vec::new();
        let mut rest = &bytes[FdpConfigurations::SIZE..];
        while found.len() <= usize::from(header.n) && rest.len() >= FdpConfiguration::SIZE {
            let descriptor = FdpConfiguration::decode(rest);
            let size = usize::from(descriptor.size_bytes).max(FdpConfiguration::SIZE);
            found.push(descriptor);
            rest = rest.get(size..).unwrap_or_default();
        }
        Ok(found)
    }

    /// What was written for and by an endurance group with FDP.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn fdp_statistics(&self, group: u16) -> Result<FdpStatistics, CommandError> {
        self.log_as(LogPage { specific_id: group, ..LogPage::new(LogId::FDP_STATISTICS) })
    }
}

/// Walks the events: each says its lengths, none goes past the end.
fn persistent_events(mut rest: &[u8], count: u32) -> Vec<PersistentEvent> {
    let mut events = Vec::new();
    while rest.len() >= PersistentEvent::SIZE && events.len() < count as usize {
        let event = PersistentEvent::decode(rest);
        // The header's length counts from behind its own field, 3 bytes in.
        let header = usize::from(event.header_length_bytes) + 3;
        let len = header.max(PersistentEvent::SIZE) + usize::from(event.length_bytes);
        events.push(event);
        rest = rest.get(len..).unwrap_or_default();
    }
    events
}

impl super::super::spec::log::ErrorEntry {
    /// The status that the command was answered with.
    pub const fn status(&self) -> Status {
        Status(self.status_field >> 1)
    }
}
