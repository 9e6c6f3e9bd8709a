//! Admin commands of the model that change the drive: namespaces, format, sanitize, self-test, firmware,
//! security, directives.

use std::collections::{BTreeSet, VecDeque};

use crate::nvme::spec::layout::Text;
use crate::nvme::spec::log::{ErrorEntry, SelfTestResult};
use crate::nvme::spec::{Status, SubmissionEntry};

use super::identify::{FORMATS, FWUG};
use super::medium::{Medium, ModelNamespace};
use super::settings::Settings;
use super::{State, transfer};

/// What the controller remembers beside its namespaces.
#[derive(Debug, Default)]
pub(super) struct AdminState {
    pub(super) settings: Settings,
    pub(super) firmware: Firmware,
    pub(super) errors: VecDeque<ErrorEntry>,
    pub(super) error_count: u64,
    pub(super) changed: BTreeSet<u32>,
    /// The test that runs: 0 none.
    pub(super) self_test: u8,
    pub(super) self_tests: VecDeque<SelfTestResult>,
    /// SSTAT and the command's dword 10.
    pub(super) sanitize: (u16, u32),
    /// What Security Send left.
    security: Vec<u8>,
    streams_enabled: bool,
    streams: u16,
    /// The value of the FDP feature.
    pub(super) fdp: u32,
    /// Blocks written through each reclaim unit handle.
    pub(super) handles: Vec<u64>,
    /// Whether a reporting context of the persistent event log is taken.
    pub(super) reporting: bool,
    pub(super) telemetry_generation: u8,
}

impl AdminState {
    pub(super) fn new() -> Self {
        Self { handles: vec![10, 20], ..Self::default() }
    }
}

/// The firmware slots.
#[derive(Debug)]
pub(super) struct Firmware {
    pub(super) slots: [Option<Text<8>>; 3],
    pub(super) active: u8,
    pub(super) next: u8,
    image: Vec<u8>,
}

impl Default for Firmware {
    fn default() -> Self {
        Self { slots: [Some(Text::new("1.0")), None, None], active: 1, next: 0, image: Vec::new() }
    }
}

impl Firmware {
    pub(super) fn running(&self) -> Text<8> {
        self.slots[usize::from(self.active) - 1].unwrap_or(Text::new(""))
    }

    /// A reset: what was to run next runs.
    pub(super) fn reset(&mut self) {
        if self.next != 0 {
            self.active = std::mem::take(&mut self.next);
        }
    }
}

/// An image of the model starts with this; its revision follows.
pub const FIRMWARE_MAGIC: &[u8; 8] = b"UAIOFW\0\0";

impl State {
    /// Namespace Management (Base 2.0c §5.23).
    pub(super) fn namespace_management(&mut self, entry: &SubmissionEntry) -> Result<u32, Status> {
        let nsid = entry.nsid.get();
        match entry.cdw10.get() & 0xf {
            0 => {
                let id = transfer::take(self, entry, 4096)?;
                let word =
                    |at: usize| u64::from_le_bytes(id[at..at + 8].try_into().expect("8 bytes"));
                let (blocks, capacity) = (word(0), word(8));
                let format = usize::from(id[26] & 0xf | (id[26] >> 5 & 0b11) << 4);
                let format = FORMATS.get(format).ok_or(Status::INVALID_FORMAT)?;
                if capacity != blocks {
                    // Thin provisioning.
                    return Err(Status(0x11b));
                }
                if id[29] & 0b111 != 0 && format.ms < 8 {
                    return Err(Status::INVALID_FIELD);
                }
                let namespace = ModelNamespace {
                    metadata: format.ms,
                    interleaved: id[26] & 1 << 4 != 0,
                    protection: id[29] & 0b111,
                    protection_first: id[29] & 1 << 3 != 0,
                    blocks,
                    ..ModelNamespace::new(0, 1 << format.lbads)
                };
                let bytes = blocks.checked_mul(1 << format.lbads);
                if bytes.is_none_or(|bytes| bytes > self.unallocated_bytes()) {
                    return Err(Status::NAMESPACE_INSUFFICIENT_CAPACITY);
                }
                let nsid = (1..=8).find(|nsid| !self.media.contains_key(nsid));
                let nsid = nsid.ok_or(Status::NAMESPACE_IDENTIFIER_UNAVAILABLE)?;
                let mut medium = Medium::new(namespace);
                medium.attached = false;
                self.media.insert(nsid, medium);
                Ok(nsid)
            }
            1 if nsid == u32::MAX => {
                self.admin.changed.extend(self.media.keys());
                self.media.clear();
                Ok(0)
            }
            1 => {
                self.media.remove(&nsid).ok_or(Status::INVALID_NAMESPACE)?;
                self.reservations.remove(&nsid);
                self.admin.changed.insert(nsid);
                Ok(0)
            }
            _ => Err(Status::INVALID_FIELD),
        }
    }

    /// Namespace Attachment (Base 2.0c §5.22).
    pub(super) fn namespace_attachment(&mut self, entry: &SubmissionEntry) -> Result<u32, Status> {
        let list = transfer::take(self, entry, 4096)?;
        // This controller alone: identifier 0.
        if list[..4] != [1, 0, 0, 0] {
            return Err(Status::CONTROLLER_LIST_INVALID);
        }
        let nsid = entry.nsid.get();
        let medium = self.media.get_mut(&nsid).ok_or(Status::INVALID_NAMESPACE)?;
        match (entry.cdw10.get() & 0xf, medium.attached) {
            (0, true) => return Err(Status::NAMESPACE_ALREADY_ATTACHED),
            (1, false) => return Err(Status::NAMESPACE_NOT_ATTACHED),
            (select @ (0 | 1), _) => medium.attached = select == 0,
            _ => return Err(Status::INVALID_FIELD),
        }
        self.admin.changed.insert(nsid);
        Ok(0)
    }

    /// Format NVM (Base 2.0c §5.14).
    pub(super) fn format_nvm(&mut self, entry: &SubmissionEntry) -> Result<u32, Status> {
        let cdw10 = entry.cdw10.get();
        let index = (cdw10 & 0xf | (cdw10 >> 12 & 0b11) << 4) as usize;
        let format = FORMATS.get(index).ok_or(Status::INVALID_FORMAT)?;
        let protection = (cdw10 >> 5 & 0b111) as u8;
        if protection > 3 || protection != 0 && format.ms < 8 || cdw10 >> 9 & 0b111 > 2 {
            return Err(Status::INVALID_FIELD);
        }
        let nsids: Vec<u32> = match entry.nsid.get() {
            u32::MAX => self.media.keys().copied().collect(),
            nsid => vec![nsid],
        };
        for nsid in nsids {
            let medium = self.medium(nsid)?;
            let bytes = medium.namespace.size_bytes();
            medium.namespace.lbads = format.lbads;
            medium.namespace.blocks = bytes >> format.lbads;
            medium.namespace.metadata = format.ms;
            medium.namespace.interleaved = cdw10 & 1 << 4 != 0;
            medium.namespace.protection = protection;
            medium.namespace.protection_first = cdw10 & 1 << 8 != 0;
            medium.erase();
        }
        Ok(0)
    }

    /// Sanitize (Base 2.0c §5.24); done when its log is read the second time.
    pub(super) fn sanitize(&mut self, entry: &SubmissionEntry) -> Result<u32, Status> {
        let cdw10 = entry.cdw10.get();
        if self.admin.sanitize.0 & 0b111 == 2 {
            return Err(Status::SANITIZE_IN_PROGRESS);
        }
        match cdw10 & 0b111 {
            1 if self.admin.sanitize.0 & 0b111 == 3 => self.admin.sanitize.0 = 0,
            1 => {}
            2..=4 => {
                self.media.values_mut().for_each(Medium::erase);
                self.admin.sanitize = (2, cdw10);
            }
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(0)
    }

    /// Device Self-test (Base 2.0c §5.9); done when its log is read the second time.
    pub(super) fn device_self_test(&mut self, entry: &SubmissionEntry) -> Result<u32, Status> {
        let code = entry.cdw10.get() as u8 & 0xf;
        match (code, self.admin.self_test) {
            (1 | 2, 0) => self.admin.self_test = code,
            (1 | 2, _) => return Err(Status::SELF_TEST_IN_PROGRESS),
            (0xf, running) => {
                if running != 0 {
                    // Result 1: ended by a Device Self-test command.
                    self.end_self_test(1, entry.nsid.get());
                }
            }
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(0)
    }

    pub(super) fn end_self_test(&mut self, result: u8, nsid: u32) {
        let test = std::mem::take(&mut self.admin.self_test);
        let status = test << 4 | result;
        let entry = SelfTestResult { status, nsid, power_on_hours: 77, ..Default::default() };
        self.admin.self_tests.push_front(entry);
        self.admin.self_tests.truncate(20);
    }

    /// Firmware Image Download (Base 2.0c §5.13).
    pub(super) fn firmware_download(&mut self, entry: &SubmissionEntry) -> Result<u32, Status> {
        let len = (entry.cdw10.get() as usize + 1) * 4;
        let offset = entry.cdw11.get() as usize * 4;
        if !offset.is_multiple_of(usize::from(FWUG) * 4096) {
            return Err(Status::INVALID_FIELD);
        }
        let bytes = transfer::take(self, entry, len)?;
        let image = &mut self.admin.firmware.image;
        if offset == 0 {
            image.clear();
        }
        // Base 2.0c §5.13 has pieces overlap as an error.
        if offset < image.len() {
            return Err(Status::OVERLAPPING_RANGE);
        }
        image.resize(offset, 0);
        image.extend(bytes);
        Ok(0)
    }

    /// Firmware Commit (Base 2.0c §5.12).
    pub(super) fn firmware_commit(&mut self, entry: &SubmissionEntry) -> Result<u32, Status> {
        let cdw10 = entry.cdw10.get();
        let (slot, action) = (cdw10 as u8 & 0b111, cdw10 >> 3 & 0b111);
        let firmware = &mut self.admin.firmware;
        let slot = if slot == 0 { 2 } else { slot };
        if usize::from(slot) > firmware.slots.len() || action < 2 && slot == 1 {
            return Err(Status::INVALID_FIRMWARE_SLOT);
        }
        if action < 2 {
            let image = std::mem::take(&mut firmware.image);
            let Some((magic, rest)) = image.split_first_chunk::<8>() else {
                return Err(Status::INVALID_FIRMWARE_IMAGE);
            };
            let Some(revision) = rest.first_chunk::<8>().filter(|_| magic == FIRMWARE_MAGIC) else {
                return Err(Status::INVALID_FIRMWARE_IMAGE);
            };
            firmware.slots[usize::from(slot) - 1] = Some(Text(*revision));
        }
        if action > 0 && firmware.slots[usize::from(slot) - 1].is_none() {
            return Err(Status::INVALID_FIRMWARE_SLOT);
        }
        match action {
            0 => Ok(0),
            1 | 2 => {
                firmware.next = slot;
                if action == 1 { Err(Status::FIRMWARE_NEEDS_CONTROLLER_RESET) } else { Ok(0) }
            }
            3 => {
                firmware.active = slot;
                Ok(0)
            }
            _ => Err(Status::INVALID_FIELD),
        }
    }

    /// Security Send and Receive (Base 2.0c §5.25, §5.26): protocol 00h lists what there is, EAh gives
    /// back what was sent.
    pub(super) fn security_send(&mut self, entry: &SubmissionEntry) -> Result<u32, Status> {
        if entry.cdw10.get() >> 24 != 0xea {
            return Err(Status::INVALID_FIELD);
        }
        self.admin.security = transfer::take(self, entry, entry.cdw11.get() as usize)?;
        Ok(0)
    }

    pub(super) fn security_receive(&mut self, entry: &SubmissionEntry) -> Result<u32, Status> {
        let mut bytes = match entry.cdw10.get() >> 24 {
            0x00 => vec![0, 0, 0, 0, 0, 0, 0, 2, 0x00, 0xea],
            0xea => self.admin.security.clone(),
            _ => return Err(Status::INVALID_FIELD),
        };
        bytes.resize(entry.cdw11.get() as usize, 0);
        transfer::give(self, entry, &bytes)?;
        Ok(0)
    }

    /// Directive Receive (Base 2.0c §5.7).
    pub(super) fn directive_receive(&mut self, entry: &SubmissionEntry) -> Result<u32, Status> {
        let cdw11 = entry.cdw11.get();
        let len = (entry.cdw10.get() as usize + 1) * 4;
        self.medium(entry.nsid.get())?;
        let mut bytes = vec![0; len.max(64)];
        match (cdw11 >> 8 & 0xff, cdw11 & 0xff) {
            (0, 1) => {
                bytes[0] = 0b11;
                bytes[32] = 1 | u8::from(self.admin.streams_enabled) << 1;
            }
            (1, 1) if self.admin.streams_enabled => {
                bytes[0] = 16;
                bytes[2] = 16 - self.admin.streams as u8;
                bytes[16] = 8;
                bytes[22..24].copy_from_slice(&self.admin.streams.to_le_bytes());
            }
            (1, 3) if self.admin.streams_enabled => {
                self.admin.streams = (entry.cdw12.get() as u16).min(16);
                return Ok(self.admin.streams.into());
            }
            _ => return Err(Status::INVALID_FIELD),
        }
        bytes.truncate(len);
        transfer::give(self, entry, &bytes)?;
        Ok(0)
    }

    /// Directive Send (Base 2.0c §5.8).
    pub(super) fn directive_send(&mut self, entry: &SubmissionEntry) -> Result<u32, Status> {
        let cdw11 = entry.cdw11.get();
        self.medium(entry.nsid.get())?;
        match (cdw11 >> 8 & 0xff, cdw11 & 0xff) {
            (0, 1) if entry.cdw12.get() >> 8 & 0xff == 1 => {
                self.admin.streams_enabled = entry.cdw12.get() & 1 != 0;
            }
            (1, 2) if self.admin.streams_enabled => self.admin.streams = 0,
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(0)
    }
}
