//! Zoned namespaces: report, manage, append (ZNS 1.1b §3.4).

use serde::Serialize;

use crate::nvme::spec::Opcode;
use crate::nvme::spec::command::csi;
use crate::nvme::spec::identify::IdentifyNamespaceZoned;
use crate::nvme::spec::layout::{Layout, layout};

use super::queue::{Buffer, CommandQueue, IoCommand};
use super::{Command, CommandError};

layout! {
    /// The header of a zone report (ZNS 1.1b figure 37).
    pub struct ZoneReportHeader: 64 {
        /// Number of Zones.
        0 zones: u64,
    }

    /// A Zone Descriptor (ZNS 1.1b figure 38).
    pub struct ZoneDescriptor: 64 {
        /// Zone Type in bits 3:0: 2 sequential write required.
        0 zone_type: u8,
        /// Zone State in bits 7:4: [`ZoneState`].
        1 state: u8,
        /// Zone Attributes.
        2 attributes: u8,
        /// Zone Attributes Information.
        3 information: u8,
        /// Zone Capacity in blocks.
        8 capacity_blocks: u64,
        /// Zone Start LBA.
        16 start: u64,
        /// Write Pointer; meaningless in a zone that is full, read-only or offline.
        24 write_pointer: u64,
    }
}

/// The state of a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ZoneState {
    /// Nothing is written.
    Empty,
    /// Open because it was written.
    ImplicitlyOpened,
    /// Open because it was told to.
    ExplicitlyOpened,
    /// Written in part and not open.
    Closed,
    /// It can only be read.
    ReadOnly,
    /// Written to its end, or finished.
    Full,
    /// It can be neither read nor written.
    Offline,
    /// A number that the specification does not name.
    Unknown,
}

/// A zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Zone {
    /// Its first block.
    pub start_lba: u64,
    /// How many blocks can be written.
    pub capacity_blocks: u64,
    /// Where the next write goes; absent when there is none.
    pub write_pointer_lba: Option<u64>,
    /// Its state.
    pub state: ZoneState,
    /// Zone Attributes.
    pub attributes: u8,
}

impl Zone {
    fn new(raw: &ZoneDescriptor) -> Self {
        let state = match raw.state >> 4 {
            0x1 => ZoneState::Empty,
            0x2 => ZoneState::ImplicitlyOpened,
            0x3 => ZoneState::ExplicitlyOpened,
            0x4 => ZoneState::Closed,
            0xd => ZoneState::ReadOnly,
            0xe => ZoneState::Full,
            0xf => ZoneState::Offline,
            _ => ZoneState::Unknown,
        };
        let written = matches!(
            state,
            ZoneState::ReadOnly | ZoneState::Full | ZoneState::Offline | ZoneState::Unknown
        );
        Self {
            start_lba: raw.start,
            capacity_blocks: raw.capacity_blocks,
            write_pointer_lba: (!written).then_some(raw.write_pointer),
            state,
            attributes: raw.attributes,
        }
    }
}

/// What to do with a zone, or with all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneAction {
    /// Not open any more.
    Close,
    /// Full: no more is written.
    Finish,
    /// Open until it is closed.
    Open,
    /// Empty: its data is gone.
    Reset,
    /// A read-only zone becomes unreachable.
    Offline,
}

impl CommandQueue {
    /// What Identify says of the zones.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for a namespace that is not zoned; what the controller says.
    pub fn zoned(&self) -> Result<IdentifyNamespaceZoned, CommandError> {
        self.check_zoned()?;
        self.controller().identify_namespace_zoned(self.nsid())
    }

    /// The zones from the one at `lba` on, at most `most`.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for a namespace that is not zoned; what the controller says.
    pub fn zones(&mut self, lba: u64, most: usize) -> Result<Vec<Zone>, CommandError> {
        self.check_zoned()?;
        let mut found: Vec<Zone> = Vec::new();
        let mut at = lba;
        while found.len() < most {
            let largest = self.controller().identify().transfer_max_bytes as usize;
            let fits = (largest - ZoneReportHeader::SIZE) / ZoneDescriptor::SIZE;
            let wanted = (most - found.len()).min(ZONES_PER_REPORT).min(fits);
            let len = ZoneReportHeader::SIZE + wanted * ZoneDescriptor::SIZE;
            // Partial: the number is that of the zones that are in the buffer.
            let command = Command::new(Opcode::ZONE_MANAGEMENT_RECEIVE, 0)
                .qword(10, at)
                .dword(12, (len / 4 - 1) as u32)
                .dword(13, 1 << 16);
            let io = IoCommand { data: Buffer::In(len), ..IoCommand::new(command) };
            let (_, bytes, _) = self.execute(io)?;
            let listed = ZoneReportHeader::decode(&bytes).zones.min(wanted as u64) as usize;
            let descriptors = bytes[ZoneReportHeader::SIZE..].chunks_exact(ZoneDescriptor::SIZE);
            let before = found.len();
            for zone in descriptors.take(listed).map(ZoneDescriptor::decode) {
                // Ascending, so that this ends whatever the controller says.
                if found.last().is_some_and(|last| zone.start <= last.start_lba) {
                    return Err(self.invalid(format_args!("zone {} comes twice", zone.start)));
                }
                found.push(Zone::new(&zone));
            }
            let Some(last) = found.last().filter(|_| listed == wanted && found.len() > before)
            else {
                break;
            };
            let next = last.start_lba.checked_add(last.capacity_blocks.max(1));
            match next.filter(|&next| next < self.namespace().nsze) {
                // Inside of the last zone behind its capacity, or the start of the next one: a report
                // starts with the zone that the block is in, which must not be the last one again.
                Some(next) => at = self.start_of_next(last.start_lba, next)?,
                None => break,
            }
            if at >= self.namespace().nsze {
                break;
            }
        }
        Ok(found)
    }

    /// The first block of the zone behind the one that starts at `start`.
    fn start_of_next(&self, start: u64, at_least: u64) -> Result<u64, CommandError> {
        let format = usize::from(self.namespace().format_index());
        let size = self.zoned()?.lbafe[format].zsze;
        Ok(start.saturating_add(size).max(at_least))
    }

    /// Does something with the zone that starts at `lba`, or with `all` of them.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for a namespace that is not zoned; what the controller says, such as
    /// Invalid Zone State Transition.
    pub fn manage_zone(
        &mut self,
        lba: u64,
        action: ZoneAction,
        all: bool,
    ) -> Result<(), CommandError> {
        self.check_zoned()?;
        let action = match action {
            ZoneAction::Close => 1,
            ZoneAction::Finish => 2,
            ZoneAction::Open => 3,
            ZoneAction::Reset => 4,
            ZoneAction::Offline => 5,
        };
        let command = Command::new(Opcode::ZONE_MANAGEMENT_SEND, 0)
            .qword(10, if all { 0 } else { lba })
            .dword(13, u32::from(all) << 8 | action);
        self.execute(IoCommand::new(command))?;
        Ok(())
    }

    /// Writes data where the zone that starts at `zone` is written next; the block it went to.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for a namespace that is not zoned or data that is not whole blocks;
    /// what the controller says, such as Zone Is Full.
    pub fn append(&mut self, zone: u64, data: Vec<u8>) -> Result<u64, CommandError> {
        self.check_zoned()?;
        let stride = self.format().stride();
        let blocks = data.len() / stride.max(1);
        if blocks == 0 || blocks > 1 << 16 || data.len() != blocks * stride {
            let what = format!("{} bytes are not whole blocks of {stride}", data.len());
            return Err(self.invalid(what));
        }
        let command = self.on_blocks(Opcode::ZONE_APPEND, zone, blocks as u32)?;
        let io = IoCommand { data: Buffer::Out(data), ..IoCommand::new(command) };
        let (lba, _, _) = self.execute(io)?;
        Ok(lba)
    }

    fn check_zoned(&self) -> Result<(), CommandError> {
        let descriptors = self.controller().namespace_descriptors(self.nsid())?;
        if descriptors.csi == Some(csi::ZONED) {
            return Ok(());
        }
        Err(self.invalid("the namespace is not zoned"))
    }
}

/// Zones in one report: 64 KiB of it.
const ZONES_PER_REPORT: usize = 1023;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::spec::layout::assert_places;

    /// ZNS 1.1b figures 37 and 38.
    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        assert_places::<ZoneReportHeader>(64, "zones@0+8");
        assert_places::<ZoneDescriptor>(
            64,
            "zone_type@0+1 state@1+1 attributes@2+1 information@3+1 capacity_blocks@8+8 \
             start@16+8 write_pointer@24+8",
        );
    }

    #[test]
    fn every_state_of_a_zone_has_a_name_and_only_some_a_write_pointer() {
        for state in 0..=u8::MAX {
            let raw = ZoneDescriptor { state, write_pointer: 7, ..Default::default() };
            let zone = Zone::new(&raw);
            let writable = matches!(state >> 4, 1..=4);
            assert_eq!(zone.write_pointer_lba.is_some(), writable, "{state:#x}");
        }
    }
}
