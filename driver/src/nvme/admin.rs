//! The admin queue pair: one command at a time, polled, each with a deadline (Base 2.0c §5).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use zerocopy::IntoBytes;

use crate::clock::Clock;
use crate::dma::{DmaPool, DmaRegion};

use super::commands::Command;
use super::failure::{Failure, Fate, Violation};
use super::registers::{Doorbell, Function};
use super::ring::{BadFetch, CompletionRing, Cqe, SubmissionRing};
use super::spec::command::{self, Opcode, SubmissionEntry, cns};
use super::spec::identify::IDENTIFY_SIZE;
use super::spec::layout::Layout;
use super::spec::{Cap, Status};
use super::transfer::Transfer;

/// How many admin commands the rings hold; more than the one that is ever in flight.
const DEPTH: u16 = 31;
/// How often an admin command's completion is looked for.
const POLL_INTERVAL: Duration = Duration::from_micros(50);

/// Why an admin command did not do what it was to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AdminError {
    /// The controller answered with an error; it goes on.
    Status(Status),
    /// The controller is ended.
    Failed(Failure),
}

/// The admin queue pair and one page for what it transfers.
#[derive(Debug)]
pub(super) struct AdminQueue {
    sq: SubmissionRing,
    cq: CompletionRing,
    sq_doorbell: Doorbell,
    cq_doorbell: Doorbell,
    data: DmaRegion,
    cid: u16,
    timeout: Duration,
    fate: Arc<Fate>,
    clock: Arc<dyn Clock>,
}

impl AdminQueue {
    /// Frames that an admin queue takes from the pool.
    pub(super) const FRAMES: usize = 3;

    /// The rings, in memory, for [`enable`](super::controller) to tell the controller of; `None` when
    /// the pool has no room.
    pub(super) fn new(
        pool: &DmaPool,
        function: &Arc<dyn Function>,
        cap: Cap,
        timeout: Duration,
        fate: Arc<Fate>,
        clock: Arc<dyn Clock>,
    ) -> Option<Self> {
        Some(Self {
            sq: SubmissionRing::new(pool, 0, DEPTH)?,
            cq: CompletionRing::new(pool, DEPTH)?,
            sq_doorbell: Doorbell::submission(function, cap, 0),
            cq_doorbell: Doorbell::completion(function, cap, 0),
            data: pool.take_region(1)?,
            cid: 0,
            timeout,
            fate,
            clock,
        })
    }

    pub(super) fn sq(&self) -> &SubmissionRing {
        &self.sq
    }

    pub(super) fn cq(&self) -> &CompletionRing {
        &self.cq
    }

    /// Identify with `cns` of `nsid`: the data structure, copied out of DMA memory.
    pub(super) fn identify(
        &mut self,
        cns: u32,
        nsid: u32,
    ) -> Result<[u8; IDENTIFY_SIZE], AdminError> {
        self.execute(
            Opcode::IDENTIFY,
            SubmissionEntry {
                nsid: nsid.into(),
                prp1: self.data.iova().0.into(),
                cdw10: cns.into(),
                ..Default::default()
            },
        )?;
        let mut bytes = [0; IDENTIFY_SIZE];
        for (out, word) in bytes.chunks_exact_mut(8).zip(self.data.words()) {
            // Memory order on both sides: the bytes as the device left them.
            out.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        Ok(bytes)
    }

    /// An Identify data structure with a type.
    pub(super) fn identify_as<T: Layout>(&mut self, cns: u32, nsid: u32) -> Result<T, AdminError> {
        let bytes = self.identify(cns, nsid)?;
        Ok(T::decode(&bytes))
    }

    /// The active namespaces with identifiers above `after`, ascending, at most 1024 (CNS 02h).
    pub(super) fn active_namespaces(&mut self, after: u32) -> Result<Vec<u32>, AdminError> {
        let bytes = self.identify(cns::ACTIVE_NAMESPACES, after)?;
        let ids = bytes.chunks_exact(4).map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]]));
        Ok(ids.take_while(|&id| id != 0).collect())
    }

    /// Asks for `count` I/O queues of each kind and returns how many were granted (Base 2.0c
    /// §5.27.1.5: the count is 0's based both ways, and may be more or fewer than asked).
    pub(super) fn set_number_of_queues(&mut self, count: u16) -> Result<u16, AdminError> {
        let wanted = u32::from(count.max(1) - 1);
        let granted = self.execute(
            Opcode::SET_FEATURES,
            SubmissionEntry {
                cdw10: command::FEATURE_NUMBER_OF_QUEUES.into(),
                cdw11: (wanted << 16 | wanted).into(),
                ..Default::default()
            },
        )?;
        let (submission, completion) = (granted as u16, (granted >> 16) as u16);
        Ok(submission.min(completion).saturating_add(1).min(count))
    }

    /// Creates completion queue `qid`, physically contiguous; it interrupts on `vector` if there is one.
    pub(super) fn create_cq(
        &mut self,
        qid: u16,
        ring: &CompletionRing,
        vector: Option<u16>,
    ) -> Result<(), AdminError> {
        let interrupts = vector.map_or(0, |vector| u32::from(vector) << 16 | 1 << 1);
        self.execute(
            Opcode::CREATE_IO_CQ,
            SubmissionEntry {
                prp1: ring.iova().into(),
                cdw10: (u32::from(ring.size_zero_based()) << 16 | u32::from(qid)).into(),
                cdw11: (interrupts | 1).into(),
                ..Default::default()
            },
        )?;
        Ok(())
    }

    /// Creates submission queue `qid`, physically contiguous, completing into completion queue `qid`.
    pub(super) fn create_sq(&mut self, qid: u16, ring: &SubmissionRing) -> Result<(), AdminError> {
        self.execute(
            Opcode::CREATE_IO_SQ,
            SubmissionEntry {
                prp1: ring.iova().into(),
                cdw10: (u32::from(ring.size_zero_based()) << 16 | u32::from(qid)).into(),
                cdw11: (u32::from(qid) << 16 | 1).into(),
                ..Default::default()
            },
        )?;
        Ok(())
    }

    /// Deletes submission queue `qid`; what was in flight on it is aborted.
    pub(super) fn delete_sq(&mut self, qid: u16) -> Result<(), AdminError> {
        self.delete(Opcode::DELETE_IO_SQ, qid)
    }

    /// Deletes completion queue `qid`, whose submission queue is deleted already.
    pub(super) fn delete_cq(&mut self, qid: u16) -> Result<(), AdminError> {
        self.delete(Opcode::DELETE_IO_CQ, qid)
    }

    fn delete(&mut self, opcode: Opcode, qid: u16) -> Result<(), AdminError> {
        let entry = SubmissionEntry { cdw10: u32::from(qid).into(), ..Default::default() };
        self.execute(opcode, entry)?;
        Ok(())
    }

    /// Sends a command of somebody else's with its data in `transfer`; dword 0 of its completion. After
    /// [`AdminError::Failed`] the controller may still use the memory until it is quiet.
    pub(super) fn command(
        &mut self,
        command: &Command,
        transfer: Option<&Transfer>,
    ) -> Result<u32, AdminError> {
        let (prp1, prp2) = transfer.map_or((0, 0), Transfer::prps);
        let [cdw10, cdw11, cdw12, cdw13, cdw14, cdw15] = command.cdw10.map(Into::into);
        let entry = SubmissionEntry {
            nsid: command.nsid.into(),
            cdw2: command.cdw2.into(),
            cdw3: command.cdw3.into(),
            prp1: prp1.into(),
            prp2: prp2.into(),
            cdw10,
            cdw11,
            cdw12,
            cdw13,
            cdw14,
            cdw15,
            ..Default::default()
        };
        self.execute_within(command.opcode, entry, command.timeout.unwrap_or(self.timeout))
    }

    /// Sends one command and waits for its completion: dword 0 of it.
    fn execute(&mut self, opcode: Opcode, entry: SubmissionEntry) -> Result<u32, AdminError> {
        self.execute_within(opcode, entry, self.timeout)
    }

    fn execute_within(
        &mut self,
        opcode: Opcode,
        mut entry: SubmissionEntry,
        timeout: Duration,
    ) -> Result<u32, AdminError> {
        if let Some(failure) = self.fate.failure() {
            return Err(AdminError::Failed(failure));
        }
        self.cid = self.cid.wrapping_add(1);
        entry.cdw0 = (u32::from(self.cid) << 16 | u32::from(opcode.0)).into();
        let words: [u64; 8] = zerocopy::transmute!(entry);
        for (place, word) in self.sq.entry().iter().zip(words) {
            // The bytes of the entry as they are; ordered before the device's fetch by the doorbell.
            place.store(word, Ordering::Relaxed);
        }
        self.sq.advance();
        if let Some(tail) = self.sq.commit() {
            self.sq_doorbell.ring(tail);
        }
        let cqe = self.wait(timeout)?;
        let dw0 = self.cq.dw0();
        self.cq.advance();
        self.cq_doorbell.ring(self.cq.head());
        self.check(cqe)?;
        match cqe.status().code() {
            Status::SUCCESS => Ok(dw0),
            _ => Err(AdminError::Status(cqe.status())),
        }
    }

    fn wait(&self, timeout: Duration) -> Result<Cqe, AdminError> {
        let start = self.clock.now();
        loop {
            if let Some(cqe) = self.cq.peek() {
                return Ok(cqe);
            }
            let waited = self.clock.now().saturating_sub(start);
            if waited >= timeout {
                let waited_ms = waited.as_millis() as u64;
                return Err(self.fail(Failure::TimedOut { qid: 0, waited_ms }));
            }
            // Another queue may have ended the controller meanwhile.
            if let Some(failure) = self.fate.failure() {
                return Err(AdminError::Failed(failure));
            }
            if let Some(failure) = self.fate.examine() {
                return Err(self.fail(failure));
            }
            self.clock.sleep(POLL_INTERVAL);
        }
    }

    fn check(&mut self, cqe: Cqe) -> Result<(), AdminError> {
        let (sqid, sqhd, cid) = (cqe.sqid(), cqe.sqhd(), cqe.cid());
        let violation = match self.sq.fetched(cqe) {
            Err(BadFetch::Queue) => Violation::WrongQueue { qid: 0, sqid },
            Err(BadFetch::Head) => Violation::BadHead { qid: 0, sqhd },
            Ok(()) if cid != self.cid => Violation::UnknownCommand { qid: 0, cid },
            Ok(()) => return Ok(()),
        };
        Err(self.fail(Failure::Protocol(violation)))
    }

    fn fail(&self, failure: Failure) -> AdminError {
        self.fate.fail(failure);
        AdminError::Failed(self.fate.failure().unwrap_or(failure))
    }

    /// Gives the memory up for ever: the device may still use it.
    pub(super) fn leak(&mut self) {
        self.sq.leak();
        self.cq.leak();
        self.data.leak();
    }
}

// Zeroed padding would go out to the device: the layout has none.
const _: () = {
    const fn has_no_padding<T: IntoBytes>() {}
    has_no_padding::<SubmissionEntry>();
};
