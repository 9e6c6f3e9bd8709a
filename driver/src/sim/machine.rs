//! The drive itself: requests arrive, wait for a drawn number of steps, take effect, are answered.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use fastrand::Rng;

use super::fault::{Faults, Verdict};
use super::medium::{Content, Extent, Medium, SECTOR_SIZE, Sequence};
use super::{Counts, Event, LogEntry};
use crate::block::{Cancel, Geometry};
use crate::dma::{DmaBuf, FRAME_SIZE};
use crate::error::{IoError, IoErrorKind, IoResult};
use crate::request::{Completion, Op, Request};
use crate::slots::Token;

/// Names an open queue among those of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueId(pub(super) u64);

/// A request that was submitted and has not reached the drive.
#[derive(Debug)]
pub(super) struct Submitted {
    pub(super) request: Request,
    /// For a flush: what had completed when it was submitted.
    pub(super) covers: Sequence,
}

/// A request that the drive has.
#[derive(Debug)]
struct InFlight {
    queue: QueueId,
    request: Request,
    covers: Sequence,
    /// What it writes, taken down on arrival: a crash needs it, and a frame that has changed when
    /// the request ends was written while the device owned it.
    extent: Option<Extent>,
    due_step: u64,
    verdict: Verdict,
    /// It ends now, as cancelled.
    cancelled: bool,
    /// The drive has gone and uses its frames for ever.
    keeps_frames: bool,
}

/// Everything behind the lock of a [`SimDevice`](super::SimDevice).
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) geometry: Geometry,
    pub(super) volatile_cache: bool,
    pub(super) fua: bool,
    pub(super) latency_steps: RangeInclusive<u32>,
    pub(super) random: Rng,
    pub(super) medium: Medium,
    pub(super) faults: Faults,
    pub(super) gone: bool,
    /// The power is off: nothing arrives, nothing is answered.
    pub(super) stopped: bool,
    pub(super) stop_at: Option<u64>,
    pub(super) operations: u64,
    pub(super) counts: Counts,
    pub(super) log: VecDeque<LogEntry>,
    pub(super) log_max: usize,
    pub(super) step: u64,
    pub(super) queues: Vec<QueueId>,
    pub(super) next_queue: u64,
    in_flight: Vec<InFlight>,
    keeps_frames: bool,
    /// Frames of reads that the drive still writes to.
    pub(super) kept_to_write: Vec<DmaBuf>,
    /// Frames of writes that it may still read.
    kept_to_read: Vec<DmaBuf>,
}

/// What a machine is made of; see [`SimOptions`](super::SimOptions).
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) geometry: Geometry,
    pub(super) volatile_cache: bool,
    pub(super) fua: bool,
    pub(super) latency_steps: RangeInclusive<u32>,
    pub(super) log_max: usize,
    pub(super) keeps_frames: bool,
    pub(super) image: Vec<u8>,
    pub(super) seed: u64,
}

impl Machine {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            geometry: parts.geometry,
            volatile_cache: parts.volatile_cache,
            fua: parts.fua,
            latency_steps: parts.latency_steps,
            random: Rng::with_seed(parts.seed),
            medium: Medium::new(parts.image),
            faults: Faults::default(),
            gone: false,
            stopped: false,
            stop_at: None,
            operations: 0,
            counts: Counts::default(),
            log: VecDeque::with_capacity(parts.log_max),
            log_max: parts.log_max,
            step: 0,
            queues: Vec::new(),
            next_queue: 0,
            in_flight: Vec::new(),
            keeps_frames: parts.keeps_frames,
            kept_to_write: Vec::new(),
            kept_to_read: Vec::new(),
        }
    }

    /// The drive goes. One that cannot be stopped keeps the frames of a drawn half of what it has.
    pub(super) fn unplug(&mut self) {
        if std::mem::replace(&mut self.gone, true) || !self.keeps_frames {
            return;
        }
        for one in &mut self.in_flight {
            one.keeps_frames = self.random.bool();
        }
    }

    /// How many frames the drive keeps.
    pub(super) fn frames_kept(&self) -> usize {
        self.kept_to_write.len() + self.kept_to_read.len()
    }

    /// What is given back of a request's frames.
    fn give_back(&mut self, request: &mut Request, keeps_frames: bool) {
        if keeps_frames {
            let reads = request.op == Op::Read;
            let kept = if reads { &mut self.kept_to_write } else { &mut self.kept_to_read };
            kept.append(&mut request.data.frames);
        }
    }

    /// A committed request reaches the drive. Handed back when there is no power to take it.
    pub(super) fn arrive(&mut self, queue: QueueId, submitted: Submitted) -> Option<Submitted> {
        if self.stopped {
            return Some(submitted);
        }
        let Submitted { request, covers } = submitted;
        let verdict = self.faults.judge(&request, !self.fua);
        let latency = u64::from(self.random.u32(self.latency_steps.clone()));
        let due_step = self.step + 1 + latency + u64::from(verdict.slow_steps);
        if request.op == Op::Read {
            // The device may write the frames from now on: whoever looks at them sees that it does.
            let mut noise = vec![0; self.len_bytes(&request)];
            self.random.fill(&mut noise);
            request.data.copy_from_slice(0, &noise);
        }
        let extent = self.extent_of(&request);
        self.note(Event::Arrived, queue, &request);
        self.in_flight.push(InFlight {
            queue,
            request,
            covers,
            extent,
            due_step,
            verdict,
            cancelled: false,
            keeps_frames: false,
        });
        None
    }

    /// One step of time, then at most `budget` answers for `queue`, in a drawn order.
    pub(super) fn poll(
        &mut self,
        queue: QueueId,
        budget: usize,
        out: &mut Vec<Completion>,
    ) -> usize {
        self.step += 1;
        for frame in &self.kept_to_write {
            // Whoever was given it would see.
            let noise = self.random.u64(..).to_le_bytes();
            frame.write(self.random.usize(..FRAME_SIZE / noise.len()) * noise.len(), &noise);
        }
        let mut moved = 0;
        while moved < budget && !self.stopped {
            let due: Vec<usize> =
                (0..self.in_flight.len()).filter(|&at| self.is_due(queue, at)).collect();
            let Some(&at) = self.random.choice(&due) else { break };
            let mut ended = self.in_flight.swap_remove(at);
            let result = self.end(&ended);
            self.note(Event::Completed(result), queue, &ended.request);
            self.give_back(&mut ended.request, ended.keeps_frames);
            let Request { token, data, .. } = ended.request;
            out.push(Completion { token, result, data });
            moved += 1;
        }
        moved
    }

    /// Asks for the end of a request. A drawn half of them come too late; what is stuck never does.
    pub(super) fn cancel(&mut self, queue: QueueId, token: Token) -> Cancel {
        let named = |one: &&mut InFlight| one.queue == queue && one.request.token == token;
        let Some(one) = self.in_flight.iter_mut().find(named) else { return Cancel::NotFound };
        let stuck = one.verdict.stuck.is_some_and(|id| self.faults.holds(id));
        one.cancelled |= stuck || self.random.bool();
        Cancel::Asked
    }

    /// The queue goes: what arrived takes effect, as a drive would have it, unless there is no power
    /// or it is stuck. The frames go back with the requests, because nothing here writes them later, but for those
    /// that a drive keeps.
    pub(super) fn drain(&mut self, queue: QueueId) {
        while let Some(at) = self.in_flight.iter().position(|one| one.queue == queue) {
            let mut ended = self.in_flight.remove(at);
            if !self.stopped && ended.verdict.stuck.is_none_or(|id| !self.faults.holds(id)) {
                let result = self.end(&ended);
                self.note(Event::Completed(result), queue, &ended.request);
            }
            self.give_back(&mut ended.request, ended.keeps_frames);
        }
        self.queues.retain(|open| *open != queue);
    }

    /// An orderly shutdown: the drive empties its cache.
    pub(super) fn shut_down(&mut self) {
        if !self.stopped && !self.gone {
            self.medium.flush(self.medium.completed());
        }
    }

    pub(super) fn crash_image(&self, random: &mut Rng) -> Vec<u8> {
        // What is going to fail is left out: a part of it is among what may be lost anyway.
        let succeeding = self.in_flight.iter().filter(|one| one.verdict.failure.is_none());
        let under_way: Vec<_> = succeeding.filter_map(|one| one.extent.clone()).collect();
        self.medium.crash_image(&under_way, random)
    }

    fn is_due(&self, queue: QueueId, at: usize) -> bool {
        let one = &self.in_flight[at];
        let held = one.verdict.stuck.is_some_and(|id| self.faults.holds(id));
        one.queue == queue && (self.gone || one.cancelled || (one.due_step <= self.step && !held))
    }

    /// The request takes effect; its answer.
    fn end(&mut self, ended: &InFlight) -> IoResult {
        let InFlight { request, extent, verdict, .. } = ended;
        if self.gone {
            return Err(IoError::new(IoErrorKind::Gone));
        }
        if let Some(extent) = extent {
            self.check_frames(request, extent);
        }
        if ended.cancelled {
            // It was stopped somewhere: an arbitrary part was done.
            if request.op.writes() {
                self.write_around(request, extent.as_ref(), &(0..0));
            }
            return Err(IoError::new(IoErrorKind::Cancelled));
        }
        if let Some((error, bad)) = &verdict.failure {
            if request.op.writes() {
                self.write_around(request, extent.as_ref(), bad);
            }
            if verdict.loses {
                self.medium.lose(&mut self.random);
            }
            return Err(*error);
        }
        match request.op {
            Op::Read => self.read(request),
            Op::Flush => self.medium.flush(ended.covers),
            Op::Write { fua } => {
                let extent = extent.as_ref().expect("a write has an extent");
                if !self.volatile_cache || (fua && self.fua) {
                    self.medium.write_durable(extent);
                } else {
                    self.medium.write_volatile(extent.clone());
                }
                if fua && !self.fua {
                    if let Some(error) = verdict.flush_failure {
                        if verdict.loses {
                            self.medium.lose(&mut self.random);
                        }
                        return Err(error);
                    }
                    // The flush that the queue sends after the write.
                    self.medium.flush(self.medium.completed());
                }
            }
            Op::Discard | Op::WriteZeroes { .. } => {
                let extent = extent.as_ref().expect("an operation on blocks has an extent");
                // What a discarded block reads as is undefined: zeroes, or as if nothing had been.
                if request.op == Op::Discard && self.random.bool() {
                    return Ok(());
                }
                match self.volatile_cache {
                    true => self.medium.write_volatile(extent.clone()),
                    false => self.medium.write_durable(extent),
                }
            }
        }
        Ok(())
    }

    fn read(&self, request: &Request) {
        let first = request.lba.0 * self.sectors_per_block();
        let mut bytes = vec![0; self.len_bytes(request)];
        for (sector, out) in (first..).zip(bytes.chunks_mut(SECTOR_SIZE)) {
            self.medium.read_sector(sector, out);
        }
        request.data.copy_from_slice(0, &bytes);
    }

    /// A write that failed: of the blocks outside `bad` an arbitrary part was done all the same.
    fn write_around(
        &mut self,
        request: &Request,
        extent: Option<&Extent>,
        bad: &std::ops::Range<u64>,
    ) {
        let Some(extent) = extent else { return };
        let per_block = self.sectors_per_block();
        for block in 0..u64::from(request.blocks) {
            if bad.contains(&(request.lba.0 + block)) || self.random.bool() {
                continue;
            }
            let content = match &extent.content {
                Content::Zeroes { .. } => Content::Zeroes { sectors: per_block },
                Content::Bytes(bytes) => {
                    let len_bytes = per_block as usize * SECTOR_SIZE;
                    Content::Bytes(bytes[block as usize * len_bytes..][..len_bytes].into())
                }
            };
            let part = Extent { sector: extent.sector + block * per_block, content };
            match self.volatile_cache {
                true => self.medium.write_volatile(part),
                false => self.medium.write_durable(&part),
            }
        }
    }

    /// Holds the user to the rule of ownership: nobody writes the frames of a write in flight.
    fn check_frames(&self, request: &Request, extent: &Extent) {
        let Content::Bytes(taken) = &extent.content else { return };
        let mut now = vec![0; taken.len()];
        request.data.copy_to_slice(0, &mut now);
        let changed = now.iter().zip(taken.iter()).position(|(now, taken)| now != taken);
        assert_eq!(
            changed, None,
            "a frame was written while a write of {:?}, {} blocks, was in flight",
            request.lba, request.blocks
        );
    }

    fn extent_of(&self, request: &Request) -> Option<Extent> {
        let sector = request.lba.0 * self.sectors_per_block();
        let content = match request.op {
            Op::Read | Op::Flush => return None,
            Op::Write { .. } => {
                let mut bytes = vec![0; self.len_bytes(request)];
                request.data.copy_to_slice(0, &mut bytes);
                Content::Bytes(bytes.into())
            }
            Op::Discard | Op::WriteZeroes { .. } => {
                Content::Zeroes { sectors: u64::from(request.blocks) * self.sectors_per_block() }
            }
        };
        Some(Extent { sector, content })
    }

    fn len_bytes(&self, request: &Request) -> usize {
        request.blocks as usize * self.geometry.block_size as usize
    }

    fn sectors_per_block(&self) -> u64 {
        u64::from(self.geometry.block_size) / SECTOR_SIZE as u64
    }

    /// Counts one operation, and turns the power off when it was the last.
    fn note(&mut self, event: Event, queue: QueueId, request: &Request) {
        self.operations += 1;
        if self.stop_at.is_some_and(|last| self.operations >= last) {
            self.stopped = true;
        }
        if event == Event::Arrived {
            self.counts.count(request);
        } else if event != Event::Completed(Ok(())) {
            self.counts.failed += 1;
        }
        if self.log_max == 0 {
            return;
        }
        if self.log.len() == self.log_max {
            self.log.pop_front();
        }
        let Request { op, lba, blocks, .. } = *request;
        self.log.push_back(LogEntry { step: self.step, queue: queue.0, event, op, lba, blocks });
    }
}
