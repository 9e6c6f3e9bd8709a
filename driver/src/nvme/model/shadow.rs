//! Shadow doorbells as a controller keeps to them, from the text of Base 2.0c §5.8 and annex B.5.

use crate::nvme::spec::{Status, SubmissionEntry};

use super::{State, prp};

/// Where the two pages are.
#[derive(Clone, Copy, Debug)]
pub(super) struct ShadowPages {
    shadow: u64,
    events: u64,
}

impl State {
    /// Doorbell Buffer Config.
    pub(super) fn set_shadow(&mut self, entry: &SubmissionEntry) -> Result<(), Status> {
        let (shadow, events) = (entry.prp1.get(), entry.prp2.get());
        if !self.options.shadow_doorbells {
            return Err(Status::INVALID_OPCODE);
        }
        if !shadow.is_multiple_of(4096) || !events.is_multiple_of(4096) {
            return Err(Status::INVALID_FIELD);
        }
        self.shadow = Some(ShadowPages { shadow, events });
        Ok(())
    }

    /// The tail of an I/O submission queue: of the doorbell `register`, or of its shadow.
    pub(super) fn tail(&self, qid: u16, register: u32) -> u32 {
        let Some(pages) = self.shadow.filter(|_| qid != 0) else { return register };
        let mut bytes = [0; 4];
        match prp::read(&self.pool, pages.shadow + self.shadow_offset(qid), &mut bytes) {
            Ok(()) => u32::from_le_bytes(bytes),
            Err(_) => register,
        }
    }

    /// Says that it knows the tail, and does not look for another one before the register is written.
    pub(super) fn knows_tail(&self, qid: u16, tail: u32) {
        if let Some(pages) = self.shadow.filter(|_| qid != 0) {
            let at = pages.events + self.shadow_offset(qid);
            // A page that cannot be written is found out by the driver, which waits for ever.
            let _ = prp::write(&self.pool, at, &tail.to_le_bytes());
        }
    }

    fn shadow_offset(&self, qid: u16) -> u64 {
        (2 * u64::from(qid)) * (4 << self.options.dstrd)
    }
}
