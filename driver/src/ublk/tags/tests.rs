//! The table against a device in memory and a kernel that is a vector of bytes.
//!
//! Goal: whatever the order of requests, completions and shortages, each request is answered once,
//! reads give what the acknowledged writes left, and no frame is lost. The kernel here holds every
//! request's own bytes as the block layer's pages would.

use super::*;
use crate::block::{Armed, BlockDevice, QueueOptions};
use crate::dma::{DmaPool, FRAME_SIZE, PoolOptions};
use crate::error::{IoError, IoErrorKind};
use crate::ram::RamDevice;
use std::collections::HashMap;
use std::os::fd::BorrowedFd;

const BLOCK: usize = 512;
const BLOCKS: u64 = 512;
const IO_MAX: u32 = 16 << 10;
const DEPTH: u16 = 8;

/// The kernel's side: the pages of each tag's request, and the results that came back.
#[derive(Default)]
struct Kernel {
    pages: HashMap<u16, Vec<u8>>,
    results: Vec<(u16, i32)>,
    /// The errno of the next copy.
    fail_copy: Option<i32>,
    copies: usize,
}

impl Kernel {
    fn may_copy(&mut self) -> Result<(), Errno> {
        self.copies += 1;
        self.fail_copy.take().map_or(Ok(()), |errno| Err(Errno(errno)))
    }
}

impl Port for Kernel {
    fn copy_in(&mut self, tag: u16, data: &SgList, len_bytes: usize) -> Result<(), Errno> {
        self.may_copy()?;
        assert_eq!(self.pages[&tag].len(), len_bytes);
        data.copy_from_slice(0, &self.pages[&tag]);
        Ok(())
    }

    fn copy_out(&mut self, tag: u16, data: &SgList, len_bytes: usize) -> Result<(), Errno> {
        self.may_copy()?;
        let pages = self.pages.get_mut(&tag).expect("a read has pages");
        assert_eq!(pages.len(), len_bytes);
        data.copy_to_slice(0, pages);
        Ok(())
    }

    fn complete(&mut self, tag: u16, result: i32) {
        self.results.push((tag, result));
    }
}

/// A queue that does as it is told, over one in memory.
struct Moody {
    inner: Box<dyn IoQueue>,
    /// The reason that the next submits are refused for.
    refuse: Option<Refusal>,
    /// The result of requests that begin at this block.
    bad_block: Option<(Lba, IoErrorKind)>,
    bad_tokens: Vec<Token>,
    submitted: Vec<(Op, Lba, u32)>,
}

impl IoQueue for Moody {
    fn submit(&mut self, request: Request) -> Result<(), Refused> {
        if let Some(reason) = self.refuse {
            return Err(Refused { request, reason });
        }
        let (token, what) = (request.token, (request.op, request.lba, request.blocks));
        self.inner.submit(request)?;
        self.submitted.push(what);
        if self.bad_block.is_some_and(|(lba, _)| lba == what.1) {
            self.bad_tokens.push(token);
        }
        Ok(())
    }

    fn commit(&mut self) {
        self.inner.commit();
    }

    fn poll(&mut self, budget: usize, out: &mut Vec<Completion>) -> usize {
        let count = self.inner.poll(budget, out);
        for completion in out.iter_mut() {
            if let Some((_, kind)) = self.bad_block
                && self.bad_tokens.contains(&completion.token)
            {
                completion.result = Err(IoError::new(kind));
            }
        }
        count
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn depth(&self) -> usize {
        self.inner.depth()
    }

    fn arm(&mut self) -> Armed {
        self.inner.arm()
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

struct Bench {
    device: RamDevice,
    queue: Moody,
    kernel: Kernel,
    tags: Tags,
    stats: QueueStats,
    frames: usize,
    fail_new_io: bool,
}

impl Bench {
    /// A queue of the device that holds `device_depth` requests, and `frames` frames.
    fn new(device_depth: u16, frames: usize) -> Self {
        let pool = DmaPool::new(PoolOptions::frames(frames)).unwrap();
        let device = RamDevice::new(BLOCKS * BLOCK as u64, BLOCK as u32, pool.clone()).unwrap();
        let inner = device.open_queue(QueueOptions::polled(device_depth)).unwrap();
        let queue = Moody {
            inner,
            refuse: None,
            bad_block: None,
            bad_tokens: Vec::new(),
            submitted: Vec::new(),
        };
        // A discard of this device covers 100 blocks, so larger ones go in pieces.
        let geometry = Geometry { discard_max_blocks: 100, ..device.geometry() };
        let reserve = (0..frames).map(|_| pool.take().unwrap()).collect();
        let tags = Tags::new(DEPTH, geometry, IO_MAX, reserve);
        let (kernel, stats) = (Kernel::default(), QueueStats::new());
        Self { device, queue, kernel, tags, stats, frames, fail_new_io: false }
    }

    fn run<R>(&mut self, act: impl FnOnce(&mut Tags, &mut Turn<'_, Kernel>) -> R) -> R {
        let mut turn = Turn {
            device: &mut self.queue,
            port: &mut self.kernel,
            stats: &self.stats,
            now: Duration::ZERO,
            fail_new_io: self.fail_new_io,
        };
        act(&mut self.tags, &mut turn)
    }

    fn start(&mut self, tag: u16, op: u32, lba: u64, pages: Vec<u8>) {
        self.start_blocks(tag, op, lba, (pages.len() / BLOCK) as u32, pages);
    }

    fn start_blocks(&mut self, tag: u16, op: u32, lba: u64, blocks: u32, pages: Vec<u8>) {
        let descriptor = Descriptor { op_flags: op, sectors: blocks, start_sector: lba };
        self.kernel.pages.insert(tag, pages);
        self.run(|tags, turn| tags.start(tag, descriptor, turn)).unwrap();
    }

    /// One turn of the device; `budget` completions at most.
    fn turn(&mut self, budget: usize) {
        self.queue.commit();
        let mut completions = Vec::new();
        self.queue.poll(budget, &mut completions);
        for completion in completions {
            self.run(|tags, turn| tags.finish(completion, turn));
        }
        self.run(|tags, turn| tags.go_on(turn));
    }

    /// Turns until nothing is held, and the results in order of tags.
    fn finish(&mut self) -> Vec<(u16, i32)> {
        for _ in 0..10_000 {
            if self.tags.held() == 0 {
                assert_eq!(self.tags.reserve.len(), self.frames, "a frame was lost");
                assert!(!self.tags.anyone_waits());
                let mut results = std::mem::take(&mut self.kernel.results);
                results.sort_unstable();
                return results;
            }
            self.turn(usize::MAX);
        }
        panic!("{} requests hang", self.tags.held());
    }
}

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 2;
const DISCARD: u32 = 3;
const ZEROES: u32 = 5;

#[test]
fn each_operation_is_answered_with_what_the_kernel_expects() {
    let mut bench = Bench::new(DEPTH, 32);
    let data: Vec<u8> = (0..3 * BLOCK).map(|at| at as u8 ^ (at >> 8) as u8).collect();
    bench.start(0, WRITE, 10, data.clone());
    assert_eq!(bench.finish(), [(0, 3 * BLOCK as i32)]);
    bench.start(1, READ, 10, vec![0; 3 * BLOCK]);
    bench.start_blocks(2, FLUSH, 0, 0, vec![]);
    assert_eq!(bench.finish(), [(1, 3 * BLOCK as i32), (2, 0)]);
    assert_eq!(bench.kernel.pages[&1], data);
    bench.start_blocks(3, ZEROES, 11, 1, vec![]);
    assert_eq!(bench.finish(), [(3, 0)]);
    bench.start(4, READ, 11, vec![7; BLOCK]);
    bench.start_blocks(5, DISCARD, 0, 8, vec![]);
    assert_eq!(bench.finish(), [(4, BLOCK as i32), (5, 0)]);
    assert_eq!(bench.kernel.pages[&4], vec![0; BLOCK]);
}

#[test]
fn a_discard_larger_than_the_device_takes_goes_in_pieces_one_after_another() {
    let mut bench = Bench::new(DEPTH, 32);
    bench.start_blocks(0, DISCARD, 5, 250, vec![]);
    assert_eq!(bench.queue.submitted.len(), 1);
    assert_eq!(bench.finish(), [(0, 0)]);
    let pieces = [(5, 100), (105, 100), (205, 50)];
    assert_eq!(bench.queue.submitted, pieces.map(|(lba, n)| (Op::Discard, Lba(lba), n)));
}

#[test]
fn the_first_piece_that_fails_ends_the_request() {
    let mut bench = Bench::new(DEPTH, 32);
    bench.queue.bad_block = Some((Lba(105), IoErrorKind::Media));
    bench.start_blocks(0, DISCARD, 5, 250, vec![]);
    let errno = IoError::new(IoErrorKind::Media).errno();
    assert_eq!(bench.finish(), [(0, -errno)]);
    assert_eq!(bench.queue.submitted.len(), 2);
}

#[test]
fn one_bad_block_fails_its_request_and_not_its_neighbours() {
    let mut bench = Bench::new(DEPTH, 32);
    bench.queue.bad_block = Some((Lba(1), IoErrorKind::Device));
    (0..3).for_each(|tag| bench.start(tag, READ, u64::from(tag), vec![1; BLOCK]));
    let done = BLOCK as i32;
    assert_eq!(bench.finish(), [(0, done), (1, -libc::EIO), (2, done)]);
    assert_eq!(bench.kernel.pages[&1], vec![1; BLOCK], "a failed read leaves no data");
}

#[test]
fn a_failed_copy_fails_its_request_and_writes_nothing() {
    let mut bench = Bench::new(DEPTH, 32);
    bench.kernel.fail_copy = Some(libc::EIO);
    bench.start(0, WRITE, 0, vec![9; BLOCK]);
    assert_eq!(bench.finish(), [(0, -libc::EIO)]);
    assert_eq!(bench.queue.submitted, []);
    bench.start(0, READ, 0, vec![1; BLOCK]);
    bench.kernel.fail_copy = Some(libc::EIO);
    assert_eq!(bench.finish(), [(0, -libc::EIO)]);
}

#[test]
fn a_full_device_makes_requests_wait_without_a_copy_and_in_order() {
    let mut bench = Bench::new(1, 32);
    (0..DEPTH).for_each(|tag| bench.start(tag, WRITE, u64::from(tag), vec![1; BLOCK]));
    assert_eq!(bench.kernel.copies, 1, "what waits has not been copied");
    assert_eq!(bench.tags.held(), u32::from(DEPTH));
    for round in 1..=usize::from(DEPTH) {
        bench.turn(usize::MAX);
        assert_eq!(bench.kernel.results.len(), round);
    }
    let lbas: Vec<_> = bench.queue.submitted.iter().map(|&(_, lba, _)| lba.0).collect();
    assert_eq!(lbas, (0..u64::from(DEPTH)).collect::<Vec<_>>());
}

#[test]
fn with_frames_for_one_request_all_get_their_turn_and_none_overtakes() {
    // 4 frames: one largest request. A small one that would fit waits behind a large one.
    let mut bench = Bench::new(DEPTH, SgList::frames_for(0, IO_MAX as usize));
    bench.start(0, READ, 0, vec![0; FRAME_SIZE]);
    bench.start(1, READ, 0, vec![0; IO_MAX as usize]);
    bench.start(2, READ, 0, vec![0; BLOCK]);
    assert_eq!(bench.queue.submitted.len(), 1);
    bench.turn(usize::MAX);
    assert_eq!(bench.queue.submitted.len(), 2, "the large one, alone");
    assert_eq!(bench.finish().len(), 3);
}

#[test]
fn requests_fail_instead_of_waiting_for_frames_that_a_device_has_kept() {
    let mut bench = Bench::new(DEPTH, 4);
    // A device that could not be stopped answers without the frames that it may still write.
    bench.start(0, READ, 0, vec![0; 3 * FRAME_SIZE]);
    bench.queue.commit();
    let mut completions = Vec::new();
    bench.queue.poll(1, &mut completions);
    for mut completion in completions {
        completion.result = Err(IoError::new(IoErrorKind::Gone));
        completion.data.frames.drain(..).for_each(std::mem::forget);
        bench.run(|tags, turn| tags.finish(completion, turn));
    }
    bench.frames = 1;
    bench.start(1, READ, 0, vec![0; 2 * FRAME_SIZE]);
    bench.start(2, READ, 0, vec![0; BLOCK]);
    assert_eq!(bench.finish(), [(0, -libc::ENODEV), (1, -libc::EIO), (2, BLOCK as i32)]);
}

#[test]
fn a_refusal_is_an_errno_except_full_which_is_later() {
    let expected = [
        (Refusal::Full, None),
        (Refusal::OutOfRange, Some(libc::EIO)),
        (Refusal::BadLength, Some(libc::EINVAL)),
        (Refusal::BadFrames, Some(libc::EINVAL)),
        (Refusal::Unsupported, Some(libc::EOPNOTSUPP)),
        (Refusal::ReadOnly, Some(libc::EROFS)),
        (Refusal::Failed, Some(libc::EIO)),
    ];
    for (reason, errno) in expected {
        let mut bench = Bench::new(DEPTH, 32);
        bench.queue.refuse = Some(reason);
        bench.start(0, WRITE, 0, vec![1; BLOCK]);
        match errno {
            Some(errno) => assert_eq!(bench.finish(), [(0, -errno)], "{reason:?}"),
            None => {
                assert!(bench.tags.anyone_waits());
                bench.queue.refuse = None;
                bench.turn(usize::MAX);
                assert_eq!(bench.finish(), [(0, BLOCK as i32)]);
            }
        }
    }
}

#[test]
fn new_io_can_be_failed_while_what_is_in_flight_goes_on() {
    let mut bench = Bench::new(DEPTH, 32);
    bench.start(0, WRITE, 0, vec![1; BLOCK]);
    bench.fail_new_io = true;
    bench.start(1, READ, 0, vec![0; BLOCK]);
    bench.start_blocks(2, FLUSH, 0, 0, vec![]);
    assert_eq!(bench.finish(), [(0, BLOCK as i32), (1, -libc::EIO), (2, -libc::EIO)]);
}

#[test]
fn an_answer_that_nobody_waits_for_is_counted_and_dropped() {
    let mut bench = Bench::new(DEPTH, 32);
    let stale = |slot, generation| Completion {
        token: Token { slot, generation },
        result: Ok(()),
        data: SgList::empty(),
    };
    bench.start(0, READ, 0, vec![0; BLOCK]);
    // Idle, in flight under another generation, out of range.
    for completion in [stale(1, 0), stale(0, 1), stale(u32::MAX, 0)] {
        bench.run(|tags, turn| tags.finish(completion, turn));
    }
    assert_eq!(bench.kernel.results, []);
    assert_eq!(bench.finish().len(), 1);
    bench.run(|tags, turn| tags.finish(stale(0, 0), turn));
    let mut total = crate::ublk::ServerStats::new();
    bench.stats.add_to(&mut total);
    assert_eq!(total.unexpected, 4);
    assert_eq!(bench.kernel.results, []);
}

#[test]
fn a_tag_that_is_held_or_does_not_exist_takes_no_request() {
    let mut bench = Bench::new(1, 32);
    bench.start(0, READ, 0, vec![0; BLOCK]);
    bench.start(1, READ, 0, vec![0; BLOCK]);
    let descriptor = Descriptor { op_flags: FLUSH, sectors: 0, start_sector: 0 };
    for tag in [0, 1, DEPTH, u16::MAX] {
        let refused = bench.run(|tags, turn| tags.start(tag, descriptor, turn));
        assert_eq!(refused, Err(BadTag(tag)));
    }
    assert_eq!(bench.finish().len(), 2);
}

#[test]
fn reads_give_what_acknowledged_writes_left_whatever_is_short() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let least = SgList::frames_for(0, IO_MAX as usize);
    for (device_depth, frames) in [(DEPTH, 64), (2, 64), (DEPTH, least), (1, least)] {
        let mut bench = Bench::new(device_depth, frames);
        let mut disk = vec![0u8; (BLOCKS as usize) * BLOCK];
        let lane = BLOCKS / u64::from(DEPTH);
        for _ in 0..500 {
            // Each tag works in a part of the disk of its own, so that requests do not race.
            let mut expected = Vec::new();
            for tag in 0..DEPTH {
                let start = u64::from(tag) * lane + random.u64(..lane / 2);
                let blocks = random.usize(1..=(IO_MAX as usize / BLOCK).min(lane as usize / 2));
                let range = start as usize * BLOCK..(start as usize + blocks) * BLOCK;
                let bytes = (blocks * BLOCK) as i32;
                match random.u8(..5) {
                    0 | 1 => {
                        random.fill(&mut disk[range.clone()]);
                        bench.start(tag, WRITE | random.u32(..2) << 13, start, disk[range].into());
                        expected.push((tag, bytes));
                    }
                    2 => {
                        disk[range].fill(0);
                        bench.start_blocks(tag, ZEROES, start, blocks as u32, vec![]);
                        expected.push((tag, 0));
                    }
                    3 => {
                        bench.start_blocks(tag, FLUSH, 0, 0, vec![]);
                        expected.push((tag, 0));
                    }
                    _ => {
                        let noise = disk[range].iter().map(|byte| !byte).collect();
                        bench.start(tag, READ, start, noise);
                        expected.push((tag, bytes));
                    }
                }
                if random.bool() {
                    bench.turn(random.usize(..3));
                }
            }
            assert_eq!(bench.finish(), expected, "seed {seed}");
        }
        for tag in 0..DEPTH {
            let at = u64::from(tag) * lane;
            for part in (at..at + lane).step_by(IO_MAX as usize / BLOCK) {
                bench.start(tag, READ, part, vec![0xff; IO_MAX as usize]);
                bench.finish();
                let range = part as usize * BLOCK..part as usize * BLOCK + IO_MAX as usize;
                assert!(bench.kernel.pages[&tag] == disk[range], "at {part}, seed {seed}");
            }
        }
        drop(bench.tags);
        drop(bench.queue);
        assert_eq!(bench.device.pool().free_frames(), frames, "frames went back to the pool");
    }
}
