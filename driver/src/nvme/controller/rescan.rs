//! Looking for namespaces again while the controller runs: made, deleted, attached, detached, resized.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{NvmeController, PoisonError};
use crate::nvme::commands::CommandError;
use crate::nvme::info::NamespaceInfo;

/// What a rescan found different.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceChanges {
    /// Namespaces that were not there before.
    pub added: Vec<u32>,
    /// Namespaces that are gone.
    pub removed: Vec<u32>,
    /// Namespaces of another size, format or protection.
    pub changed: Vec<u32>,
}

impl NamespaceChanges {
    fn between(old: &[NamespaceInfo], new: &[NamespaceInfo]) -> Self {
        let by_id = |list: &[NamespaceInfo]| -> BTreeMap<u32, NamespaceInfo> {
            list.iter().map(|info| (info.nsid, info.clone())).collect()
        };
        let (old, new) = (by_id(old), by_id(new));
        Self {
            added: new.keys().filter(|nsid| !old.contains_key(nsid)).copied().collect(),
            removed: old.keys().filter(|nsid| !new.contains_key(nsid)).copied().collect(),
            changed: new
                .iter()
                .filter(|(nsid, info)| old.get(nsid).is_some_and(|was| was != *info))
                .map(|(&nsid, _)| nsid)
                .collect(),
        }
    }
}

impl NvmeController {
    /// Its active namespaces, as the last [`rescan`](NvmeController::rescan) or the start found them.
    pub fn namespaces(&self) -> Arc<[NamespaceInfo]> {
        Arc::clone(&self.namespaces.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks the controller for its namespaces again. A namespace that is open keeps its geometry until
    /// [`NvmeNamespace::refresh`](crate::nvme::NvmeNamespace::refresh).
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin); what was known stays then.
    pub fn rescan(&self) -> Result<NamespaceChanges, CommandError> {
        let mut found = Vec::new();
        for nsid in self.namespace_ids(false)? {
            match self.identify_namespace(nsid) {
                Ok(id) => found.extend(NamespaceInfo::new(nsid, &id)),
                // Of another command set, or detached meanwhile.
                Err(CommandError::Status { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let mut known = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = NamespaceChanges::between(&known, &found);
        *known = found.into();
        Ok(changes)
    }
}
