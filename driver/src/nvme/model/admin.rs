//! Admin commands of the model.

use std::sync::atomic::Ordering;

use crate::nvme::spec::Status;
use crate::nvme::spec::command::{Opcode, SubmissionEntry};

use super::{Cq, Sq, State};

impl State {
    /// Does an admin command: dword 0 of its completion.
    pub(super) fn execute_admin(&mut self, entry: &SubmissionEntry) -> Result<u32, Status> {
        match Opcode(entry.cdw0.get() as u8) {
            Opcode::IDENTIFY => self.identify(entry),
            Opcode::GET_LOG_PAGE => self.get_log_page(entry),
            Opcode::GET_FEATURES => self.get_features(entry),
            Opcode::SET_FEATURES => self.set_features(entry),
            Opcode::CREATE_IO_CQ => self.create_cq(entry).map(|()| 0),
            Opcode::CREATE_IO_SQ => self.create_sq(entry).map(|()| 0),
            Opcode::DELETE_IO_SQ => self.delete_sq(entry).map(|()| 0),
            Opcode::DELETE_IO_CQ => self.delete_cq(entry).map(|()| 0),
            Opcode::DOORBELL_BUFFER_CONFIG => self.set_shadow(entry).map(|()| 0),
            Opcode::NAMESPACE_MANAGEMENT => self.namespace_management(entry),
            Opcode::NAMESPACE_ATTACHMENT => self.namespace_attachment(entry),
            Opcode::FORMAT_NVM => self.format_nvm(entry),
            Opcode::SANITIZE => self.sanitize(entry),
            Opcode::DEVICE_SELF_TEST => self.device_self_test(entry),
            Opcode::FIRMWARE_DOWNLOAD => self.firmware_download(entry),
            Opcode::FIRMWARE_COMMIT => self.firmware_commit(entry),
            Opcode::SECURITY_SEND => self.security_send(entry),
            Opcode::SECURITY_RECEIVE => self.security_receive(entry),
            Opcode::DIRECTIVE_SEND => self.directive_send(entry),
            Opcode::DIRECTIVE_RECEIVE => self.directive_receive(entry),
            _ => Err(Status::INVALID_OPCODE),
        }
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
