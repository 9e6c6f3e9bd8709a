//! Admin commands of the model.

use std::sync::atomic::Ordering;

use crate::nvme::spec::layout::{Layout, Text};

use crate::nvme::spec::command::{FEATURE_NUMBER_OF_QUEUES, Opcode, SubmissionEntry, cns};
use crate::nvme::spec::event;
use crate::nvme::spec::identify::IDENTIFY_SIZE;
use crate::nvme::spec::{IdentifyController, IdentifyControllerNvm, IdentifyNamespace, Status};

use super::{Cq, Sq, State, prp};

impl State {
    /// Does an admin command: its status and dword 0.
    pub(super) fn execute_admin(&mut self, entry: &SubmissionEntry) -> (Status, u32) {
        let done = match Opcode(entry.cdw0.get() as u8) {
            Opcode::IDENTIFY => self.identify(entry),
            Opcode::SET_FEATURES => return self.set_features(entry),
            Opcode::GET_LOG_PAGE => self.get_log_page(entry),
            Opcode::CREATE_IO_CQ => self.create_cq(entry),
            Opcode::CREATE_IO_SQ => self.create_sq(entry),
            Opcode::DELETE_IO_SQ => self.delete_sq(entry),
            Opcode::DELETE_IO_CQ => self.delete_cq(entry),
            _ => Err(Status::INVALID_OPCODE),
        };
        (done.err().unwrap_or(Status::SUCCESS), 0)
    }

    fn identify(&mut self, entry: &SubmissionEntry) -> Result<(), Status> {
        let nsid = entry.nsid.get();
        let mut bytes = [0; IDENTIFY_SIZE];
        match entry.cdw10.get() & 0xff {
            cns::CONTROLLER => self.identify_controller().encode_into(&mut bytes),
            cns::CONTROLLER_CSI if self.options.reports_limits => {
                let mut id = IdentifyControllerNvm::default();
                id.dmrl = self.options.dmrl;
                id.encode_into(&mut bytes);
            }
            cns::NAMESPACE => self.identify_namespace(nsid)?.encode_into(&mut bytes),
            cns::ACTIVE_NAMESPACES => {
                let ids = self.media.keys().filter(|&&id| id > nsid);
                for (out, id) in bytes.chunks_exact_mut(4).zip(ids) {
                    out.copy_from_slice(&id.to_le_bytes());
                }
            }
            _ => return Err(Status::INVALID_FIELD),
        }
        if let Some(random) = &mut self.mumbles {
            // Mostly what it was: a structure of noise is refused at the first look.
            (0..random.usize(..64))
                .for_each(|_| bytes[random.usize(..IDENTIFY_SIZE)] = random.u8(..));
        }
        self.give(entry, &bytes)
    }

    /// Writes what an admin command asked for to where it wants it.
    fn give(&self, entry: &SubmissionEntry, bytes: &[u8]) -> Result<(), Status> {
        let (prp1, prp2) = (entry.prp1.get(), entry.prp2.get());
        let mut at = 0;
        for (iova, len) in prp::walk(&self.pool, prp1, prp2, bytes.len())? {
            prp::write(&self.pool, iova, &bytes[at..at + len])?;
            at += len;
        }
        Ok(())
    }

    fn get_log_page(&mut self, entry: &SubmissionEntry) -> Result<(), Status> {
        let (log_page, numd) = (entry.cdw10.get() as u8, entry.cdw10.get() >> 16);
        let mut bytes = vec![0; (numd as usize + 1) * 4];
        if log_page == 0x04 {
            let ids = std::mem::take(&mut self.events.changed_namespaces);
            for (out, id) in bytes.chunks_exact_mut(4).zip(ids) {
                out.copy_from_slice(&id.to_le_bytes());
            }
        }
        self.give(entry, &bytes)?;
        self.log_was_read(log_page);
        Ok(())
    }

    fn identify_controller(&self) -> IdentifyController {
        let mut id = IdentifyController::default();
        id.vid = 0x1b36;
        id.sn = Text::new(if self.another { "MODEL-0002" } else { "MODEL-0001" });
        id.acl = self.options.acl;
        id.aerl = self.options.aerl;
        id.oaes = 0b111 << 8;
        id.mn = Text::new("In-process NVMe controller");
        id.fr = Text::new("1.0");
        id.mdts = self.options.mdts;
        id.ver = 0x0002_0000;
        id.sqes = 0x66;
        id.cqes = 0x44;
        id.nn = self.media.keys().max().copied().unwrap_or(0);
        id.oncs = self.options.oncs;
        id.vwc = u8::from(self.options.volatile_cache);
        id
    }

    fn identify_namespace(&self, nsid: u32) -> Result<IdentifyNamespace, Status> {
        let medium = self.media.get(&nsid).ok_or(Status::INVALID_NAMESPACE)?;
        let mut id = IdentifyNamespace::default();
        id.nsze = medium.namespace.blocks;
        id.nmic = u8::from(self.options.shared_namespaces);
        id.ncap = medium.namespace.blocks;
        // The format in use is not the first one, as on most drives.
        id.nlbaf = 1;
        id.flbas = 1;
        id.lbaf[1].lbads = medium.namespace.lbads;
        id.lbaf[1].ms = medium.namespace.metadata;
        id.nsattr = u8::from(medium.namespace.read_only);
        id.dlfeat = 0b1001;
        Ok(id)
    }

    fn set_features(&mut self, entry: &SubmissionEntry) -> (Status, u32) {
        match entry.cdw10.get() & 0xff {
            FEATURE_NUMBER_OF_QUEUES => {}
            event::FEATURE_EVENTS => return (Status::SUCCESS, 0),
            _ => return (Status::INVALID_FIELD, 0),
        }
        let granted = u32::from(self.options.queues) - 1;
        (Status::SUCCESS, granted << 16 | granted)
    }

    /// Queue identifier and entries from command dword 10.
    fn queue(&self, entry: &SubmissionEntry) -> Result<(u16, u32), Status> {
        let cdw10 = entry.cdw10.get();
        let (qid, size) = (cdw10 as u16, cdw10 >> 16);
        if qid == 0 || qid > self.options.queues {
            return Err(Status::INVALID_QUEUE_IDENTIFIER);
        }
        if size == 0 || size > u32::from(self.options.mqes) {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        // CAP.CQR: physically contiguous.
        if entry.cdw11.get() & 1 == 0 || !entry.prp1.get().is_multiple_of(4096) {
            return Err(Status::INVALID_FIELD);
        }
        Ok((qid, size + 1))
    }

    fn create_cq(&mut self, entry: &SubmissionEntry) -> Result<(), Status> {
        let (qid, entries) = self.queue(entry)?;
        if self.cqs.contains_key(&qid) {
            return Err(Status::INVALID_QUEUE_IDENTIFIER);
        }
        let cdw11 = entry.cdw11.get();
        let vector = (cdw11 & 1 << 1 != 0).then_some((cdw11 >> 16) as u16);
        let base = entry.prp1.get();
        self.doorbells[usize::from(qid) * 2 + 1].store(0, Ordering::Relaxed);
        self.cqs.insert(qid, Cq { base, entries, tail: 0, phase: true, vector });
        Ok(())
    }

    fn create_sq(&mut self, entry: &SubmissionEntry) -> Result<(), Status> {
        let (qid, entries) = self.queue(entry)?;
        let cqid = (entry.cdw11.get() >> 16) as u16;
        if !self.cqs.contains_key(&cqid) {
            return Err(Status::COMPLETION_QUEUE_INVALID);
        }
        if self.sqs.contains_key(&qid) {
            return Err(Status::INVALID_QUEUE_IDENTIFIER);
        }
        let base = entry.prp1.get();
        self.doorbells[usize::from(qid) * 2].store(0, Ordering::Relaxed);
        self.sqs.insert(qid, Sq { base, entries, head: 0, cqid, reported_head: 0 });
        Ok(())
    }

    fn delete_sq(&mut self, entry: &SubmissionEntry) -> Result<(), Status> {
        let qid = entry.cdw10.get() as u16;
        if qid == 0 || self.sqs.remove(&qid).is_none() {
            return Err(Status::INVALID_QUEUE_IDENTIFIER);
        }
        self.fetched.retain(|fetched| fetched.qid != qid);
        Ok(())
    }

    fn delete_cq(&mut self, entry: &SubmissionEntry) -> Result<(), Status> {
        let qid = entry.cdw10.get() as u16;
        if self.sqs.values().any(|sq| sq.cqid == qid) {
            return Err(Status::INVALID_QUEUE_DELETION);
        }
        self.cqs.remove(&qid).map(|_| ()).ok_or(Status::INVALID_QUEUE_IDENTIFIER)
    }
}
