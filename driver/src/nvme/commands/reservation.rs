//! Reservations: who may write a namespace that several hosts share (Base 2.0c §8.19, §7.2 to §7.6).

use serde::Serialize;

use crate::nvme::spec::Opcode;
use crate::nvme::spec::identify::oncs;
use crate::nvme::spec::layout::{Hex, Layout, layout};

use super::queue::{Buffer, CommandQueue, IoCommand};
use super::{Command, CommandError};

layout! {
    /// Reservation Status (Base 2.0c figure 410).
    pub struct ReservationStatus: 24 {
        /// Generation: counts registrations, preemptions, releases.
        0 generation: u32,
        /// Reservation Type; 0 is none held.
        4 reservation_type: u8,
        /// Number of Registrants.
        5 registrants: u16,
        /// Persist Through Power Loss State.
        9 through_power_loss: u8,
    }

    /// A registrant, with a 64-bit host identifier (Base 2.0c figure 411).
    pub struct Registrant: 24 {
        /// Controller ID.
        0 cntlid: u16,
        /// Bit 0: holds the reservation.
        2 status: u8,
        /// Host Identifier.
        8 host_id: Hex<8>,
        /// Reservation Key.
        16 key: u64,
    }

    /// A registrant, with a 128-bit host identifier (Base 2.0c figure 413).
    pub struct RegistrantExtended: 64 {
        /// Controller ID.
        0 cntlid: u16,
        /// Bit 0: holds the reservation.
        2 status: u8,
        /// Reservation Key.
        8 key: u64,
        /// Host Identifier.
        16 host_id: Hex<16>,
    }
}

/// What a reservation lets others do (Base 2.0c figure 405).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReservationType {
    /// Others may read; the holder writes.
    WriteExclusive,
    /// The holder alone.
    ExclusiveAccess,
    /// Others may read; registrants write.
    WriteExclusiveRegistrants,
    /// Registrants alone.
    ExclusiveAccessRegistrants,
    /// As the third; every registrant holds it.
    WriteExclusiveAll,
    /// As the fourth; every registrant holds it.
    ExclusiveAccessAll,
}

impl ReservationType {
    /// Its number.
    pub const fn bits(self) -> u8 {
        match self {
            Self::WriteExclusive => 1,
            Self::ExclusiveAccess => 2,
            Self::WriteExclusiveRegistrants => 3,
            Self::ExclusiveAccessRegistrants => 4,
            Self::WriteExclusiveAll => 5,
            Self::ExclusiveAccessAll => 6,
        }
    }
}

/// What to do with this host's registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Register `new`.
    Register {
        /// The key.
        new: u64,
    },
    /// Take `current` back.
    Unregister {
        /// The key.
        current: u64,
    },
    /// `new` instead of `current`.
    Replace {
        /// The key so far.
        current: u64,
        /// The key from now on.
        new: u64,
    },
}

/// How a reservation is acquired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquire {
    /// When nobody has it.
    Acquire,
    /// Taken from the registrant with `key`.
    Preempt {
        /// Whose.
        key: u64,
    },
    /// Taken, and its commands aborted.
    PreemptAndAbort {
        /// Whose.
        key: u64,
    },
}

/// A reservation report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReservationReport {
    /// The state.
    pub status: ReservationStatus,
    /// Who is registered, when host identifiers have 64 bits.
    pub registrants: Vec<Registrant>,
    /// Who is registered, when host identifiers have 128 bits.
    pub registrants_extended: Vec<RegistrantExtended>,
}

impl CommandQueue {
    /// Registers this host with a key, or takes it back. With `ignore` the current key is not checked.
    /// `persist` is whether reservations stay through power loss, `None` as it was.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] when the controller has no reservations; what it says, such as
    /// Reservation Conflict.
    pub fn register(
        &mut self,
        register: Register,
        ignore: bool,
        persist: Option<bool>,
    ) -> Result<(), CommandError> {
        let (action, current, new) = match register {
            Register::Register { new } => (0, 0, new),
            Register::Unregister { current } => (1, current, 0),
            Register::Replace { current, new } => (2, current, new),
        };
        let persist = match persist {
            None => 0,
            Some(false) => 0b10 << 30,
            Some(true) => 0b11 << 30,
        };
        let cdw10 = persist | u32::from(ignore) << 3 | action;
        self.reserve(Opcode::RESERVATION_REGISTER, cdw10, &[current, new])
    }

    /// Acquires a reservation with this host's `current` key.
    ///
    /// # Errors
    ///
    /// As [`register`](CommandQueue::register).
    pub fn acquire(
        &mut self,
        acquire: Acquire,
        kind: ReservationType,
        current: u64,
    ) -> Result<(), CommandError> {
        let (action, preempted) = match acquire {
            Acquire::Acquire => (0, 0),
            Acquire::Preempt { key } => (1, key),
            Acquire::PreemptAndAbort { key } => (2, key),
        };
        let cdw10 = u32::from(kind.bits()) << 8 | action;
        self.reserve(Opcode::RESERVATION_ACQUIRE, cdw10, &[current, preempted])
    }

    /// Releases the reservation of type `kind`, or with `None` clears it with all registrations.
    ///
    /// # Errors
    ///
    /// As [`register`](CommandQueue::register).
    pub fn release(
        &mut self,
        kind: Option<ReservationType>,
        current: u64,
    ) -> Result<(), CommandError> {
        let cdw10 = match kind {
            Some(kind) => u32::from(kind.bits()) << 8,
            None => 1,
        };
        self.reserve(Opcode::RESERVATION_RELEASE, cdw10, &[current])
    }

    fn reserve(&mut self, opcode: Opcode, cdw10: u32, keys: &[u64]) -> Result<(), CommandError> {
        self.requires(oncs::RESERVATIONS, "do reservations")?;
        let data = keys.iter().flat_map(|key| key.to_le_bytes()).collect();
        let command = Command::new(opcode, 0).dword(10, cdw10);
        self.execute(IoCommand { data: Buffer::Out(data), ..IoCommand::new(command) })?;
        Ok(())
    }

    /// Who is registered and who holds the reservation.
    ///
    /// # Errors
    ///
    /// As [`register`](CommandQueue::register).
    pub fn reservation_report(&mut self) -> Result<ReservationReport, CommandError> {
        self.requires(oncs::RESERVATIONS, "do reservations")?;
        let extended = self.controller_id().ctratt & 1 != 0;
        let len = 4096;
        let command = Command::new(Opcode::RESERVATION_REPORT, 0)
            .dword(10, len as u32 / 4 - 1)
            .dword(11, extended.into());
        let io = IoCommand { data: Buffer::In(len), ..IoCommand::new(command) };
        let (_, bytes, _) = self.execute(io)?;
        let status = ReservationStatus::decode(&bytes);
        let count = usize::from(status.registrants);
        let (mut registrants, mut registrants_extended) = (Vec::new(), Vec::new());
        if extended {
            let list = bytes[64..].chunks_exact(RegistrantExtended::SIZE).take(count);
            registrants_extended = list.map(RegistrantExtended::decode).collect();
        } else {
            let list = bytes[24..].chunks_exact(Registrant::SIZE).take(count);
            registrants = list.map(Registrant::decode).collect();
        }
        Ok(ReservationReport { status, registrants, registrants_extended })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::spec::layout::assert_places;

    /// Base 2.0c figures 410, 411 and 413.
    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        assert_places::<ReservationStatus>(
            24,
            "generation@0+4 reservation_type@4+1 registrants@5+2 through_power_loss@9+1",
        );
        assert_places::<Registrant>(24, "cntlid@0+2 status@2+1 host_id@8+8 key@16+8");
        assert_places::<RegistrantExtended>(64, "cntlid@0+2 status@2+1 key@8+8 host_id@16+16");
    }
}
