//! Get and Set Features (Base 2.0c §5.15, §5.27).

use serde::Serialize;

use crate::nvme::NvmeController;
use crate::nvme::spec::Opcode;
use crate::nvme::spec::feature::{self, Feature, Select};

use super::{Command, CommandError, Data};

/// How many entries the table of autonomous power state transitions has: one for each power state.
pub const APST_ENTRIES: usize = 32;

/// When the controller goes to another power state by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PowerTransition {
    /// How long it must have been idle, in milliseconds, 24 bits; 0 is never.
    pub idle_ms: u32,
    /// The state it goes to, 0 to 31, which must be a non-operational one.
    pub to_state: u8,
}

/// Autonomous power state transitions, by the state that they start from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PowerTransitions {
    /// Whether any happen.
    pub enabled: bool,
    /// The transition out of each state.
    pub from_state: [PowerTransition; APST_ENTRIES],
}

/// The controller's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Timestamp {
    /// Milliseconds since 1970-01-01, or since the controller was reset when it was not set.
    pub ms: u64,
    /// Whether a host has set it.
    pub set_by_host: bool,
    /// Whether it may have stood still meanwhile.
    pub may_have_stopped: bool,
}

/// What this host understands (Base 2.0c §5.27.1.18).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HostBehavior {
    /// Advanced Command Retry: the controller may name a delay.
    pub advanced_command_retry: bool,
    /// Extended Telemetry Data Area 4.
    pub telemetry_area_4: bool,
    /// LBA formats with 32-bit and 64-bit guards.
    pub extended_lba_formats: bool,
}

const HOST_BEHAVIOR_BYTES: usize = 512;

impl NvmeController {
    /// A feature's dword, with its data structure into `data` when it has one.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn get_feature(
        &self,
        id: u8,
        select: Select,
        nsid: u32,
        cdw11: u32,
        data: &mut [u8],
    ) -> Result<u32, CommandError> {
        let command = Command::new(Opcode::GET_FEATURES, nsid)
            .dword(10, select.bits() | u32::from(id))
            .dword(11, cdw11);
        self.admin(&command, if data.is_empty() { Data::None } else { Data::In(data) })
    }

    /// Sets a feature's dword and its data structure when it has one; with `save` also for after a
    /// reset.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn set_feature(
        &self,
        id: u8,
        save: bool,
        nsid: u32,
        cdw11: u32,
        data: &[u8],
    ) -> Result<(), CommandError> {
        let command = Command::new(Opcode::SET_FEATURES, nsid)
            .dword(10, u32::from(save) << 31 | u32::from(id))
            .dword(11, cdw11);
        self.admin(&command, if data.is_empty() { Data::None } else { Data::Out(data) })?;
        Ok(())
    }

    /// Changes fields of a feature and leaves the others as they are; the new dword.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`], with nothing sent, for a feature that is not to be set, a field it does
    /// not have or a value that does not fit; those of [`admin`](NvmeController::admin).
    pub fn change_feature(
        &self,
        feature: &Feature,
        save: bool,
        nsid: u32,
        changes: &[(&str, u32)],
    ) -> Result<u32, CommandError> {
        let invalid = |what: String| CommandError::invalid(&self.identify().name, what);
        if !feature.settable {
            return Err(invalid(format!("{} can only be read", feature.name)));
        }
        let mut checked = Vec::new();
        let mut selector = 0;
        for &(name, value) in changes {
            let Some(field) = feature.field(name) else {
                let there: Vec<_> = feature.fields.iter().map(|field| field.name).collect();
                let (feature, there) = (feature.name, there.join(", "));
                return Err(invalid(format!("{feature} has no field {name}; there are: {there}")));
            };
            if value > field.max() {
                let (feature, max) = (feature.name, field.max());
                return Err(invalid(format!("{feature}: {name} is at most {max}, not {value}")));
            }
            if feature.selectors.contains(&name) {
                selector = field.set(selector, value);
            }
            checked.push((field, value));
        }
        let old = self.get_feature(feature.id, Select::Current, nsid, selector, &mut [])?;
        // A value does not repeat what selects it.
        let dword =
            checked.iter().fold(old | selector, |dword, (field, value)| field.set(dword, *value));
        self.set_feature(feature.id, save, nsid, dword, &[])?;
        Ok(dword)
    }

    /// The autonomous power state transitions.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn power_transitions(&self, select: Select) -> Result<PowerTransitions, CommandError> {
        let mut bytes = [0; APST_ENTRIES * 8];
        let dword = self.get_feature(feature::APST, select, 0, 0, &mut bytes)?;
        let entry = |index: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[index * 8..][..8]);
            let word = u64::from_le_bytes(word);
            PowerTransition {
                idle_ms: (word >> 8) as u32 & 0xff_ffff,
                to_state: (word >> 3) as u8 & 0x1f,
            }
        };
        Ok(PowerTransitions { enabled: dword & 1 != 0, from_state: std::array::from_fn(entry) })
    }

    /// Sets the autonomous power state transitions.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for a time or a state that does not fit; those of
    /// [`admin`](NvmeController::admin).
    pub fn set_power_transitions(
        &self,
        table: &PowerTransitions,
        save: bool,
    ) -> Result<(), CommandError> {
        let mut bytes = [0; APST_ENTRIES * 8];
        for (out, entry) in bytes.chunks_exact_mut(8).zip(table.from_state) {
            let PowerTransition { idle_ms, to_state } = entry;
            if idle_ms > 0xff_ffff || to_state > 31 {
                let what = format!("no transition after {idle_ms} ms to power state {to_state}");
                return Err(CommandError::invalid(&self.identify().name, what));
            }
            let word = u64::from(idle_ms) << 8 | u64::from(to_state) << 3;
            out.copy_from_slice(&word.to_le_bytes());
        }
        self.set_feature(feature::APST, save, 0, table.enabled.into(), &bytes)
    }

    /// The controller's clock.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn timestamp(&self) -> Result<Timestamp, CommandError> {
        let mut bytes = [0; 8];
        self.get_feature(feature::TIMESTAMP, Select::Current, 0, 0, &mut bytes)?;
        let word = u64::from_le_bytes(bytes);
        Ok(Timestamp {
            ms: word & 0xffff_ffff_ffff,
            set_by_host: word >> 49 & 0b111 == 1,
            may_have_stopped: word >> 48 & 1 != 0,
        })
    }

    /// Sets the controller's clock, in milliseconds since 1970-01-01.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for more than 48 bits; those of [`admin`](NvmeController::admin).
    pub fn set_timestamp(&self, ms: u64) -> Result<(), CommandError> {
        if ms >> 48 != 0 {
            let what = format!("a timestamp of {ms} ms does not fit 48 bits");
            return Err(CommandError::invalid(&self.identify().name, what));
        }
        self.set_feature(feature::TIMESTAMP, false, 0, 0, &ms.to_le_bytes())
    }

    /// What the controller takes the host to understand.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn host_behavior(&self) -> Result<HostBehavior, CommandError> {
        let mut bytes = [0; HOST_BEHAVIOR_BYTES];
        self.get_feature(feature::HOST_BEHAVIOR, Select::Current, 0, 0, &mut bytes)?;
        Ok(HostBehavior {
            advanced_command_retry: bytes[0] & 1 != 0,
            telemetry_area_4: bytes[1] & 1 != 0,
            extended_lba_formats: bytes[2] & 1 != 0,
        })
    }

    /// Says what the host understands.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn set_host_behavior(&self, behavior: HostBehavior) -> Result<(), CommandError> {
        let mut bytes = [0; HOST_BEHAVIOR_BYTES];
        bytes[0] = behavior.advanced_command_retry.into();
        bytes[1] = behavior.telemetry_area_4.into();
        bytes[2] = behavior.extended_lba_formats.into();
        self.set_feature(feature::HOST_BEHAVIOR, false, 0, 0, &bytes)
    }

    /// The host identifier that reservations go by: 16 bytes, or 8 when it is a short one.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn host_id(&self) -> Result<Vec<u8>, CommandError> {
        let extended = self.identify_controller()?.ctratt & 1 != 0;
        let mut bytes = vec![0; if extended { 16 } else { 8 }];
        self.get_feature(feature::HOST_ID, Select::Current, 0, extended.into(), &mut bytes)?;
        Ok(bytes)
    }

    /// Sets the host identifier, of 8 or 16 bytes. A controller takes it once.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for another length; those of [`admin`](NvmeController::admin).
    pub fn set_host_id(&self, id: &[u8]) -> Result<(), CommandError> {
        if !matches!(id.len(), 8 | 16) {
            let what = format!("a host identifier has 8 or 16 bytes, not {}", id.len());
            return Err(CommandError::invalid(&self.identify().name, what));
        }
        self.set_feature(feature::HOST_ID, false, 0, u32::from(id.len() == 16), id)
    }
}
