//! Zones of the model (ZNS 1.1b §2.1.1): the state machine, and the commands.

use crate::nvme::spec::{Status, SubmissionEntry};

use super::medium::ModelNamespace;
use super::{State, transfer};

const EMPTY: u8 = 0x1;
const IMPLICITLY_OPEN: u8 = 0x2;
const EXPLICITLY_OPEN: u8 = 0x3;
const CLOSED: u8 = 0x4;
const FULL: u8 = 0xe;

#[derive(Clone, Copy, Debug)]
struct Zone {
    state: u8,
    /// Blocks written.
    written: u64,
}

impl Zone {
    fn is_open(self) -> bool {
        matches!(self.state, IMPLICITLY_OPEN | EXPLICITLY_OPEN)
    }
}

/// The zones of a namespace; none when it is not zoned.
#[derive(Debug)]
pub(super) struct Zones {
    zones: Vec<Zone>,
    blocks: u64,
    capacity: u64,
    open_max: u32,
}

impl Zones {
    pub(super) fn new(namespace: &ModelNamespace) -> Self {
        let count = namespace.blocks.checked_div(namespace.zone_blocks).unwrap_or(0);
        Self {
            zones: vec![Zone { state: EMPTY, written: 0 }; count as usize],
            blocks: namespace.zone_blocks,
            capacity: namespace.zone_capacity,
            open_max: namespace.zones_open_max,
        }
    }

    fn index(&self, lba: u64) -> Result<usize, Status> {
        let index = lba.checked_div(self.blocks).ok_or(Status::INVALID_OPCODE)? as usize;
        if index < self.zones.len() { Ok(index) } else { Err(Status::LBA_OUT_OF_RANGE) }
    }

    /// Whether one more zone can be open.
    fn may_open(&self, index: usize) -> Result<(), Status> {
        let open = self.zones.iter().filter(|zone| zone.is_open()).count() as u32;
        if self.zones[index].is_open() || self.open_max == 0 || open < self.open_max {
            Ok(())
        } else {
            Err(Status::TOO_MANY_OPEN_ZONES)
        }
    }

    /// Takes a write; nothing to do for a namespace that is not zoned.
    pub(super) fn write(&mut self, slba: u64, blocks: u64) -> Result<(), Status> {
        if self.blocks == 0 {
            return Ok(());
        }
        let index = self.index(slba)?;
        let zone = self.zones[index];
        if zone.state == FULL {
            return Err(Status::ZONE_IS_FULL);
        }
        let start = index as u64 * self.blocks;
        if slba != start + zone.written {
            return Err(Status::ZONE_INVALID_WRITE);
        }
        if zone.written + blocks > self.capacity {
            return Err(Status::ZONED_BOUNDARY_ERROR);
        }
        self.may_open(index)?;
        let zone = &mut self.zones[index];
        if !zone.is_open() {
            zone.state = IMPLICITLY_OPEN;
        }
        zone.written += blocks;
        if zone.written == self.capacity {
            zone.state = FULL;
        }
        Ok(())
    }

    /// Where an append to the zone that starts at `zslba` goes.
    fn write_pointer(&self, zslba: u64) -> Result<u64, Status> {
        let index = self.index(zslba)?;
        if !zslba.is_multiple_of(self.blocks) {
            return Err(Status::INVALID_FIELD);
        }
        if self.zones[index].state == FULL {
            return Err(Status::ZONE_IS_FULL);
        }
        Ok(zslba + self.zones[index].written)
    }

    /// One transition of one zone.
    fn manage(&mut self, index: usize, action: u32) -> Result<(), Status> {
        let invalid = Err(Status::INVALID_ZONE_STATE_TRANSITION);
        let state = self.zones[index].state;
        match (action, state) {
            (1, CLOSED) | (2, FULL) | (3, EXPLICITLY_OPEN) | (4, EMPTY) => {}
            (1, IMPLICITLY_OPEN | EXPLICITLY_OPEN) => {
                let empty = self.zones[index].written == 0;
                self.zones[index].state = if empty { EMPTY } else { CLOSED };
            }
            (2, _) => self.zones[index].state = FULL,
            (3, EMPTY | IMPLICITLY_OPEN | CLOSED) => {
                self.may_open(index)?;
                self.zones[index].state = EXPLICITLY_OPEN;
            }
            (4, _) => self.zones[index] = Zone { state: EMPTY, written: 0 },
            // Offline takes a read-only zone, of which there is none; the others are no transition.
            (1 | 3 | 5, _) => return invalid,
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(())
    }

    /// Whether "all zones" means this one (ZNS 1.1b figure 43).
    fn of_all(&self, index: usize, action: u32) -> bool {
        let state = self.zones[index].state;
        match action {
            1 => self.zones[index].is_open(),
            2 => matches!(state, IMPLICITLY_OPEN | EXPLICITLY_OPEN | CLOSED),
            3 => state == CLOSED,
            4 => state != EMPTY,
            _ => false,
        }
    }

    fn descriptor(&self, index: usize) -> [u8; 64] {
        let mut out = [0; 64];
        let zone = self.zones[index];
        let start = index as u64 * self.blocks;
        out[0] = 2;
        out[1] = zone.state << 4;
        out[8..16].copy_from_slice(&self.capacity.to_le_bytes());
        out[16..24].copy_from_slice(&start.to_le_bytes());
        // A full zone's write pointer means nothing; this controller leaves rubbish there.
        let pointer = if zone.state == FULL { u64::MAX } else { start + zone.written };
        out[24..32].copy_from_slice(&pointer.to_le_bytes());
        out
    }
}

impl State {
    /// Zone Management Send (ZNS 1.1b §3.4.3).
    pub(super) fn zone_send(&mut self, nsid: u32, entry: &SubmissionEntry) -> Result<u64, Status> {
        let slba = u64::from(entry.cdw11.get()) << 32 | u64::from(entry.cdw10.get());
        let (action, all) = (entry.cdw13.get() & 0xff, entry.cdw13.get() & 1 << 8 != 0);
        let zones = &mut self.medium(nsid)?.zones;
        let first = zones.index(slba)?;
        if !all && !slba.is_multiple_of(zones.blocks) {
            return Err(Status::INVALID_FIELD);
        }
        let range = if all { 0..zones.zones.len() } else { first..first + 1 };
        for index in range {
            if !all || zones.of_all(index, action) {
                zones.manage(index, action)?;
                if action == 4 {
                    let (start, blocks) = (index as u64 * zones.blocks, zones.blocks);
                    self.zero(nsid, start, blocks)?;
                    return self.zone_send_rest(nsid, index + 1, action, all);
                }
            }
        }
        Ok(0)
    }

    /// The zones behind `from` that a reset of all means.
    fn zone_send_rest(
        &mut self,
        nsid: u32,
        from: usize,
        action: u32,
        all: bool,
    ) -> Result<u64, Status> {
        let count = self.medium(nsid)?.zones.zones.len();
        for index in from..if all { count } else { from } {
            let zones = &mut self.medium(nsid)?.zones;
            if zones.of_all(index, action) {
                zones.manage(index, action)?;
                let (start, blocks) = (index as u64 * zones.blocks, zones.blocks);
                self.zero(nsid, start, blocks)?;
            }
        }
        Ok(0)
    }

    /// Zone Management Receive (ZNS 1.1b §3.4.2), the report.
    pub(super) fn zone_receive(
        &mut self,
        nsid: u32,
        entry: &SubmissionEntry,
    ) -> Result<u64, Status> {
        let slba = u64::from(entry.cdw11.get()) << 32 | u64::from(entry.cdw10.get());
        let cdw13 = entry.cdw13.get();
        if cdw13 & 0xffff != 0 {
            return Err(Status::INVALID_FIELD);
        }
        let len = (entry.cdw12.get() as usize + 1) * 4;
        let zones = &self.medium(nsid)?.zones;
        let first = zones.index(slba)?;
        let room = len.saturating_sub(64) / 64;
        let partial = cdw13 & 1 << 16 != 0;
        let left = zones.zones.len() - first;
        let listed = left.min(room);
        let mut bytes = vec![0; len];
        let count = if partial { listed } else { left } as u64;
        bytes[..8].copy_from_slice(&count.to_le_bytes());
        for (index, out) in bytes[64..].chunks_exact_mut(64).take(listed).enumerate() {
            out.copy_from_slice(&zones.descriptor(first + index));
        }
        transfer::give(self, entry, &bytes)?;
        Ok(0)
    }

    /// Zone Append (ZNS 1.1b §3.4.1).
    pub(super) fn zone_append(
        &mut self,
        nsid: u32,
        entry: &SubmissionEntry,
    ) -> Result<u64, Status> {
        let zslba = u64::from(entry.cdw11.get()) << 32 | u64::from(entry.cdw10.get());
        let at = self.medium(nsid)?.zones.write_pointer(zslba)?;
        let mut write = *entry;
        write.cdw10 = (at as u32).into();
        write.cdw11 = ((at >> 32) as u32).into();
        self.write(nsid, &write)?;
        Ok(at)
    }
}
