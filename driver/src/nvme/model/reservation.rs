//! Reservations and data placement of the model. One controller, so one host: others are played by
//! [`Model::other_host`](super::Model::other_host).

use std::collections::BTreeMap;

use crate::nvme::spec::Status;
use crate::nvme::spec::command::{Opcode, SubmissionEntry};

use super::{State, transfer};

/// This controller, and the one of the other host.
const OWN: u16 = 0;
const OTHER: u16 = 1;

/// Who has registered and who holds a namespace.
#[derive(Debug, Default)]
pub(super) struct Reservations {
    generation: u32,
    keys: BTreeMap<u16, u64>,
    holder: Option<(u16, u8)>,
    persist: bool,
}

impl Reservations {
    /// The other host registers `key` and acquires a reservation of type `kind`.
    pub(super) fn other_host(&mut self, key: u64, kind: u8) {
        self.keys.insert(OTHER, key);
        self.holder = Some((OTHER, kind));
        self.generation += 1;
    }
}

fn key(bytes: &[u8], index: usize) -> u64 {
    u64::from_le_bytes(bytes[index * 8..][..8].try_into().expect("8 bytes"))
}

impl State {
    /// Whether this host may do an I/O command (Base 2.0c figure 403).
    pub(super) fn check_reservation(&mut self, nsid: u32, opcode: Opcode) -> Result<(), Status> {
        let Some(reservations) = self.reservations.get(&nsid) else { return Ok(()) };
        let Some((holder, kind)) = reservations.holder else { return Ok(()) };
        let registered = reservations.keys.contains_key(&OWN);
        let reads = matches!(opcode, Opcode::READ | Opcode::COMPARE | Opcode::VERIFY);
        let manages = matches!(
            opcode,
            Opcode::RESERVATION_REGISTER
                | Opcode::RESERVATION_REPORT
                | Opcode::RESERVATION_ACQUIRE
                | Opcode::RESERVATION_RELEASE
        );
        let allowed = manages
            || match kind {
                1 => holder == OWN || reads,
                2 => holder == OWN,
                3 | 5 => registered || reads,
                _ => registered,
            };
        if allowed { Ok(()) } else { Err(Status::RESERVATION_CONFLICT) }
    }

    pub(super) fn reservation(
        &mut self,
        nsid: u32,
        opcode: Opcode,
        entry: &SubmissionEntry,
    ) -> Result<(), Status> {
        let cdw10 = entry.cdw10.get();
        if opcode == Opcode::RESERVATION_REPORT {
            return self.reservation_report(nsid, entry);
        }
        let len = if opcode == Opcode::RESERVATION_RELEASE { 8 } else { 16 };
        let data = transfer::take(self, entry, len)?;
        let (action, ignore) = (cdw10 & 0b111, cdw10 & 1 << 3 != 0);
        let kind = (cdw10 >> 8) as u8;
        let current = key(&data, 0);
        let state = self.reservations.entry(nsid).or_default();
        let registered = state.keys.get(&OWN).copied();
        let matches = registered == Some(current) || ignore;
        match (opcode, action) {
            (Opcode::RESERVATION_REGISTER, 0) => {
                let new = key(&data, 1);
                if registered.is_some_and(|key| key != new) {
                    return Err(Status::RESERVATION_CONFLICT);
                }
                state.keys.insert(OWN, new);
            }
            (Opcode::RESERVATION_REGISTER, 1) if matches => {
                state.keys.remove(&OWN);
                state.holder = state.holder.filter(|&(holder, _)| holder != OWN);
            }
            (Opcode::RESERVATION_REGISTER, 2) if matches => {
                state.keys.insert(OWN, key(&data, 1));
            }
            (Opcode::RESERVATION_ACQUIRE, _) if !(1..=6).contains(&kind) => {
                return Err(Status::INVALID_FIELD);
            }
            (Opcode::RESERVATION_ACQUIRE, 0) if registered == Some(current) => {
                if state.holder.is_some_and(|holder| holder != (OWN, kind)) {
                    return Err(Status::RESERVATION_CONFLICT);
                }
                state.holder = Some((OWN, kind));
                return Ok(());
            }
            (Opcode::RESERVATION_ACQUIRE, 1 | 2) if registered == Some(current) => {
                let victim = key(&data, 1);
                state.keys.retain(|&host, key| host == OWN || *key != victim);
                let left = state.holder.filter(|(holder, _)| state.keys.contains_key(holder));
                state.holder = left.or(Some((OWN, kind)));
            }
            (Opcode::RESERVATION_RELEASE, 0) if registered == Some(current) => {
                match state.holder {
                    Some((OWN, held)) if held != kind => return Err(Status::INVALID_FIELD),
                    Some((OWN, _)) => state.holder = None,
                    _ => {}
                }
                return Ok(());
            }
            (Opcode::RESERVATION_RELEASE, 1) if registered == Some(current) => {
                state.keys.clear();
                state.holder = None;
            }
            (_, 0..=2) => return Err(Status::RESERVATION_CONFLICT),
            _ => return Err(Status::INVALID_FIELD),
        }
        if opcode == Opcode::RESERVATION_REGISTER {
            match cdw10 >> 30 {
                0b10 => state.persist = false,
                0b11 => state.persist = true,
                _ => {}
            }
        }
        state.generation += 1;
        Ok(())
    }

    fn reservation_report(&mut self, nsid: u32, entry: &SubmissionEntry) -> Result<(), Status> {
        // Host identifiers of this controller have 128 bits (CTRATT).
        if entry.cdw11.get() & 1 == 0 {
            return Err(Status(0x018));
        }
        let len = (entry.cdw10.get() as usize + 1) * 4;
        let state = self.reservations.entry(nsid).or_default();
        let mut bytes = vec![0; len.max(64)];
        bytes[..4].copy_from_slice(&state.generation.to_le_bytes());
        bytes[4] = state.holder.map_or(0, |(_, kind)| kind);
        bytes[5..7].copy_from_slice(&(state.keys.len() as u16).to_le_bytes());
        bytes[9] = state.persist.into();
        for ((host, key), out) in state.keys.iter().zip(bytes[64..].chunks_exact_mut(64)) {
            out[..2].copy_from_slice(&host.to_le_bytes());
            out[2] = state.holder.is_some_and(|(holder, _)| holder == *host).into();
            out[8..16].copy_from_slice(&key.to_le_bytes());
            out[16..32].fill(*host as u8 + 0xa0);
        }
        bytes.truncate(len);
        transfer::give(self, entry, &bytes)
    }

    /// I/O Management (NVM 1.1 §3.2.3): two handles, when the endurance group places data.
    pub(super) fn placement(
        &mut self,
        _nsid: u32,
        opcode: Opcode,
        entry: &SubmissionEntry,
    ) -> Result<(), Status> {
        if self.admin.fdp & 1 == 0 {
            return Err(Status::FDP_DISABLED);
        }
        let cdw10 = entry.cdw10.get();
        if cdw10 & 0xff != 1 {
            return Err(Status::INVALID_FIELD);
        }
        if opcode == Opcode::IO_MANAGEMENT_SEND {
            let count = (cdw10 >> 16) as usize + 1;
            let ids = transfer::take(self, entry, count * 2)?;
            for id in ids.chunks_exact(2).map(|id| u16::from_le_bytes([id[0], id[1]])) {
                let handle = self.admin.handles.get_mut(usize::from(id));
                *handle.ok_or(Status::INVALID_FIELD)? = 0;
            }
            return Ok(());
        }
        let len = (entry.cdw11.get() as usize + 1) * 4;
        let mut bytes = vec![0; len];
        bytes[14..16].copy_from_slice(&(self.admin.handles.len() as u16).to_le_bytes());
        for (index, (used, out)) in
            self.admin.handles.iter().zip(bytes[16..].chunks_exact_mut(32)).enumerate()
        {
            out[..2].copy_from_slice(&(index as u16).to_le_bytes());
            out[2..4].copy_from_slice(&(index as u16).to_le_bytes());
            out[8..16].copy_from_slice(&(1000 - used).to_le_bytes());
        }
        transfer::give(self, entry, &bytes)
    }
}
