//! Identify of the model.

use crate::nvme::spec::command::{cns, csi};
use crate::nvme::spec::identify::{
    IDENTIFY_SIZE, IdentifyControllerZoned, IdentifyNamespaceNvm, IdentifyNamespaceZoned,
    LbaFormat, PowerState, ZonedFormat, oacs,
};
use crate::nvme::spec::layout::{Layout, Text};
use crate::nvme::spec::{
    IdentifyController, IdentifyControllerNvm, IdentifyNamespace, Status, SubmissionEntry,
};

use super::medium::Medium;
use super::{State, transfer};

/// Source ranges that one Copy takes, 0's based, and blocks in each.
pub(super) const MSRC: u8 = 7;
pub(super) const MSSRL: u16 = 64;
/// Firmware pieces are multiples of so many units of 4 KiB.
pub(super) const FWUG: u8 = 1;
/// Error log entries, 0's based.
pub(super) const ELPE: u8 = 15;

/// The formats that namespaces of this controller can have: index 0 and up.
pub(super) const FORMATS: [LbaFormat; 5] = [
    LbaFormat { ms: 0, lbads: 9, rp: 2 },
    LbaFormat { ms: 0, lbads: 12, rp: 0 },
    LbaFormat { ms: 8, lbads: 9, rp: 2 },
    LbaFormat { ms: 8, lbads: 12, rp: 1 },
    LbaFormat { ms: 64, lbads: 12, rp: 1 },
];

impl State {
    pub(super) fn identify(&mut self, entry: &SubmissionEntry) -> Result<u32, Status> {
        let nsid = entry.nsid.get();
        let set = (entry.cdw11.get() >> 24) as u8;
        let mut bytes = [0; IDENTIFY_SIZE];
        match entry.cdw10.get() & 0xff {
            cns::CONTROLLER => self.identify_controller().encode_into(&mut bytes),
            cns::CONTROLLER_CSI if set == csi::ZONED => {
                IdentifyControllerZoned { zasl: 0 }.encode_into(&mut bytes);
            }
            cns::CONTROLLER_CSI if self.options.reports_limits => {
                let dmrl = self.options.dmrl;
                IdentifyControllerNvm { dmrl, ..Default::default() }.encode_into(&mut bytes);
            }
            cns::NAMESPACE => self.identify_namespace(nsid, false)?.encode_into(&mut bytes),
            cns::ALLOCATED_NAMESPACE => {
                self.identify_namespace(nsid, true)?.encode_into(&mut bytes);
            }
            cns::NAMESPACE_CSI if set == csi::NVM => {
                let guard = u32::from(self.known(nsid)?.namespace.guard);
                let mut id = IdentifyNamespaceNvm::default();
                id.elbaf.iter_mut().for_each(|extended| *extended = guard << 7);
                id.encode_into(&mut bytes);
            }
            cns::NAMESPACE_CSI if set == csi::ZONED => {
                self.identify_zoned(nsid)?.encode_into(&mut bytes);
            }
            cns::NAMESPACE_DESCRIPTORS => {
                let zoned = self.known(nsid)?.namespace.zone_blocks > 0;
                bytes[..2].copy_from_slice(&[2, 16]);
                bytes[4..20].copy_from_slice(&self.nguid(nsid));
                bytes[20..25].copy_from_slice(&[4, 1, 0, 0, if zoned { csi::ZONED } else { 0 }]);
            }
            cns::ACTIVE_NAMESPACES if self.lists_for_ever => {
                for (out, id) in bytes.chunks_exact_mut(4).zip(nsid.saturating_add(1)..) {
                    out.copy_from_slice(&id.to_le_bytes());
                }
            }
            cns @ (cns::ACTIVE_NAMESPACES | cns::ALLOCATED_NAMESPACES) => {
                let all = cns == cns::ALLOCATED_NAMESPACES;
                let listed = self.media.iter().filter(|(_, medium)| all || medium.attached);
                let ids = listed.map(|(&id, _)| id).filter(|&id| id > nsid);
                for (out, id) in bytes.chunks_exact_mut(4).zip(ids) {
                    out.copy_from_slice(&id.to_le_bytes());
                }
            }
            cns::CONTROLLERS => bytes[0] = 1,
            cns::ATTACHED_CONTROLLERS => bytes[0] = self.known(nsid)?.attached.into(),
            _ => return Err(Status::INVALID_FIELD),
        }
        if let Some(random) = &mut self.mumbles {
            // Mostly what it was: a structure of noise is refused at the first look.
            (0..random.usize(..64))
                .for_each(|_| bytes[random.usize(..IDENTIFY_SIZE)] = random.u8(..));
        }
        transfer::give(self, entry, &bytes)?;
        Ok(0)
    }

    /// A namespace that was made, attached or not.
    fn known(&self, nsid: u32) -> Result<&Medium, Status> {
        self.media.get(&nsid).ok_or(Status::INVALID_NAMESPACE)
    }

    pub(super) fn identify_controller(&self) -> IdentifyController {
        let state = |mp, flags| PowerState { mp, flags, ..Default::default() };
        let mut psd = IdentifyController::default().psd;
        // 8 W and 3 W; the third one does no I/O.
        psd[..3].clone_from_slice(&[state(800, 0), state(300, 0), state(5, 0b11)]);
        IdentifyController {
            vid: 0x1b36,
            sn: Text::new(if self.another { "MODEL-0002" } else { "MODEL-0001" }),
            mn: Text::new("In-process NVMe controller"),
            fr: self.admin.firmware.running(),
            mdts: self.options.mdts,
            ver: 0x0002_0000,
            ctratt: 1,
            cntrltype: 1,
            oacs: oacs::SECURITY
                | oacs::FORMAT
                | oacs::FIRMWARE
                | oacs::NAMESPACES
                | oacs::SELF_TEST
                | oacs::DIRECTIVES
                | if self.options.shadow_doorbells { oacs::DOORBELL_BUFFER } else { 0 },
            oaes: 0b111 << 8,
            acl: self.options.acl,
            mtfa: self.options.mtfa,
            crdt1: self.options.retry_delays[0],
            crdt2: self.options.retry_delays[1],
            crdt3: self.options.retry_delays[2],
            aerl: self.options.aerl,
            // Slot 1 is read-only; there are three; one is activated without a reset.
            frmw: 1 | 3 << 1 | 1 << 4,
            lpa: 0b1_1111,
            elpe: ELPE,
            npss: 2,
            apsta: 1,
            wctemp: 343,
            cctemp: 353,
            tnvmcap: self.options.capacity_bytes.into(),
            unvmcap: self.unallocated_bytes().into(),
            edstt: 5,
            fwug: FWUG,
            sanicap: 0b111,
            sqes: 0x66,
            cqes: 0x44,
            nn: self.media.keys().max().copied().unwrap_or(0).max(8),
            oncs: self.options.oncs,
            // At any byte.
            sgls: self.options.scatter_gather.into(),
            fuses: 1,
            fna: self.options.fna,
            vwc: u8::from(self.options.volatile_cache),
            acwu: 7,
            ocfs: 1,
            subnqn: Text::new("nqn.2014.08.org.nvmexpress:uaio-model"),
            psd,
            ..Default::default()
        }
    }

    /// What is left for new namespaces.
    pub(super) fn unallocated_bytes(&self) -> u64 {
        let used: u64 = self.media.values().map(|medium| medium.namespace.size_bytes()).sum();
        self.options.capacity_bytes.saturating_sub(used)
    }

    fn identify_namespace(&self, nsid: u32, allocated: bool) -> Result<IdentifyNamespace, Status> {
        let mut lbaf = IdentifyNamespace::default().lbaf;
        lbaf[..FORMATS.len()].copy_from_slice(&FORMATS);
        let mut id = IdentifyNamespace {
            nlbaf: FORMATS.len() as u8 - 1,
            mc: 0b11,
            dpc: 0b11111,
            dlfeat: 0b1001,
            rescap: 0xff,
            mssrl: MSSRL,
            mcl: u32::from(MSSRL) * (u32::from(MSRC) + 1),
            msrc: MSRC,
            lbaf,
            ..Default::default()
        };
        if nsid == u32::MAX {
            return Ok(id);
        }
        let medium = self.known(nsid)?;
        if !medium.attached && !allocated {
            return Ok(IdentifyNamespace::default());
        }
        let namespace = medium.namespace;
        // One that was not made of these formats is there to be refused; it gets a format of its own.
        let own = LbaFormat { ms: namespace.metadata, lbads: namespace.lbads, rp: 0 };
        let same = |format: &LbaFormat| (format.ms, format.lbads) == (own.ms, own.lbads);
        let index = id.formats().iter().position(same).unwrap_or_else(|| {
            id.nlbaf += 1;
            id.lbaf[FORMATS.len()] = own;
            FORMATS.len()
        });
        id.nsze = namespace.blocks;
        id.ncap = namespace.blocks;
        id.nuse = namespace.blocks;
        id.nmic = u8::from(self.options.shared_namespaces);
        id.nvmcap = namespace.size_bytes().into();
        id.flbas = index as u8 | u8::from(namespace.interleaved) << 4;
        id.dps = namespace.protection | u8::from(namespace.protection_first) << 3;
        id.nsattr = u8::from(namespace.read_only);
        id.nguid.0 = self.nguid(nsid);
        Ok(id)
    }

    fn identify_zoned(&self, nsid: u32) -> Result<IdentifyNamespaceZoned, Status> {
        let namespace = self.known(nsid)?.namespace;
        if namespace.zone_blocks == 0 {
            return Err(Status::INVALID_FIELD);
        }
        let mut id = IdentifyNamespaceZoned {
            mar: u32::MAX,
            mor: namespace.zones_open_max.wrapping_sub(1),
            ..Default::default()
        };
        let format = self.identify_namespace(nsid, true)?.format_index();
        id.lbafe[usize::from(format)] = ZonedFormat { zsze: namespace.zone_blocks, zdes: 0 };
        Ok(id)
    }

    /// A namespace's own.
    fn nguid(&self, nsid: u32) -> [u8; 16] {
        let replaced = self.media.get(&nsid).is_some_and(|medium| medium.replaced);
        let mut id = [if replaced { 0xdd } else { 0xee }; 16];
        id[12..].copy_from_slice(&nsid.to_be_bytes());
        id
    }
}
