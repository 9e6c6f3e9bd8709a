//! What Identify says about a controller and its namespaces, in our own types.

use std::time::Duration;

use super::prp::TRANSFER_MAX_BYTES;
use super::sgl;
use super::spec::identify::oncs;
use super::spec::{IdentifyController, IdentifyNamespace};

/// A controller as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerInfo {
    /// PCI address or other name, as in messages.
    pub name: String,
    /// Model Number.
    pub model: String,
    /// Serial Number.
    pub serial: String,
    /// Firmware Revision.
    pub firmware: String,
    /// PCI Vendor ID.
    pub vendor: u16,
    /// Controller ID in its subsystem.
    pub controller_id: u16,
    /// Version of the specification that it follows: major, minor, tertiary.
    pub version: (u16, u8, u8),
    /// What one read or write may carry, in bytes, with this driver.
    pub transfer_max_bytes: u32,
    /// Whether it takes scatter/gather lists for what this driver asks.
    pub scatter_gather: bool,
    /// How many I/O queues it grants this driver.
    pub queues_max: u16,
    /// How many commands one of its queues holds at most, with this driver.
    pub depth_max: u16,
    /// Whether it has a volatile write cache.
    pub volatile_cache: bool,
    /// Whether it does Dataset Management.
    pub discards: bool,
    /// Whether it does Write Zeroes.
    pub writes_zeroes: bool,
    /// How long a normal shutdown may take.
    pub shutdown_timeout: Duration,
    /// The active namespaces, by identifier, as they were at the start.
    pub namespaces: Vec<NamespaceInfo>,
}

impl ControllerInfo {
    pub(super) fn new(
        name: &str,
        id: &IdentifyController,
        version: u32,
        queues_max: u16,
        depth_max: u16,
        ready_timeout: Duration,
    ) -> Self {
        // Base 2.0c §3.6.1: RTD3E when it is reported, else at least one second.
        let rtd3e = Duration::from_micros(id.rtd3e.into());
        Self {
            name: name.to_owned(),
            model: id.mn.to_string(),
            serial: id.sn.to_string(),
            firmware: id.fr.to_string(),
            vendor: id.vid,
            controller_id: id.cntlid,
            version: ((version >> 16) as u16, (version >> 8) as u8, version as u8),
            transfer_max_bytes: transfer_max_bytes(id.mdts),
            queues_max,
            depth_max,
            scatter_gather: sgl::is_supported(id.sgls),
            volatile_cache: id.vwc & 1 != 0,
            discards: id.does(oncs::DSM),
            writes_zeroes: id.does(oncs::WRITE_ZEROES),
            // A controller may report an hour; nobody waits that long.
            shutdown_timeout: rtd3e
                .max(ready_timeout)
                .clamp(Duration::from_secs(1), Duration::from_secs(120)),
            namespaces: Vec::new(),
        }
    }
}

/// MDTS in bytes, capped by what this driver makes. MDTS is in units of CAP.MPSMIN, 4096 here.
pub(super) fn transfer_max_bytes(mdts: u8) -> u32 {
    match mdts {
        0 => TRANSFER_MAX_BYTES,
        mdts => 4096u32
            .checked_shl(mdts.into())
            .filter(|&bytes| bytes != 0)
            .map_or(TRANSFER_MAX_BYTES, |bytes| bytes.min(TRANSFER_MAX_BYTES)),
    }
}

/// A namespace as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Namespace Identifier.
    pub nsid: u32,
    /// Size in blocks.
    pub blocks: u64,
    /// Size of a block in bytes, without metadata.
    pub block_size: u64,
    /// Metadata of a block in bytes.
    pub metadata_size: u16,
    /// Whether it is write protected.
    pub read_only: bool,
    /// Whether more than one controller can have it (NMIC bit 0).
    pub shared: bool,
    /// Whether Write Zeroes may deallocate, with the blocks reading as zeroes.
    pub deallocates_to_zeroes: bool,
    /// Namespace Globally Unique Identifier; all zeroes when there is none.
    pub nguid: [u8; 16],
    /// IEEE Extended Unique Identifier; all zeroes when there is none.
    pub eui64: [u8; 8],
}

impl NamespaceInfo {
    /// From the data structure; `None` for a namespace that is not there (size 0).
    pub(super) fn new(nsid: u32, id: &IdentifyNamespace) -> Option<Self> {
        if id.nsze == 0 {
            return None;
        }
        let format = id.format();
        Some(Self {
            nsid,
            blocks: id.nsze,
            block_size: 1u64.checked_shl(format.lbads.into()).unwrap_or(0),
            metadata_size: format.ms,
            read_only: id.nsattr & 1 != 0,
            shared: id.nmic & 1 != 0,
            // DLFEAT bits 2:0 001b: deallocated blocks read as zeroes; bit 3: DEAC is taken.
            deallocates_to_zeroes: id.dlfeat & 0b1111 == 0b1001,
            nguid: id.nguid.0,
            eui64: id.eui64.0,
        })
    }

    /// Capacity in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size)
    }

    /// Whether `now` is this namespace, with blocks that mean the same: requests for one can be sent to
    /// the other. One without a name of its own is known by its size.
    pub(super) fn is_same(&self, now: &Self) -> bool {
        let named = self.nguid != [0; 16] || self.eui64 != [0; 8];
        (self.nsid, self.block_size, self.metadata_size)
            == (now.nsid, now.block_size, now.metadata_size)
            && (self.nguid, self.eui64) == (now.nguid, now.eui64)
            && (named || self.blocks == now.blocks)
    }

    /// Why this driver does not serve the namespace; `None` when it does.
    pub fn unsupported(&self) -> Option<String> {
        if self.metadata_size != 0 {
            let (nsid, bytes) = (self.nsid, self.metadata_size);
            return Some(format!(
                "namespace {nsid} is formatted with {bytes} bytes of metadata a block; format it \
                 without"
            ));
        }
        if !matches!(self.block_size, 512 | 1024 | 2048 | 4096) {
            let (nsid, bytes) = (self.nsid, self.block_size);
            return Some(format!(
                "namespace {nsid} is formatted with blocks of {bytes} bytes; format it with 512 or \
                 4096"
            ));
        }
        self.blocks
            .checked_mul(self.block_size)
            .is_none()
            .then(|| format!("namespace {} claims more bytes than 64 bits can count", self.nsid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mdts_is_a_power_of_two_of_pages_up_to_our_own_limit() {
        assert_eq!(transfer_max_bytes(0), 1 << 20);
        assert_eq!(transfer_max_bytes(1), 8192);
        assert_eq!(transfer_max_bytes(7), 512 << 10);
        for mdts in 8..=u8::MAX {
            assert_eq!(transfer_max_bytes(mdts), 1 << 20, "{mdts}");
        }
    }

    #[test]
    fn no_format_a_device_reports_can_do_harm() {
        let mut id = IdentifyNamespace::default();
        assert_eq!(NamespaceInfo::new(1, &id), None);
        id.nsze = u64::MAX;
        id.nlbaf = 63;
        for flbas in 0..=u8::MAX {
            id.flbas = flbas;
            for lbads in [0, 8, 9, 12, 13, 63, 64, 255] {
                id.lbaf.iter_mut().for_each(|format| format.lbads = lbads);
                let info = NamespaceInfo::new(1, &id).unwrap();
                assert!(info.unsupported().is_some(), "2^64 blocks of 2^{lbads}");
            }
        }
        id.nsze = 8;
        id.flbas = 0x21;
        id.lbaf[17].lbads = 12;
        let info = NamespaceInfo::new(1, &id).unwrap();
        assert_eq!((info.block_size, info.unsupported()), (4096, None));
        id.lbaf[17].ms = 8;
        let why = NamespaceInfo::new(1, &id).unwrap().unsupported().unwrap();
        assert!(why.contains("8 bytes of metadata"), "{why}");
    }
}
