//! Discards and write-zeroes of more than a portion: what else a lane has goes on meanwhile, and one that
//! stops between two portions leaves nothing half done.

mod common;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use common::rig::{PAGE, READ, Rig, WRITE, page};
use uaio_driver::block::{Armed, PollsAnyway};
use uaio_driver::{
    BlockDevice, Capabilities, Completion, DeviceError, DmaPool, Geometry, Health, IoError,
    IoErrorKind, IoQueue, Op, PoolOptions, QueueOptions, Refused, Request, Token,
};
use uaio_page_cache::{Buffer, Cache, CacheOptions, Cancelled, Flusher, Lane, OpKind, Operation};

const CANCELLED: IoError = IoError::new(IoErrorKind::Cancelled);
const ZEROES: OpKind = OpKind::WriteZeroes { may_unmap: false };
/// Pages of a portion.
const PORTION: u64 = 8192;

/// A device of a tebibyte that keeps nothing: it answers everything, and notes how long the discards were.
#[derive(Clone)]
struct Void {
    pool: DmaPool,
    discards: Arc<Mutex<Vec<u32>>>,
}

const VOID_BYTES: u64 = 1 << 40;

impl BlockDevice for Void {
    fn name(&self) -> &str {
        "void"
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            block_size: 512,
            blocks: VOID_BYTES / 512,
            transfer_max_bytes: 128 << 10,
            discard_max_blocks: u32::MAX,
            write_zeroes_max_blocks: u32::MAX,
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            volatile_cache: true,
            fua: false,
            read_only: false,
            queues_max: 8,
            depth_max: 64,
        }
    }

    fn pool(&self) -> &DmaPool {
        &self.pool
    }

    fn health(&self) -> Health {
        Health::Good
    }

    fn open_queue(&self, options: QueueOptions) -> Result<Box<dyn IoQueue>, DeviceError> {
        Ok(Box::new(VoidQueue {
            discards: Arc::clone(&self.discards),
            depth: usize::from(options.depth),
            answers: VecDeque::new(),
        }))
    }

    fn close(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

struct VoidQueue {
    discards: Arc<Mutex<Vec<u32>>>,
    depth: usize,
    answers: VecDeque<Completion>,
}

impl IoQueue for VoidQueue {
    fn submit(&mut self, request: Request) -> Result<(), Refused> {
        if request.op == Op::Discard {
            self.discards.lock().unwrap().push(request.blocks);
        }
        let Request { token, data, .. } = request;
        self.answers.push_back(Completion { token, result: Ok(()), data });
        Ok(())
    }

    fn commit(&mut self) {}

    fn poll(&mut self, budget: usize, out: &mut Vec<Completion>) -> usize {
        let count = budget.min(self.answers.len());
        out.extend(self.answers.drain(..count));
        count
    }

    fn in_flight(&self) -> usize {
        self.answers.len()
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn arm(&mut self) -> Armed {
        if self.answers.is_empty() { Armed::Yes } else { Armed::Ready }
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[test]
fn the_lane_of_a_discard_of_a_tebibyte_does_other_things_between_its_portions() {
    let pool = DmaPool::new(PoolOptions::frames(80)).unwrap();
    let device = Void { pool, discards: Arc::default() };
    let cache = Cache::new(Arc::new(device.clone()), CacheOptions::frames(64)).unwrap();
    let _flusher = Flusher::new(Arc::clone(&cache), 16, Arc::new(PollsAnyway)).unwrap();
    let mut lane = Lane::new(Arc::clone(&cache), 4, 16, Arc::new(PollsAnyway)).unwrap();
    let handle = cache.open();
    let start = |lane: &mut Lane, id: u64, kind, offset, buffer: Buffer| {
        let len = if kind == OpKind::Discard { VOID_BYTES } else { buffer.len() as u64 };
        let (token, handle) = (Token::from_u64(id), Arc::clone(&handle));
        assert!(lane.start(Operation { token, kind, offset, len, buffer, handle }).is_ok());
    };
    start(&mut lane, 1, OpKind::Discard, 0, Buffer::None);
    // At the end, which the discard comes to last, and at the beginning, where it is now.
    let far = VOID_BYTES - PAGE;
    start(&mut lane, 2, WRITE, far, Buffer::Bytes(page(2)));
    start(&mut lane, 3, READ, PAGE, Buffer::Bytes(page(3)));
    start(&mut lane, 4, READ, far - PAGE, Buffer::Bytes(page(4)));
    let mut done = Vec::new();
    for _ in 0..8 {
        lane.turn();
        done.extend(std::iter::from_fn(|| lane.pop_finished()).map(|it| (it.token, it.result)));
    }
    done.sort_unstable_by_key(|(token, _)| token.to_u64());
    assert_eq!(done, [2, 3, 4].map(|id| (Token::from_u64(id), Ok(()))), "in eight turns");
    let portion_blocks = (PORTION * PAGE / 512) as u32;
    let sent = device.discards.lock().unwrap().clone();
    assert!(sent.len() >= 4, "it goes on meanwhile: {sent:?}");
    assert!(sent.len() <= 32, "more than a few portions a turn: {sent:?}");
    assert!(sent.iter().all(|blocks| *blocks == portion_blocks), "{sent:?}");
    // It is always under way, and it is not asleep.
    assert_eq!(lane.in_flight(), 1);
    assert_eq!(lane.arm(), Armed::Ready);
    // Cancelled, it is answered once, sends nothing more, and blocks nobody.
    let outcome = lane.cancel(Token::from_u64(1));
    assert!(matches!(outcome, Cancelled::Finished | Cancelled::RunsOn), "{outcome:?}");
    let sent = device.discards.lock().unwrap().len();
    let mut answers = Vec::new();
    for _ in 0..8 {
        lane.turn();
        answers.extend(std::iter::from_fn(|| lane.pop_finished()).map(|it| it.result));
    }
    assert_eq!(answers, [Err(CANCELLED)]);
    assert_eq!(device.discards.lock().unwrap().len(), sent);
    assert_eq!(lane.in_flight(), 0);
    start(&mut lane, 5, READ, PORTION * PAGE * 40, Buffer::Bytes(page(5)));
    (0..4).for_each(|_| _ = lane.turn());
    assert_eq!(lane.pop_finished().map(|it| it.result), Some(Ok(())));
}

/// Eight pages on each side of where a portion ends, with two more around them.
const ZEROED: std::ops::Range<u64> = PORTION - 8..PORTION + 8;
const WRITTEN: std::ops::Range<u64> = PORTION - 10..PORTION + 10;

/// What a page holds before the zeroes.
fn before(at: u64) -> u8 {
    if at.is_multiple_of(3) { 7 } else { 5 }
}

/// All pages are stable with 5, every third is dirty with 7, and zeroes are so many turns under way.
fn begun(turns: usize) -> Rig {
    let mut rig = Rig::sized(WRITTEN.end * PAGE, CacheOptions::frames(64));
    for at in WRITTEN {
        assert_eq!(rig.run(WRITE, at * PAGE, page(5)).0, Ok(()));
    }
    assert_eq!(rig.flush(), Ok(()));
    for at in WRITTEN.filter(|at| before(*at) == 7) {
        assert_eq!(rig.run(WRITE, at * PAGE, page(7)).0, Ok(()));
    }
    let len = (ZEROED.end - ZEROED.start) * PAGE;
    rig.start(1, ZEROES, ZEROED.start * PAGE, vec![0; len as usize]);
    rig.turns(turns);
    rig
}

/// Whether every sector of a page is wholly one of these.
fn is_of(bytes: &[u8], allowed: &[u8]) -> bool {
    let whole =
        |sector: &[u8]| allowed.contains(&sector[0]) && sector.iter().all(|it| *it == sector[0]);
    bytes.chunks(512).all(whole)
}

#[test]
fn zeroes_cancelled_between_portions_are_answered_once_and_leave_each_block_old_or_zero() {
    let mut between = 0;
    for turns in 0.. {
        let mut rig = begun(turns);
        let over = rig.result(1).is_some();
        let outcome = rig.cancel(0, 1);
        assert_eq!(outcome == Cancelled::Unknown, over, "after {turns} turns: {outcome:?}");
        let result = rig.wait(1).0;
        if outcome == Cancelled::Finished {
            assert_eq!(result, Err(CANCELLED));
        }
        rig.turns(20);
        assert_eq!(rig.result(1), None, "after {turns} turns it was answered twice");
        assert_eq!((rig.cache.frames_lent(), rig.lanes[0].in_flight()), (0, 0));
        let mut zero = Vec::new();
        let mut read = Vec::new();
        for at in WRITTEN {
            let (result, bytes) = rig.run(READ, at * PAGE, page(0xee));
            assert_eq!(result, Ok(()), "after {turns} turns");
            let allowed = if ZEROED.contains(&at) { &[0, before(at)][..] } else { &[before(at)] };
            assert!(is_of(&bytes, allowed), "page {at} after {turns} turns: {}", bytes[0]);
            zero.push(bytes == page(0));
            read.extend(bytes);
        }
        if result == Ok(()) {
            assert_eq!(zero.iter().filter(|it| **it).count(), 16, "after {turns} turns");
        }
        between += u32::from(zero[2..10] == [true; 8] && zero[10..18] == [false; 8]);
        // What the cache shows is what a flush makes stable.
        assert_eq!(rig.flush(), Ok(()));
        let image = rig.device.crash();
        assert_eq!(image[(WRITTEN.start * PAGE) as usize..], read, "after {turns} turns");
        if over {
            break;
        }
    }
    assert!(between > 0, "no cancellation came between the portions");
}

#[test]
fn a_crash_between_portions_leaves_each_block_old_or_zero_and_its_neighbours_alone() {
    let mut between = 0;
    for turns in 0.. {
        let mut rig = begun(turns);
        let over = rig.result(1).is_some();
        for seed in 0..4 {
            let image = rig.device.crash_image(seed);
            for at in WRITTEN {
                let bytes = &image[(at * PAGE) as usize..][..PAGE as usize];
                // 7 is not stable yet, and may be all the same.
                let allowed = if ZEROED.contains(&at) { &[0, 5, 7][..] } else { &[5, 7] };
                let allowed = allowed.iter().filter(|it| **it != 7 || before(at) == 7);
                let allowed: Vec<u8> = allowed.copied().collect();
                assert!(is_of(bytes, &allowed), "page {at} after {turns} turns: {}", bytes[0]);
            }
        }
        let medium = rig.device.medium_image();
        let is_zero = |at: u64| medium[(at * PAGE) as usize] == 0;
        between += u32::from(is_zero(PORTION - 1) && !is_zero(PORTION));
        if over {
            // Acknowledged, and then flushed: all of it is stable.
            assert_eq!(rig.flush(), Ok(()));
            let image = rig.device.crash();
            for at in WRITTEN {
                let bytes = &image[(at * PAGE) as usize..][..PAGE as usize];
                let expected = if ZEROED.contains(&at) { 0 } else { before(at) };
                assert_eq!(bytes, page(expected), "page {at}");
            }
            break;
        }
    }
    assert!(between > 0, "no crash came between the portions");
}
