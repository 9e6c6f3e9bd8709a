//! The contract as a suite that every backend runs.
//!
//! [`run`] **destroys the contents of the device**. Each check is named after the rule it holds the
//! device to and panics with the seed when the rule is broken; [`run_seeded`] replays it.
//!
//! The oracle is a map of the bytes that were acknowledged: a read must give exactly those.

use std::time::{Duration, Instant};

use crate::block::{Armed, BlockDevice, Cancel, IoQueue, QueueOptions};
use crate::dma::{DmaBuf, FRAME_SIZE};
use crate::error::{DeviceError, IoErrorKind};
use crate::request::{Completion, Lba, Op, Refusal, Request, SgList};
use crate::slots::{Slots, Token};

/// How long a device may take for one batch before the suite calls it hung.
const PATIENCE: Duration = Duration::from_secs(60);
/// How much of the device, from its start, the suite writes, in bytes.
const AREA_BYTES: u64 = 4 << 20;

/// Runs every check with a random seed.
///
/// # Panics
///
/// When the device breaks a rule; the message names the rule and the seed.
pub fn run(device: &dyn BlockDevice) {
    run_seeded(device, fastrand::u64(..));
}

/// Runs every check from `seed`.
///
/// # Panics
///
/// As [`run`].
pub fn run_seeded(device: &dyn BlockDevice, seed: u64) {
    println!("conformance of {} with seed {seed}", device.name());
    let free = device.pool().free_frames();
    let mut suite = Suite { device, seed, random: fastrand::Rng::with_seed(seed) };
    suite.geometry_is_possible();
    suite.bad_requests_come_back_whole();
    suite.a_full_queue_refuses_and_goes_on();
    suite.reads_give_what_was_acknowledged();
    suite.every_queue_sees_what_another_completed();
    suite.poll_keeps_to_its_budget();
    suite.an_armed_queue_tells_of_completions();
    suite.what_is_cancelled_is_answered_once();
    suite.dropping_a_queue_drains_it();
    suite.more_queues_than_there_are_is_an_error();
    assert_eq!(device.pool().free_frames(), free, "frames were lost (seed {seed})");
}

struct Suite<'a> {
    device: &'a dyn BlockDevice,
    seed: u64,
    random: fastrand::Rng,
}

impl Suite<'_> {
    fn geometry_is_possible(&self) {
        let geometry = self.device.geometry();
        let capabilities = self.device.capabilities();
        assert!(geometry.block_size.is_power_of_two());
        assert!((512..=4096).contains(&geometry.block_size), "{geometry:?}");
        assert!(geometry.blocks > 0, "{geometry:?}");
        assert!(geometry.transfer_max_bytes as usize >= FRAME_SIZE, "{geometry:?}");
        assert_eq!(geometry.transfer_max_bytes as usize % FRAME_SIZE, 0, "{geometry:?}");
        assert!(capabilities.queues_max > 0 && capabilities.depth_max > 0, "{capabilities:?}");
    }

    fn bad_requests_come_back_whole(&mut self) {
        let geometry = self.device.geometry();
        let frame_blocks = FRAME_SIZE as u32 / geometry.block_size;
        let too_many = geometry.transfer_max_bytes / geometry.block_size + 1;
        // A device that takes no more than a frame at a time sees the length before the frames.
        let long = match frame_blocks + 1 < too_many {
            true => Refusal::BadFrames,
            false => Refusal::BadLength,
        };
        let mut queue = self.open(4);
        let token = Token { slot: 7, generation: 9 };
        let one = || SgList::new(vec![self.device.pool().take().expect("a free frame")]);
        let bad = [
            (Request::read(token, Lba(geometry.blocks), 1, one()), Refusal::OutOfRange),
            (Request::read(token, Lba(u64::MAX), 1, one()), Refusal::OutOfRange),
            (Request::read(token, Lba(0), 0, one()), Refusal::BadLength),
            (Request::read(token, Lba(0), too_many, one()), Refusal::BadLength),
            (Request::read(token, Lba(0), frame_blocks + 1, one()), long),
            (Request::read(token, Lba(0), 1, SgList::empty()), Refusal::BadFrames),
            (Request::read(token, Lba(0), 1, SgList { offset: 2, ..one() }), Refusal::BadFrames),
            (
                Request::write(token, Lba(0), 1, SgList { offset: 4096, ..one() }, false),
                Refusal::BadFrames,
            ),
        ];
        for (request, reason) in bad {
            let (op, frames) = (request.op, request.data.frames.len());
            let refused = queue.submit(request).expect_err("a bad request was taken");
            assert_eq!(refused.reason, reason, "{:?}", refused.request);
            assert_eq!(refused.request.token, token);
            assert_eq!(refused.request.op, op);
            assert_eq!(refused.request.data.frames.len(), frames, "frames were lost");
        }
        assert_eq!(queue.in_flight(), 0);
    }

    fn a_full_queue_refuses_and_goes_on(&mut self) {
        let depth = self.device.capabilities().depth_max.min(4);
        let mut bench = Bench::new(self.open(depth), self.seed);
        let depth = bench.queue.depth();
        for _ in 0..depth {
            bench.submit(Op::Read, Lba(0), 1, self.frames(1));
        }
        let data = self.frames(1);
        let extra = Request::read(Token::from_u64(u64::MAX), Lba(0), 1, data);
        let refused = bench.queue.submit(extra).expect_err("more than the depth was taken");
        assert_eq!(refused.reason, Refusal::Full);
        assert_eq!(bench.queue.in_flight(), depth);
        bench.finish(|_| {});
        bench.submit(Op::Read, Lba(0), 1, refused.request.data);
        bench.finish(|_| {});
    }

    /// Random reads, writes and zeroes of every length and frame offset, many in flight where they
    /// do not overlap, against the map of acknowledged bytes.
    fn reads_give_what_was_acknowledged(&mut self) {
        let geometry = self.device.geometry();
        let block_size = geometry.block_size as usize;
        let area_blocks = geometry.blocks.min(AREA_BYTES / geometry.block_size as u64) as usize;
        let mut bytes = vec![0u8; area_blocks * block_size];
        let mut bench = Bench::new(self.open(32), self.seed);
        self.fill(&mut bench, &bytes);
        for _round in 0..60 {
            // One round: disjoint ranges, all in flight together.
            let lanes = bench.queue.depth().min(16).min(area_blocks);
            let lane_blocks = area_blocks / lanes;
            for lane in 0..lanes {
                let first = lane * lane_blocks;
                let start = first + self.random.usize(..lane_blocks);
                let room = first + lane_blocks - start;
                self.random_request(&mut bench, &mut bytes, start, room);
            }
            bench.finish(|done| done.check(&bytes, block_size));
            if self.random.u8(..4) == 0 {
                bench.submit(Op::Flush, Lba(0), 0, SgList::empty());
                bench.finish(|_| {});
            }
        }
    }

    fn random_request(&mut self, bench: &mut Bench, bytes: &mut [u8], start: usize, room: usize) {
        let geometry = self.device.geometry();
        let block_size = geometry.block_size as usize;
        let frame_blocks = FRAME_SIZE as u32 / geometry.block_size;
        let offset = self.random.u32(..frame_blocks) * geometry.block_size;
        // A run that starts inside a frame must still fit the transfer limit in frames.
        let most = (geometry.transfer_max_bytes as usize - FRAME_SIZE).max(FRAME_SIZE) / block_size;
        let blocks = match self.random.u8(..4) {
            0 => 1,
            1 => self.random.usize(1..=room.min(most)),
            _ => self.random.usize(1..=room.min(most).min(16)),
        };
        let range = start * block_size..(start + blocks) * block_size;
        let lba = Lba(start as u64);
        match self.random.u8(..8) {
            0 if geometry.write_zeroes_max_blocks as usize >= blocks => {
                bytes[range].fill(0);
                let op = Op::WriteZeroes { may_unmap: self.random.bool() };
                bench.submit(op, lba, blocks as u32, SgList::empty());
            }
            1..=3 => {
                self.random.fill(&mut bytes[range.clone()]);
                let data = self.frames(SgList::frames_for(offset, range.len()));
                let data = SgList { offset, ..data };
                data.copy_from_slice(0, &bytes[range]);
                let op = Op::Write { fua: self.random.u8(..4) == 0 };
                bench.submit(op, lba, blocks as u32, data);
            }
            _ => {
                let data = self.frames(SgList::frames_for(offset, range.len()));
                // What a read leaves untouched must show.
                let noise: Vec<u8> = range.clone().map(|at| !bytes[at]).collect();
                let data = SgList { offset, ..data };
                data.copy_from_slice(0, &noise);
                bench.submit(Op::Read, lba, blocks as u32, data);
            }
        }
    }

    fn every_queue_sees_what_another_completed(&mut self) {
        let queues = self.device.capabilities().queues_max.min(3);
        let mut benches: Vec<_> =
            (0..queues).map(|_| Bench::new(self.open(2), self.seed)).collect();
        let block_size = self.device.geometry().block_size as usize;
        for writer in 0..benches.len() {
            let mut bytes = vec![0; block_size];
            self.random.fill(&mut bytes);
            let data = self.frames(1);
            data.copy_from_slice(0, &bytes);
            benches[writer].submit(Op::Write { fua: false }, Lba(0), 1, data);
            benches[writer].finish(|_| {});
            for bench in &mut benches {
                bench.submit(Op::Read, Lba(0), 1, self.frames(1));
                bench.finish(|done| done.check(&bytes, block_size));
            }
        }
    }

    fn poll_keeps_to_its_budget(&mut self) {
        let mut bench = Bench::new(self.open(8), self.seed);
        let count = bench.queue.depth();
        for _ in 0..count {
            bench.submit(Op::Read, Lba(0), 1, self.frames(1));
        }
        bench.queue.commit();
        let (mut out, mut seen) = (Vec::with_capacity(1), 0);
        let start = Instant::now();
        assert_eq!(bench.queue.poll(0, &mut out), 0);
        while seen < count {
            let polled = bench.queue.poll(1, &mut out);
            assert_eq!(polled, out.len());
            assert!(polled <= 1, "poll(1) gave {polled} (seed {})", self.seed);
            seen += polled;
            out.clear();
            assert!(start.elapsed() < PATIENCE, "hung (seed {})", self.seed);
        }
        assert_eq!(bench.queue.in_flight(), 0);
    }

    fn an_armed_queue_tells_of_completions(&mut self) {
        let mut queue = self.open(2);
        assert_eq!(queue.arm(), Armed::Yes, "an idle queue can always be slept on");
        let data = self.frames(1);
        let request = Request::read(Token::from_u64(1), Lba(0), 1, data);
        queue.submit(request).expect("room for one");
        queue.commit();
        let mut out = Vec::with_capacity(2);
        let start = Instant::now();
        loop {
            if queue.arm() == Armed::Yes {
                let fd = queue.event_fd().expect("armed with something in flight and no event_fd");
                wait_readable(fd);
            }
            if queue.poll(2, &mut out) == 1 {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "hung (seed {})", self.seed);
        }
        assert_eq!(out[0].result, Ok(()));
        assert_eq!(queue.arm(), Armed::Yes);
    }

    /// Cancels a random half of what is in flight, before and after it was committed. A write that was
    /// cancelled leaves each block old or new.
    fn what_is_cancelled_is_answered_once(&mut self) {
        let block_size = self.device.geometry().block_size as usize;
        let frame_blocks = FRAME_SIZE / block_size;
        let mut bench = Bench::new(self.open(8), self.seed);
        let lanes = bench.queue.depth();
        let mut old = vec![1; lanes * FRAME_SIZE];
        self.fill(&mut bench, &old);
        let nobody = Token::from_u64(u64::MAX);
        for round in 2..40 {
            for lane in 0..lanes {
                let (lba, data) = (Lba((lane * frame_blocks) as u64), self.frames(1));
                data.copy_from_slice(0, &[round; FRAME_SIZE]);
                let fua = self.random.bool();
                bench.submit(Op::Write { fua }, lba, frame_blocks as u32, data);
            }
            assert_ne!(bench.queue.cancel(nobody), Cancel::Asked, "nobody has this token");
            if self.random.bool() {
                bench.queue.commit();
            }
            let mut asked = Vec::new();
            for token in bench.asked.tokens() {
                if self.random.bool() && bench.queue.cancel(token) == Cancel::Asked {
                    asked.push(token);
                }
            }
            let cancelled = bench.finish_cancelled(&asked);
            for lane in 0..lanes {
                let (lba, data) = (Lba((lane * frame_blocks) as u64), self.frames(1));
                bench.submit(Op::Read, lba, frame_blocks as u32, data);
            }
            bench.finish(|done| {
                let lba = done.asked.lba;
                let mut got = vec![0; FRAME_SIZE];
                done.completion.data.copy_to_slice(0, &mut got);
                let before = &mut old[lba.0 as usize * block_size..][..FRAME_SIZE];
                for (block, old) in got.chunks(block_size).zip(before.chunks_mut(block_size)) {
                    let new = block.iter().all(|byte| *byte == round);
                    let kept = cancelled.contains(&lba) && block == old;
                    assert!(new || kept, "round {round} at {lba:?} (seed {})", done.seed);
                    old.copy_from_slice(block);
                }
            });
        }
    }

    fn dropping_a_queue_drains_it(&mut self) {
        let free = self.device.pool().free_frames();
        let mut bench = Bench::new(self.open(8), self.seed);
        for lba in 0..bench.queue.depth() as u64 {
            bench.submit(Op::Write { fua: false }, Lba(lba), 1, self.frames(1));
        }
        bench.queue.commit();
        drop(bench);
        assert_eq!(self.device.pool().free_frames(), free, "frames were lost in the drop");
        // The queue's place is free again.
        drop(self.open(1));
    }

    fn more_queues_than_there_are_is_an_error(&mut self) {
        let max = self.device.capabilities().queues_max;
        let mut open = Vec::new();
        let error = loop {
            match self.device.open_queue(QueueOptions::polled(1)) {
                Ok(queue) => open.push(queue),
                Err(error) => break error,
            }
            assert!(open.len() <= usize::from(max), "more queues than queues_max, {max}");
        };
        assert!(matches!(error, DeviceError::NoMoreQueues { .. }), "{error}");
        assert!(self.device.close().is_err(), "closed with queues open");
        assert!(self.device.open_queue(QueueOptions::polled(0)).is_err());
    }

    fn fill(&self, bench: &mut Bench, bytes: &[u8]) {
        let block_size = self.device.geometry().block_size as usize;
        let piece = (self.device.geometry().transfer_max_bytes as usize).min(64 << 10);
        for (index, part) in bytes.chunks(piece).enumerate() {
            let data = self.frames(SgList::frames_for(0, part.len()));
            data.copy_from_slice(0, part);
            let lba = Lba((index * piece / block_size) as u64);
            bench.submit(Op::Write { fua: false }, lba, (part.len() / block_size) as u32, data);
            bench.finish(|_| {});
        }
    }

    fn open(&self, depth: u16) -> Box<dyn IoQueue> {
        let depth = depth.min(self.device.capabilities().depth_max);
        match self.device.open_queue(QueueOptions::polled(depth)) {
            Ok(queue) => queue,
            Err(error) => panic!("cannot open a queue: {error} (seed {})", self.seed),
        }
    }

    fn frames(&self, count: usize) -> SgList {
        let take = || self.device.pool().take().expect("the suite needs 512 free frames");
        SgList::new((0..count).map(|_| take()).collect::<Vec<DmaBuf>>())
    }
}

/// What was asked, to be held against what came back.
struct Asked {
    op: Op,
    lba: Lba,
    blocks: u32,
    frames: Vec<u32>,
}

struct Done {
    asked: Asked,
    completion: Completion,
    seed: u64,
}

impl Done {
    fn check(&self, bytes: &[u8], block_size: usize) {
        if self.asked.op != Op::Read {
            return;
        }
        let start = self.asked.lba.0 as usize * block_size;
        let mut got = vec![0; self.asked.blocks as usize * block_size];
        self.completion.data.copy_to_slice(0, &mut got);
        let wrong = got.iter().zip(&bytes[start..]).position(|(got, want)| got != want);
        assert_eq!(
            wrong, None,
            "first wrong byte of a read at {:?} (seed {})",
            self.asked.lba, self.seed
        );
    }
}

/// A queue and the record of what is in flight on it.
struct Bench {
    queue: Box<dyn IoQueue>,
    asked: Slots<Asked>,
    seed: u64,
}

impl Bench {
    fn new(queue: Box<dyn IoQueue>, seed: u64) -> Self {
        Self { asked: Slots::new(queue.depth()), queue, seed }
    }

    fn submit(&mut self, op: Op, lba: Lba, blocks: u32, data: SgList) {
        let frames = data.frames.iter().map(DmaBuf::index).collect();
        let asked = Asked { op, lba, blocks, frames };
        let Ok(token) = self.asked.insert(asked) else { panic!("the suite overran its own queue") };
        let request = Request { token, op, lba, blocks, data };
        if let Err(refused) = self.queue.submit(request) {
            panic!("{:?} of {blocks} at {lba:?}: {} (seed {})", op, refused.reason, self.seed);
        }
    }

    /// Commits and polls until everything is answered with success, each exactly once.
    fn finish(&mut self, mut look: impl FnMut(&Done)) {
        self.answers(|done| {
            let Asked { op, lba, .. } = done.asked;
            assert_eq!(done.completion.result, Ok(()), "{op:?} at {lba:?}");
            look(done);
        });
    }

    /// [`finish`](Bench::finish), but what is in `asked` may be cancelled; where those that were are.
    fn finish_cancelled(&mut self, asked: &[Token]) -> Vec<Lba> {
        let mut cancelled = Vec::new();
        self.answers(|done| match done.completion.result {
            Err(error) if error.kind == IoErrorKind::Cancelled => {
                assert!(
                    asked.contains(&done.completion.token),
                    "nobody asked (seed {})",
                    done.seed
                );
                cancelled.push(done.asked.lba);
            }
            result => assert_eq!(result, Ok(()), "{:?} (seed {})", done.asked.lba, done.seed),
        });
        for token in asked {
            assert_ne!(self.queue.cancel(*token), Cancel::Asked, "it was answered already");
        }
        cancelled
    }

    /// Commits and polls until everything is answered, each exactly once, with its own frames.
    fn answers(&mut self, mut look: impl FnMut(&Done)) {
        self.queue.commit();
        let mut out = Vec::with_capacity(self.queue.depth());
        let start = Instant::now();
        while self.queue.in_flight() > 0 {
            self.queue.poll(self.queue.depth(), &mut out);
            for completion in out.drain(..) {
                let asked = self.asked.remove(completion.token);
                let asked = asked.expect("a completion for nothing that is in flight");
                let frames: Vec<_> = completion.data.frames.iter().map(DmaBuf::index).collect();
                assert_eq!(frames, asked.frames, "a completion gave other frames back");
                look(&Done { asked, completion, seed: self.seed });
            }
            assert!(start.elapsed() < PATIENCE, "hung (seed {})", self.seed);
        }
        assert!(self.asked.is_empty(), "in_flight is 0 and something was never answered");
    }
}

fn wait_readable(fd: std::os::fd::BorrowedFd<'_>) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let ready = poll(&mut fds, Some(&timeout)).expect("poll(2)");
    assert_eq!(ready, 1, "an armed queue never told of its completion");
}
