//! Faults: which requests, what happens to them, how often.

use std::ops::Range;

use crate::error::IoError;
use crate::request::{Op, Request};

/// The requests that a fault is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultOn {
    /// Reads.
    Reads,
    /// Writes, with and without FUA.
    Writes,
    /// Flushes; also the flush behind a FUA write on a device without native FUA, which then fails
    /// with the bytes written and not stable.
    Flushes,
    /// Discards.
    Discards,
    /// Write-zeroes.
    WriteZeroes,
    /// All of them.
    Everything,
}

impl FaultOn {
    fn takes(self, op: Op) -> bool {
        match self {
            Self::Reads => op == Op::Read,
            Self::Writes => matches!(op, Op::Write { .. }),
            Self::Flushes => op == Op::Flush,
            Self::Discards => op == Op::Discard,
            Self::WriteZeroes => matches!(op, Op::WriteZeroes { .. }),
            Self::Everything => true,
        }
    }
}

/// What a fault does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The request fails with this error. The blocks in the fault's range are neither read nor
    /// written; of the request's other blocks an arbitrary part is written.
    Fail(IoError),
    /// The same; and an arbitrary part of what the volatile cache holds is lost for good, as by a drive that
    /// drops what it could not put on its medium, or a file system that marks pages clean which it
    /// could not write. Reads give what was there before.
    FailAndLose(IoError),
    /// The request takes this many polls longer.
    Slow {
        /// How many more.
        steps: u32,
    },
    /// The request is not answered until the fault is cleared.
    Stuck,
}

/// One fault, for [`SimDevice::set_fault`](super::SimDevice::set_fault).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The requests it is for.
    pub on: FaultOn,
    /// The blocks it is for: a request that touches any of them. Flushes have no blocks; they meet
    /// every fault that is for them.
    pub blocks: Range<u64>,
    /// What happens.
    pub effect: Effect,
    /// How many requests it happens to; `None` for all until it is cleared.
    pub times: Option<u32>,
}

impl Fault {
    /// A fault of every block, for ever.
    pub const fn new(on: FaultOn, effect: Effect) -> Self {
        Self { on, blocks: 0..u64::MAX, effect, times: None }
    }

    /// The same fault of these blocks only.
    #[must_use]
    pub const fn at(self, blocks: Range<u64>) -> Self {
        Self { blocks, ..self }
    }

    /// The same fault for so many requests only.
    #[must_use]
    pub const fn times(self, times: u32) -> Self {
        Self { times: Some(times), ..self }
    }

    fn touches(&self, request: &Request) -> bool {
        let (first, end) = (request.lba.0, request.lba.0 + u64::from(request.blocks));
        request.op == Op::Flush || (first < self.blocks.end && self.blocks.start < end)
    }
}

/// Names a fault that was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FaultId(u64);

/// What the faults say to one request when it reaches the device.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict {
    /// It fails with this; the blocks in the range stay as they are.
    pub(super) failure: Option<(IoError, Range<u64>)>,
    /// And what the volatile cache holds goes with it.
    pub(super) loses: bool,
    /// The flush behind an emulated FUA write fails with this.
    pub(super) flush_failure: Option<IoError>,
    pub(super) slow_steps: u32,
    pub(super) stuck: Option<FaultId>,
}

/// The faults that are set, in the order in which they were.
#[derive(Debug, Default)]
pub(super) struct Faults {
    set: Vec<(FaultId, Fault)>,
    next: u64,
}

impl Faults {
    pub(super) fn set(&mut self, fault: Fault) -> FaultId {
        let id = FaultId(self.next);
        self.next += 1;
        self.set.push((id, fault));
        id
    }

    pub(super) fn clear(&mut self, id: FaultId) {
        self.set.retain(|(set, _)| *set != id);
    }

    pub(super) fn clear_all(&mut self) {
        self.set.clear();
    }

    /// Whether a request that this fault holds is still held. A fault whose `times` are used up
    /// holds what it caught until it is cleared.
    pub(super) fn holds(&self, id: FaultId) -> bool {
        self.set.iter().any(|(set, _)| *set == id)
    }

    /// What becomes of a request. Uses up one of the times of each fault that it meets; the first
    /// failure wins, delays add up.
    pub(super) fn judge(&mut self, request: &Request, fua_is_emulated: bool) -> Verdict {
        let mut verdict = Verdict::default();
        for (id, fault) in &mut self.set {
            let behind = fua_is_emulated
                && request.op == (Op::Write { fua: true })
                && fault.on == FaultOn::Flushes;
            let meets = behind || (fault.on.takes(request.op) && fault.touches(request));
            if !meets || fault.times == Some(0) {
                continue;
            }
            match fault.effect {
                Effect::Fail(error) | Effect::FailAndLose(error) => {
                    verdict.loses |= matches!(fault.effect, Effect::FailAndLose(_));
                    if behind {
                        verdict.flush_failure.get_or_insert(error);
                    } else {
                        verdict.failure.get_or_insert((error, fault.blocks.clone()));
                    }
                }
                Effect::Slow { steps } => {
                    verdict.slow_steps = verdict.slow_steps.saturating_add(steps);
                }
                Effect::Stuck => {
                    verdict.stuck.get_or_insert(*id);
                }
            }
            fault.times = fault.times.map(|times| times - 1);
        }
        verdict
    }
}
