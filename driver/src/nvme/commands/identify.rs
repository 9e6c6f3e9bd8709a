//! Identify: the data structures as they are (Base 2.0c §5.17).

use serde::Serialize;

use crate::nvme::NvmeController;
use crate::nvme::spec::command::{cns, csi};
use crate::nvme::spec::identify::{
    IDENTIFY_SIZE, IdentifyControllerZoned, IdentifyNamespaceNvm, IdentifyNamespaceZoned,
};
use crate::nvme::spec::layout::{Hex, Layout};
use crate::nvme::spec::{IdentifyController, IdentifyNamespace, Opcode};

use super::{Command, CommandError, Data};

/// What a namespace is called (Base 2.0c figure 277), one of each kind that it has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NamespaceDescriptors {
    /// IEEE Extended Unique Identifier.
    pub eui64: Option<Hex<8>>,
    /// Namespace Globally Unique Identifier.
    pub nguid: Option<Hex<16>>,
    /// Namespace UUID.
    pub uuid: Option<Hex<16>>,
    /// Command Set Identifier: [`csi`].
    pub csi: Option<u8>,
}

impl NvmeController {
    /// Any Identify data structure: `cns` of `nsid`, for command set `csi`.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn identify_bytes(&self, cns: u32, nsid: u32, csi: u8) -> Result<Vec<u8>, CommandError> {
        let mut bytes = vec![0; IDENTIFY_SIZE];
        let command =
            Command::new(Opcode::IDENTIFY, nsid).dword(10, cns).dword(11, u32::from(csi) << 24);
        self.admin(&command, Data::In(&mut bytes))?;
        Ok(bytes)
    }

    fn identify_as<T: Layout>(&self, cns: u32, nsid: u32, csi: u8) -> Result<T, CommandError> {
        Ok(T::decode(&self.identify_bytes(cns, nsid, csi)?))
    }

    /// Identify Controller, asked for anew.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn identify_controller(&self) -> Result<IdentifyController, CommandError> {
        self.identify_as(cns::CONTROLLER, 0, csi::NVM)
    }

    /// Identify Namespace, asked for anew; all zero for a namespace that is not attached. FFFFFFFFh
    /// gives what all namespaces have in common, when the controller manages namespaces.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn identify_namespace(&self, nsid: u32) -> Result<IdentifyNamespace, CommandError> {
        self.identify_as(cns::NAMESPACE, nsid, csi::NVM)
    }

    /// Identify Namespace of one that need not be attached to this controller.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn identify_allocated_namespace(
        &self,
        nsid: u32,
    ) -> Result<IdentifyNamespace, CommandError> {
        self.identify_as(cns::ALLOCATED_NAMESPACE, nsid, csi::NVM)
    }

    /// What the NVM command set has beyond: guards and storage tags.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn identify_namespace_nvm(&self, nsid: u32) -> Result<IdentifyNamespaceNvm, CommandError> {
        self.identify_as(cns::NAMESPACE_CSI, nsid, csi::NVM)
    }

    /// What a zoned namespace has beyond.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn identify_namespace_zoned(
        &self,
        nsid: u32,
    ) -> Result<IdentifyNamespaceZoned, CommandError> {
        self.identify_as(cns::NAMESPACE_CSI, nsid, csi::ZONED)
    }

    /// The limits of the zoned command set.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn identify_controller_zoned(&self) -> Result<IdentifyControllerZoned, CommandError> {
        self.identify_as(cns::CONTROLLER_CSI, 0, csi::ZONED)
    }

    /// Names of a namespace and its command set.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn namespace_descriptors(&self, nsid: u32) -> Result<NamespaceDescriptors, CommandError> {
        let bytes = self.identify_bytes(cns::NAMESPACE_DESCRIPTORS, nsid, csi::NVM)?;
        Ok(descriptors(&bytes))
    }

    /// The active namespaces, ascending, or with `allocated` also those that are attached to no
    /// controller or to others; at most 1024.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn namespace_ids(&self, allocated: bool) -> Result<Vec<u32>, CommandError> {
        let cns = if allocated { cns::ALLOCATED_NAMESPACES } else { cns::ACTIVE_NAMESPACES };
        let bytes = self.identify_bytes(cns, 0, csi::NVM)?;
        let ids = bytes.chunks_exact(4).map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]]));
        Ok(ids.take_while(|&id| id != 0).collect())
    }

    /// The controllers of the subsystem, or those that `nsid` is attached to; at most 2047.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn controller_ids(&self, attached_to: Option<u32>) -> Result<Vec<u16>, CommandError> {
        let bytes = match attached_to {
            Some(nsid) => self.identify_bytes(cns::ATTACHED_CONTROLLERS, nsid, csi::NVM)?,
            None => self.identify_bytes(cns::CONTROLLERS, 0, csi::NVM)?,
        };
        let mut ids = bytes.chunks_exact(2).map(|id| u16::from_le_bytes([id[0], id[1]]));
        let count = ids.next().unwrap_or(0);
        Ok(ids.take(count.into()).collect())
    }
}

/// Walks the list: each entry says its length, none goes past the end, and a type of 0 length ends it.
fn descriptors(bytes: &[u8]) -> NamespaceDescriptors {
    let mut found = NamespaceDescriptors::default();
    let mut rest = bytes;
    while let [kind, len, _, _, after @ ..] = rest {
        let len = usize::from(*len);
        if len == 0 || len > after.len() {
            break;
        }
        let (id, next) = after.split_at(len);
        match kind {
            1 => found.eui64 = id.try_into().ok().map(Hex),
            2 => found.nguid = id.try_into().ok().map(Hex),
            3 => found.uuid = id.try_into().ok().map(Hex),
            4 => found.csi = id.first().copied(),
            _ => {}
        }
        rest = next;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_list_is_walked_to_its_end_and_not_past_it() {
        let mut bytes = vec![1, 8, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 4, 1, 0, 0, 2];
        bytes.resize(64, 0);
        let found = descriptors(&bytes);
        assert_eq!(found.eui64, Some(Hex([1, 2, 3, 4, 5, 6, 7, 8])));
        assert_eq!((found.csi, found.uuid), (Some(2), None));
        // Lengths that are wrong or go past the end.
        assert_eq!(descriptors(&[2, 16, 0, 0, 1]), NamespaceDescriptors::default());
        assert_eq!(descriptors(&[1, 3, 0, 0, 1, 2, 3]), NamespaceDescriptors::default());
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let bytes: Vec<u8> = (0..random.usize(..4096)).map(|_| random.u8(..)).collect();
            descriptors(&bytes);
        }
    }
}
