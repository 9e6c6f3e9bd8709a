//! Commands that somebody else has put together, on a queue that carries nothing else.
//!
//! Deadlines, failure, draining and the checks of completions are those of the queue; only the entry is
//! written whole, and the first half of a completion is looked at before it is taken.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::block::{Capabilities, Geometry, IoQueue};
use crate::error::IoError;
use crate::nvme::NvmeController;
use crate::nvme::commands::Command;
use crate::nvme::fate::Quiet;
use crate::nvme::info::NamespaceInfo;
use crate::nvme::namespace::{NamespaceState, NamespaceUse};
use crate::nvme::spec::Status;
use crate::request::{Completion, Refusal, SgList};
use crate::slots::Token;

use super::{NvmeQueue, QueueTarget};
use crate::nvme::record::Record;

/// Which half of a fused operation a command is (Base 2.0c figure 87).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::nvme) enum Fuse {
    None,
    First,
    Second,
}

/// Where the data and the metadata of a command are.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::nvme) struct Pointers {
    pub(in crate::nvme) prp1: u64,
    pub(in crate::nvme) prp2: u64,
    pub(in crate::nvme) mptr: u64,
}

/// What a command came to.
#[derive(Clone, Copy, Debug)]
pub(in crate::nvme) struct RawCompletion {
    pub(in crate::nvme) token: Token,
    /// What the controller answered; `Err` when it did not.
    pub(in crate::nvme) answer: Result<Status, IoError>,
    /// Dwords 0 and 1 of the completion.
    pub(in crate::nvme) value: u64,
    /// The controller may use the command's memory for ever.
    pub(in crate::nvme) lost: bool,
}

impl NvmeQueue {
    /// Puts a command into the ring, for the next commit.
    pub(in crate::nvme) fn submit_raw(
        &mut self,
        token: Token,
        command: &Command,
        fuse: Fuse,
        pointers: Pointers,
    ) -> Result<(), Refusal> {
        if !self.is_serving() {
            return Err(Refusal::Failed);
        }
        let Some(vacant) = self.in_flight.vacant() else { return Err(Refusal::Full) };
        let cid = vacant.cid();
        vacant.fill(token, SgList::empty(), Record::ONCE);
        let fuse = match fuse {
            Fuse::None => 0,
            Fuse::First => 1 << 8,
            Fuse::Second => 2 << 8,
        };
        let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
        let [cdw10, cdw11, cdw12, cdw13, cdw14, cdw15] = command.cdw10;
        let words = [
            pair(u32::from(cid) << 16 | fuse | u32::from(command.opcode.0), command.nsid),
            pair(command.cdw2, command.cdw3),
            pointers.mptr,
            pointers.prp1,
            pointers.prp2,
            pair(cdw10, cdw11),
            pair(cdw12, cdw13),
            pair(cdw14, cdw15),
        ];
        for (place, word) in self.memory.sq.entry().iter().zip(words) {
            // Relaxed: ordered before the device's fetch by the doorbell's write.
            place.store(word.to_le(), Ordering::Relaxed);
        }
        self.memory.sq.advance();
        Ok(())
    }

    /// The next command that is answered; `None` when none is yet. Does not block.
    pub(in crate::nvme) fn poll_raw(&mut self) -> Option<RawCompletion> {
        let mut out = Vec::with_capacity(1);
        let serving = self.is_serving();
        let seen = self.memory.cq.peek().filter(|_| serving);
        // Where there is one, this is the completion that the poll takes: it takes one. Where there is
        // none yet, none is taken, or one that came in between would be taken without being seen.
        let budget = usize::from(seen.is_some() || !serving);
        let mut seen = seen.map(|cqe| (cqe.status(), self.memory.cq.value()));
        // One that was kept for its Abort is answered on its own.
        if serving && self.is_busy() && self.catch_up(1, &mut out) > 0 {
            seen = self.trouble.take_late_answer();
        } else if self.poll(budget, &mut out) == 0 {
            self.look();
            return None;
        }
        let Completion { token, result, .. } = out.pop()?;
        let running = self.fate.is_running();
        let lost = !running && self.fate.quiet() == Quiet::Never;
        let (answer, value) = match (seen, result) {
            // What was seen is what was taken, unless the controller was stopped in between.
            (Some((status, value)), result) if status.to_result() == result => (Ok(status), value),
            (_, Ok(())) => (Ok(Status::SUCCESS), 0),
            (_, Err(error)) => (Err(error), 0),
        };
        Some(RawCompletion { token, answer, value, lost })
    }
}

impl QueueTarget {
    /// The target of a queue that carries raw commands only: what it says of the namespace bounds
    /// nothing, since no request goes through it.
    pub(in crate::nvme) fn raw(
        controller: &NvmeController,
        info: &NamespaceInfo,
        state: &Arc<NamespaceState>,
    ) -> Self {
        let id = controller.identify();
        Self {
            nsid: info.nsid,
            geometry: Geometry {
                block_size: 4096,
                blocks: 0,
                transfer_max_bytes: 4096,
                discard_max_blocks: 0,
                write_zeroes_max_blocks: 0,
            },
            capabilities: Capabilities {
                volatile_cache: id.volatile_cache,
                fua: true,
                read_only: true,
                queues_max: id.queues_max,
                depth_max: id.depth_max,
            },
            dsm: controller.dsm_limits(),
            deallocates_to_zeroes: false,
            shared: true,
            namespace_use: NamespaceUse::new(state),
        }
    }
}
