//! The simulated device against its own promises. What may happen is as much a promise as what may
//! not: a device that never loses anything would prove nothing about the code above it.

use super::*;
use crate::block::Cancel;
use crate::conformance;
use crate::dma::PoolOptions;
use crate::request::{Completion, SgList};
use crate::slots::Token;

const BLOCK_SIZE: usize = 1024;
const BLOCKS: usize = 16;

struct Bench {
    device: SimDevice,
    queue: Box<dyn IoQueue>,
    next: u64,
}

impl Bench {
    fn new(options: SimOptions, seed: u64) -> Self {
        let pool = DmaPool::new(PoolOptions::frames(64)).unwrap();
        let device = SimDevice::new(options, seed, pool).unwrap();
        let queue = device.open_queue(QueueOptions::polled(32)).unwrap();
        Self { device, queue, next: 0 }
    }

    fn small(seed: u64) -> Self {
        Self::new(SimOptions::sized((BLOCKS * BLOCK_SIZE) as u64, BLOCK_SIZE as u32), seed)
    }

    fn submit(&mut self, op: Op, block: u64, blocks: u32, value: u8) -> Token {
        self.next += 1;
        let token = Token::from_u64(self.next);
        let len_bytes = blocks as usize * BLOCK_SIZE;
        let data = match op.has_data() {
            true => {
                let take = |_| self.device.pool().take().expect("a free frame");
                let data = SgList::new((0..SgList::frames_for(0, len_bytes)).map(take).collect());
                data.copy_from_slice(0, &vec![value; len_bytes]);
                data
            }
            false => SgList::empty(),
        };
        self.queue.submit(Request { token, op, lba: Lba(block), blocks, data }).expect("taken");
        self.queue.commit();
        token
    }

    fn write(&mut self, block: u64, value: u8) -> Token {
        self.submit(Op::Write { fua: false }, block, 1, value)
    }

    fn flush(&mut self) -> Token {
        self.submit(Op::Flush, 0, 0, 0)
    }

    /// Polls until nothing is in flight or nothing more comes.
    fn settle(&mut self) -> Vec<Completion> {
        let mut out = Vec::new();
        for _ in 0..1000 {
            self.queue.poll(32, &mut out);
        }
        out
    }

    /// One request from start to end.
    fn one(&mut self, op: Op, block: u64, blocks: u32, value: u8) -> IoResult {
        let token = self.submit(op, block, blocks, value);
        let done = self.settle();
        let answer = done.iter().find(|done| done.token == token).expect("an answer");
        answer.result
    }
}

fn block_of(image: &[u8], block: usize) -> &[u8] {
    &image[block * BLOCK_SIZE..][..BLOCK_SIZE]
}

#[test]
fn conforms_whatever_the_seed_and_the_capabilities() {
    for seed in 0..12 {
        let block_size = [512, 1024, 2048, 4096][seed as usize % 4];
        let mut options = SimOptions::sized(4 << 20, block_size);
        options.capabilities.volatile_cache = seed % 3 != 0;
        options.capabilities.fua = seed % 5 != 0;
        options.capabilities.queues_max = 1 + seed as u16 % 4;
        options.geometry.transfer_max_bytes = [4096, 64 << 10, 1 << 20][seed as usize % 3];
        let pool = DmaPool::new(PoolOptions::frames(1024)).unwrap();
        let device = SimDevice::new(options, seed, pool).unwrap();
        conformance::run_seeded(&device, seed);
        device.close().unwrap();
        assert_eq!(device.durable_image(), device.medium_image(), "closed and not stable");
    }
}

/// Random writes, zeroes and flushes, several in flight; the power fails after each operation in
/// turn. The oracle knows for each block which values it may have.
#[test]
fn a_crash_loses_nothing_stable_and_shows_nothing_never_written() {
    for seed in 0..4 {
        let mut last = 0;
        loop {
            let (operations, stopped) = crash_once(seed, last);
            if !stopped {
                assert!(operations <= last);
                break;
            }
            last += 1;
        }
        assert!(last > 100, "only {last} crash points");
    }
}

/// What a block may hold after a crash: the newest stable value, and every one since.
#[derive(Clone)]
struct Possible {
    values: Vec<u8>,
    /// How many of `values` had completed.
    completed: usize,
}

fn crash_once(seed: u64, last: u64) -> (u64, bool) {
    let mut bench = Bench::small(seed);
    bench.device.crash_after(last);
    let mut random = Rng::with_seed(seed ^ 0x5eed);
    let mut blocks = vec![Possible { values: vec![0], completed: 1 }; BLOCKS];
    let mut value = 0u8;
    // Token → what it was: a write of a block, or a flush with what had completed of each block.
    let mut writes: Vec<(Token, usize, Op)> = Vec::new();
    let mut flushes: Vec<(Token, Vec<u8>)> = Vec::new();
    let mut out = Vec::new();
    for _ in 0..120 {
        let block = random.usize(..BLOCKS);
        let busy = writes.iter().any(|(_, at, _)| *at == block);
        if bench.queue.in_flight() == bench.queue.depth() {
            // After the crash nothing comes back.
        } else if random.u8(..5) == 0 {
            let stable = blocks.iter().map(|one| one.values[one.completed - 1]).collect();
            flushes.push((bench.flush(), stable));
        } else if !busy {
            let op = match random.u8(..6) {
                0 => Op::WriteZeroes { may_unmap: true },
                1 => Op::Write { fua: true },
                _ => Op::Write { fua: false },
            };
            value += 1;
            let written = if op.has_data() { value } else { 0 };
            let token = bench.submit(op, block as u64, 1, written);
            blocks[block].values.push(written);
            writes.push((token, block, op));
        }
        bench.queue.poll(random.usize(..4), &mut out);
        for done in out.drain(..) {
            assert_eq!(done.result, Ok(()));
            if let Some(at) = writes.iter().position(|(token, ..)| *token == done.token) {
                let (_, block, op) = writes.swap_remove(at);
                let possible = &mut blocks[block];
                possible.completed = possible.values.len();
                if op == (Op::Write { fua: true }) {
                    possible.values.drain(..possible.values.len() - 1);
                    possible.completed = 1;
                }
            } else {
                let at = flushes.iter().position(|(token, _)| *token == done.token);
                let (_, stable) = flushes.swap_remove(at.expect("an answer to something asked"));
                for (possible, stable) in blocks.iter_mut().zip(stable) {
                    // Gone already when a later flush or a FUA write ended before this flush.
                    let at = possible.values.iter().rposition(|value| *value == stable);
                    if let Some(at) = at.filter(|at| *at < possible.completed) {
                        // Zero comes up more than once: keep to the oldest reading of it.
                        let at = if stable == 0 { 0 } else { at };
                        possible.values.drain(..at);
                        possible.completed -= at;
                    }
                }
            }
        }
    }
    let stopped = bench.device.is_stopped();
    for outcome in 0..3 {
        let image = bench.device.crash();
        for (block, possible) in blocks.iter().enumerate() {
            for sector in block_of(&image, block).chunks(512) {
                let whole = sector.iter().all(|byte| *byte == sector[0]);
                assert!(
                    whole && possible.values.contains(&sector[0]),
                    "block {block} has {} after a crash at operation {last}, outcome {outcome} \
                     (seed {seed}); possible are {:?}",
                    sector[0],
                    possible.values
                );
            }
        }
    }
    (bench.device.operations(), stopped)
}

#[test]
fn a_completed_write_without_fua_may_be_lost_kept_or_torn() {
    let mut bench = Bench::small(1);
    assert_eq!(bench.one(Op::Write { fua: false }, 3, 1, 9), Ok(()));
    let mut seen: Vec<(u8, u8)> = (0..100)
        .map(|seed| {
            let image = bench.device.crash_image(seed);
            (block_of(&image, 3)[0], block_of(&image, 3)[512])
        })
        .collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [(0, 0), (0, 9), (9, 0), (9, 9)]);
}

#[test]
fn a_write_that_completes_after_the_flush_was_submitted_may_be_lost() {
    for seed in 0..50 {
        let mut bench = Bench::small(seed);
        assert_eq!(bench.one(Op::Write { fua: false }, 0, 1, 1), Ok(()));
        bench.flush();
        bench.write(1, 2);
        let done = bench.settle();
        assert_eq!(done.len(), 2);
        let durable = bench.device.durable_image();
        assert_eq!((durable[0], durable[BLOCK_SIZE]), (1, 0), "seed {seed}");
    }
}

#[test]
fn fua_makes_its_own_blocks_durable_and_no_others() {
    let mut bench = Bench::small(1);
    assert_eq!(bench.one(Op::Write { fua: false }, 0, 1, 1), Ok(()));
    assert_eq!(bench.one(Op::Write { fua: true }, 1, 1, 2), Ok(()));
    let durable = bench.device.durable_image();
    assert_eq!((durable[0], durable[BLOCK_SIZE]), (0, 2));
}

#[test]
fn without_native_fua_the_flush_behind_the_write_can_fail() {
    let mut options = SimOptions::sized((BLOCKS * BLOCK_SIZE) as u64, BLOCK_SIZE as u32);
    options.capabilities.fua = false;
    let mut bench = Bench::new(options, 1);
    let error = IoError::new(IoErrorKind::Device);
    bench.device.set_fault(Fault::new(FaultOn::Flushes, Effect::Fail(error)).times(1));
    assert_eq!(bench.one(Op::Write { fua: true }, 0, 1, 1), Err(error));
    assert_eq!((bench.device.medium_image()[0], bench.device.durable_image()[0]), (1, 0));
    assert_eq!(bench.one(Op::Write { fua: true }, 0, 1, 2), Ok(()));
    assert_eq!(bench.device.durable_image()[0], 2);
}

#[test]
fn without_a_volatile_cache_a_completed_write_is_durable() {
    let mut options = SimOptions::sized((BLOCKS * BLOCK_SIZE) as u64, BLOCK_SIZE as u32);
    options.capabilities.volatile_cache = false;
    let mut bench = Bench::new(options, 1);
    assert_eq!(bench.one(Op::Write { fua: false }, 0, 1, 1), Ok(()));
    assert_eq!(bench.device.durable_image()[0], 1);
}

#[test]
fn completions_are_delayed_and_reordered_and_replayed_from_the_seed() {
    let run = |seed| {
        let mut bench = Bench::small(seed);
        (0..16).for_each(|block| {
            bench.write(block, 1);
        });
        let tokens: Vec<_> = bench.settle().iter().map(|done| done.token).collect();
        (tokens, bench.device.log())
    };
    assert_eq!(run(7), run(7));
    let (tokens, log) = run(7);
    assert!(!tokens.is_sorted(), "{tokens:?}");
    assert!(log.last().unwrap().step > 2, "{log:?}");
    assert_ne!(run(7).0, run(8).0);
}

#[test]
fn a_fault_fails_what_it_names_and_heals_when_its_times_are_used_up() {
    let mut bench = Bench::small(3);
    let media = IoError { kind: IoErrorKind::Media, status: 0x4281, do_not_retry: true };
    bench.device.set_fault(Fault::new(FaultOn::Writes, Effect::Fail(media)).at(4..5).times(2));
    assert_eq!(bench.one(Op::Write { fua: false }, 3, 1, 1), Ok(()));
    assert_eq!(bench.one(Op::Read, 4, 1, 0), Ok(()));
    assert_eq!(bench.one(Op::Write { fua: false }, 4, 1, 1), Err(media));
    assert_eq!(bench.one(Op::Write { fua: false }, 2, 4, 1), Err(media));
    assert_eq!(block_of(&bench.device.medium_image(), 4), [0; BLOCK_SIZE], "bad and written");
    assert_eq!(bench.one(Op::Write { fua: false }, 4, 1, 1), Ok(()));
    let counts = bench.device.counts();
    assert_eq!((counts.writes, counts.reads, counts.failed), (4, 1, 2));
}

#[test]
fn a_failed_flush_promises_nothing_and_the_next_covers_it() {
    let mut bench = Bench::small(3);
    let error = IoError::new(IoErrorKind::Device);
    let fault = bench.device.set_fault(Fault::new(FaultOn::Flushes, Effect::Fail(error)));
    assert_eq!(bench.one(Op::Write { fua: false }, 0, 1, 1), Ok(()));
    assert_eq!(bench.one(Op::Flush, 0, 0, 0), Err(error));
    assert_eq!(bench.device.durable_image()[0], 0);
    bench.device.clear_fault(fault);
    assert_eq!(bench.one(Op::Flush, 0, 0, 0), Ok(()));
    assert_eq!(bench.device.durable_image()[0], 1);
}

#[test]
fn a_stuck_request_is_answered_when_it_is_released() {
    let mut bench = Bench::small(3);
    let fault = bench.device.set_fault(Fault::new(FaultOn::Reads, Effect::Stuck).times(1));
    let stuck = bench.submit(Op::Read, 0, 1, 0);
    assert!(bench.settle().is_empty());
    assert_eq!(bench.one(Op::Read, 0, 1, 0), Ok(()), "only one was to hang");
    bench.device.clear_fault(fault);
    let done = bench.settle();
    assert_eq!((done.len(), done[0].token, done[0].result), (1, stuck, Ok(())));
}

#[test]
fn what_is_stuck_can_be_cancelled_and_is_answered_once() {
    let mut bench = Bench::small(3);
    bench.device.set_fault(Fault::new(FaultOn::Reads, Effect::Stuck).times(2));
    let stuck = [(); 2].map(|()| bench.submit(Op::Read, 0, 1, 0));
    assert_eq!(bench.queue.cancel(stuck[0]), Cancel::Asked);
    let done = bench.settle();
    let cancelled = Err(IoError::new(IoErrorKind::Cancelled));
    assert_eq!((done.len(), done[0].token, done[0].result), (1, stuck[0], cancelled));
    assert_eq!(bench.queue.cancel(stuck[0]), Cancel::NotFound);
    assert_eq!(bench.queue.in_flight(), 1, "the other one is as it was");
}

#[test]
fn a_slow_request_takes_its_extra_steps() {
    let mut bench = Bench::small(3);
    bench.device.set_fault(Fault::new(FaultOn::Everything, Effect::Slow { steps: 100 }));
    bench.write(0, 1);
    let mut out = Vec::new();
    for step in 0..100 {
        assert_eq!(bench.queue.poll(1, &mut out), 0, "step {step}");
    }
    assert_eq!(bench.settle().len(), 1);
}

#[test]
fn a_device_that_is_gone_fails_everything_also_what_was_stuck() {
    let mut bench = Bench::small(3);
    bench.device.set_fault(Fault::new(FaultOn::Reads, Effect::Stuck));
    bench.submit(Op::Read, 0, 1, 0);
    bench.device.unplug();
    bench.write(1, 1);
    let gone = Err(IoError::new(IoErrorKind::Gone));
    let results: Vec<_> = bench.settle().iter().map(|done| done.result).collect();
    assert_eq!(results, [gone, gone]);
    assert_eq!(bench.device.health(), Health::Failed(IoError::new(IoErrorKind::Gone)));
    assert_eq!(bench.device.medium_image()[BLOCK_SIZE], 0);
}

#[test]
fn a_drive_that_cannot_be_stopped_keeps_the_frames_of_some_requests_and_writes_into_those_of_reads()
{
    let sized = SimOptions::sized((BLOCKS * BLOCK_SIZE) as u64, BLOCK_SIZE as u32);
    let mut bench = Bench::new(SimOptions { keeps_frames: true, ..sized }, 5);
    let free = bench.device.pool().free_frames();
    bench.device.set_fault(Fault::new(FaultOn::Everything, Effect::Stuck));
    (0..8).for_each(|block| _ = bench.submit(Op::Read, block, 1, 0));
    (8..16).for_each(|block| _ = bench.write(block, 1));
    assert_eq!(bench.device.frames_kept(), 0);
    bench.device.unplug();
    // What is sent later never gets there.
    bench.write(0, 1);
    let ended = bench.settle();
    let gone = Err(IoError::new(IoErrorKind::Gone));
    assert!(ended.len() == 17 && ended.iter().all(|done| done.result == gone));
    let back = ended.iter().filter(|done| !done.data.frames.is_empty()).count();
    assert!((2..16).contains(&back), "{back} came back");
    drop(ended);
    let kept = bench.device.frames_kept();
    assert_eq!((kept + back, bench.device.pool().free_frames()), (17, free - kept));
    // A handle of a read's frame that its user kept: the drive writes on.
    let shared = bench.device.shared.lock().kept_to_write[0].share();
    let mut seen = [[0; FRAME_SIZE]; 2];
    shared.read(0, &mut seen[0]);
    bench.queue.poll(1, &mut Vec::new());
    shared.read(0, &mut seen[1]);
    assert!(seen[0] != seen[1], "it stopped");
}

#[test]
fn after_a_crash_nothing_is_answered_and_the_queue_still_gives_its_frames_back() {
    let mut bench = Bench::small(3);
    let free = bench.device.pool().free_frames();
    bench.write(0, 1);
    bench.device.crash();
    bench.write(1, 1);
    assert!(bench.settle().is_empty());
    assert_eq!(bench.queue.in_flight(), 2);
    let image = bench.device.medium_image();
    let Bench { device, queue, .. } = bench;
    drop(queue);
    assert_eq!(device.pool().free_frames(), free);
    assert_eq!(device.medium_image(), image, "a device without power wrote");
}

#[test]
fn a_device_boots_from_what_a_crash_left() {
    let mut bench = Bench::small(3);
    assert_eq!(bench.one(Op::Write { fua: true }, 5, 1, 8), Ok(()));
    let options = SimOptions::sized((BLOCKS * BLOCK_SIZE) as u64, BLOCK_SIZE as u32);
    let pool = DmaPool::new(PoolOptions::frames(1)).unwrap();
    let device = SimDevice::from_image(options, bench.device.crash(), 4, pool).unwrap();
    assert_eq!(block_of(&device.medium_image(), 5), [8; BLOCK_SIZE]);
}

#[test]
#[should_panic(expected = "a frame was written while a write of Lba(2), 1 blocks, was in flight")]
fn a_frame_written_in_flight_is_found_out() {
    let mut bench = Bench::small(3);
    let frame = bench.device.pool().take().unwrap();
    let data = SgList::new(vec![frame.share()]);
    bench.queue.submit(Request::write(Token::from_u64(1), Lba(2), 1, data, false)).unwrap();
    bench.queue.commit();
    frame.write(0, &[0xee; 16]);
    bench.settle();
}

#[test]
fn a_read_in_flight_and_a_failed_read_leave_noise() {
    let mut bench = Bench::small(3);
    let error = IoError::new(IoErrorKind::Media);
    bench.device.set_fault(Fault::new(FaultOn::Reads, Effect::Fail(error)));
    bench.submit(Op::Read, 0, 1, 5);
    let done = bench.settle();
    let mut bytes = [0; BLOCK_SIZE];
    done[0].data.copy_to_slice(0, &mut bytes);
    assert!(bytes != [5; BLOCK_SIZE] && bytes != [0; BLOCK_SIZE], "the old frame still shows");
}

#[test]
fn options_that_no_device_has_are_refused() {
    let pool = DmaPool::new(PoolOptions::frames(1)).unwrap();
    let try_new = |change: fn(&mut SimOptions)| {
        let mut options = SimOptions::sized(1 << 20, 4096);
        change(&mut options);
        SimDevice::new(options, 1, pool.clone()).map(drop)
    };
    assert!(try_new(|_| {}).is_ok());
    assert!(try_new(|options| options.geometry.block_size = 520).is_err());
    assert!(try_new(|options| options.geometry.blocks = 0).is_err());
    assert!(try_new(|options| options.geometry.blocks = u64::MAX).is_err());
    assert!(try_new(|options| options.geometry.transfer_max_bytes = 512).is_err());
    assert!(try_new(|options| options.capabilities.queues_max = 0).is_err());
    #[expect(clippy::reversed_empty_ranges, reason = "the mistake under test")]
    let backwards = try_new(|options| options.latency_steps = 3..=2);
    assert!(backwards.is_err());
}
