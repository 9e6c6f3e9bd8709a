//! Features of the model (Base 2.0c §5.15, §5.27).

use std::collections::BTreeMap;

use crate::nvme::spec::command::FEATURE_NUMBER_OF_QUEUES;
use crate::nvme::spec::feature::{self, FEATURES, Feature};
use crate::nvme::spec::{Status, SubmissionEntry};

use super::{State, transfer};

/// Values that were set: the current ones, and those that a reset brings back.
#[derive(Debug, Default)]
pub(super) struct Settings {
    /// By feature, namespace, and what selects one of several values.
    current: BTreeMap<(u8, u32, u32), u32>,
    saved: BTreeMap<(u8, u32, u32), u32>,
    data: BTreeMap<u8, Vec<u8>>,
}

impl Settings {
    /// A reset: what was saved is current.
    pub(super) fn reset(&mut self) {
        self.current = self.saved.clone();
        self.data.clear();
    }
}

/// How long a feature's data structure is.
fn data_len(id: u8) -> usize {
    match id {
        feature::APST => 256,
        feature::TIMESTAMP => 8,
        feature::HOST_BEHAVIOR => 512,
        feature::HOST_ID => 16,
        _ => 0,
    }
}

/// The bits of a dword that select a value.
fn selector(feature: &Feature, dword: u32) -> u32 {
    let fields = feature.selectors.iter().filter_map(|name| feature.field(name));
    fields.fold(0, |found, field| field.set(found, field.get(dword)))
}

impl State {
    /// Whether the volatile write cache is there and on.
    pub(super) fn write_cache(&self) -> bool {
        let set = self.admin.settings.current.get(&(feature::WRITE_CACHE, 0, 0));
        self.options.volatile_cache && set != Some(&0)
    }

    /// Whether the host said that it keeps the delays that a status names (ACRE).
    pub(super) fn host_keeps_delays(&self) -> bool {
        let set = self.admin.settings.data.get(&feature::HOST_BEHAVIOR);
        set.is_some_and(|bytes| bytes[0] == 1)
    }

    fn default_of(&self, id: u8, selector: u32) -> u32 {
        match id {
            feature::WRITE_CACHE => self.options.volatile_cache.into(),
            // Over temperature, composite: as WCTEMP says.
            0x04 if selector == 0 => 343,
            0x04 if selector & 1 << 20 == 0 => 0xffff | selector,
            FEATURE_QUEUES => {
                let granted = u32::from(self.options.queues) - 1;
                granted << 16 | granted
            }
            _ => selector,
        }
    }

    /// The feature, whose value is meant, and its namespace.
    fn place(&self, entry: &SubmissionEntry) -> Result<(u8, u32, u32), Status> {
        let id = entry.cdw10.get() as u8;
        let nsid = entry.nsid.get();
        let Some(feature) = FEATURES.iter().find(|feature| feature.id == id) else {
            let has_data = data_len(id) > 0 || id == feature::FDP;
            return if has_data { Ok((id, 0, 0)) } else { Err(Status::INVALID_FIELD) };
        };
        match feature.of_namespace {
            true if !self.media.contains_key(&nsid) => Err(Status::INVALID_NAMESPACE),
            false if nsid != 0 && nsid != u32::MAX => Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC),
            of_namespace => {
                let nsid = if of_namespace { nsid } else { 0 };
                Ok((id, nsid, selector(feature, entry.cdw11.get())))
            }
        }
    }

    pub(super) fn get_features(&mut self, entry: &SubmissionEntry) -> Result<u32, Status> {
        let place @ (id, _, selector) = self.place(entry)?;
        let select = entry.cdw10.get() >> 8 & 0b111;
        let default = self.default_of(id, selector);
        let of = |values: &BTreeMap<_, u32>| values.get(&place).copied().unwrap_or(default);
        if id == feature::FDP {
            return Ok(self.admin.fdp);
        }
        let len = data_len(id);
        if len > 0 && select != 3 {
            let mut bytes = vec![0; len];
            if select == 0
                && let Some(set) = self.admin.settings.data.get(&id)
            {
                bytes.copy_from_slice(set);
                if id == feature::TIMESTAMP {
                    // Set by a host.
                    bytes[6] = 0b010;
                }
            }
            transfer::give(self, entry, &bytes)?;
        }
        match select {
            0 => Ok(of(&self.admin.settings.current)),
            1 => Ok(default),
            2 => Ok(of(&self.admin.settings.saved)),
            3 => {
                let feature = FEATURES.iter().find(|feature| feature.id == id);
                Ok(0b101 | u32::from(feature.is_some_and(|it| it.of_namespace)) << 1)
            }
            _ => Err(Status::INVALID_FIELD),
        }
    }

    pub(super) fn set_features(&mut self, entry: &SubmissionEntry) -> Result<u32, Status> {
        let cdw10 = entry.cdw10.get();
        if cdw10 & 0xff == FEATURE_NUMBER_OF_QUEUES {
            let granted = u32::from(self.options.queues) - 1;
            return Ok(granted << 16 | granted);
        }
        let place @ (id, _, _) = self.place(entry)?;
        let (save, value) = (cdw10 >> 31 != 0, entry.cdw11.get());
        if id == feature::FDP {
            if !self.media.is_empty() {
                return Err(Status::COMMAND_SEQUENCE_ERROR);
            }
            self.admin.fdp = entry.cdw12.get();
            return Ok(0);
        }
        if id == feature::WRITE_CACHE && !self.options.volatile_cache {
            return Err(Status::INVALID_FIELD);
        }
        // Power state: only those that Identify has.
        if id == 0x02 && value & 0x1f > 2 {
            return Err(Status::INVALID_FIELD);
        }
        let len = data_len(id);
        if len > 0 {
            if save && id == feature::TIMESTAMP {
                return Err(Status::FEATURE_NOT_SAVEABLE);
            }
            let len = if id == feature::HOST_ID && value & 1 == 0 { 8 } else { len };
            let mut bytes = transfer::take(self, entry, len)?;
            bytes.resize(data_len(id), 0);
            self.admin.settings.data.insert(id, bytes);
        }
        self.admin.settings.current.insert(place, value);
        if save {
            self.admin.settings.saved.insert(place, value);
        }
        if id == feature::WRITE_CACHE && value & 1 == 0 {
            // Turning it off makes stable what is in it.
            self.media.values_mut().for_each(super::medium::Medium::flush);
        }
        if id == 0x84 {
            self.medium(place.1)?.namespace.read_only = value & 0b111 != 0;
        }
        Ok(0)
    }
}

const FEATURE_QUEUES: u8 = FEATURE_NUMBER_OF_QUEUES as u8;
