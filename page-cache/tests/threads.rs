//! Many lanes on many threads, sharing every page: bytes of one writer never disturb another's.
//!
//! The device is cut into slots of an odd number of bytes, dealt out to the threads in turn, so that
//! every block and page has several owners. Each thread writes its own slots, whole or in part,
//! aligned to nothing, and reads at random; the oracle is what it wrote. The cache is far smaller
//! than the device, so pages come and go all the time.
//!
//! `cargo ci stress` runs this under ThreadSanitizer. Direct reads are left out there: they and a
//! write may be at the same blocks of the device at once, which devices allow and which here, where
//! the device is memory, is a race.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::FlusherThread;
use uaio_driver::block::PollsAnyway;
use uaio_driver::ram::RamDevice;
use uaio_driver::sim::{Effect, Fault, FaultOn, SimDevice, SimOptions};
use uaio_driver::{DmaPool, FRAME_SIZE, IoErrorKind, PoolOptions, Token};
use uaio_page_cache::{
    Buffer, Cache, CacheMode, CacheOptions, Cancelled, Finished, Handle, Lane, OpKind, Operation,
};

const SIZE: usize = 256 << 10;
const SLOT: usize = 389;
const THREADS: usize = 4;

/// Whether reads go past the cache at times.
fn reads_directly() -> bool {
    std::env::var_os("UAIO_TSAN").is_none()
}

struct Worker {
    lane: Lane,
    handle: Arc<Handle>,
    random: fastrand::Rng,
    own: usize,
    bytes: Vec<u8>,
    seed: u64,
}

impl Worker {
    fn run(&mut self, kind: OpKind, offset: usize, buffer: Vec<u8>) -> Vec<u8> {
        let operation = Operation {
            token: Token::from_u64(1),
            kind,
            offset: offset as u64,
            len: buffer.len() as u64,
            buffer: Buffer::Bytes(buffer),
            handle: Arc::clone(&self.handle),
        };
        assert!(self.lane.start(operation).is_ok());
        let started = std::time::Instant::now();
        loop {
            if let Some(Finished { result, buffer, .. }) = self.lane.pop_finished() {
                assert_eq!(result, Ok(()), "{kind:?} at {offset} (seed {})", self.seed);
                match buffer {
                    Buffer::Bytes(bytes) => return bytes,
                    _ => return Vec::new(),
                }
            }
            if !self.lane.turn() {
                std::thread::yield_now();
            }
            assert!(started.elapsed().as_secs() < 60, "{kind:?} hung (seed {})", self.seed);
        }
    }

    fn step(&mut self) {
        let slots = SIZE / SLOT / THREADS;
        let slot = (self.random.usize(..slots) * THREADS + self.own) * SLOT;
        let from = slot + self.random.usize(..SLOT / 2);
        let len = self.random.usize(1..=slot + SLOT - from);
        match self.random.u8(..16) {
            0..8 => {
                let mut data = vec![0; len];
                self.random.fill(&mut data);
                self.bytes[from..from + len].copy_from_slice(&data);
                let stable = self.random.u8(..8) == 0;
                self.run(OpKind::Write { stable, direct: false }, from, data);
            }
            8 => {
                self.run(OpKind::Flush, 0, Vec::new());
            }
            9 => {
                // A long read over everybody's slots: ours must be right.
                let from = self.random.usize(..SIZE / 2);
                let direct = self.random.bool() && reads_directly();
                let got = self.run(OpKind::Read { direct }, from, vec![0; SIZE / 2]);
                self.check(from, &got);
            }
            _ => {
                let direct = self.random.u8(..4) == 0 && reads_directly();
                let got = self.run(OpKind::Read { direct }, from, vec![0; len]);
                self.check(from, &got);
            }
        }
    }

    fn check(&self, from: usize, got: &[u8]) {
        for (at, byte) in (from..).zip(got) {
            let owner = at / SLOT % THREADS;
            if owner == self.own && at < SIZE / SLOT / THREADS * THREADS * SLOT {
                assert_eq!(*byte, self.bytes[at], "byte {at} (seed {})", self.seed);
            }
        }
    }
}

fn stress(mode: CacheMode, frames: usize, shards: usize, block_size: u32) {
    let seed = fastrand::u64(..);
    println!(
        "{mode:?} with {frames} frames in {shards} shards, blocks of {block_size}: seed {seed}"
    );
    let pool = DmaPool::new(PoolOptions::frames(frames)).unwrap();
    let ram = Arc::new(RamDevice::new(SIZE as u64, block_size, pool).unwrap());
    let options = CacheOptions { mode, shards, ..CacheOptions::frames(frames) };
    let cache = Cache::new(ram, options).unwrap();
    let flusher = FlusherThread::start(&cache);
    std::thread::scope(|scope| {
        for own in 0..THREADS {
            let cache = Arc::clone(&cache);
            scope.spawn(move || {
                let lane = Lane::new(Arc::clone(&cache), 4, 4, Arc::new(PollsAnyway)).unwrap();
                let random = fastrand::Rng::with_seed(seed ^ own as u64);
                let bytes = vec![0; SIZE];
                let mut worker = Worker { lane, handle: cache.open(), random, own, bytes, seed };
                for _ in 0..1500 {
                    worker.step();
                }
            });
        }
    });
    cache.assert_sound();
    assert_eq!(cache.frames_lent(), 0, "frames were lost (seed {seed})");
    flusher.drain();
}

/// Tables that grow and shrink move pages to other slots, also those that somebody is writing to.
#[test]
fn a_page_that_is_written_to_while_the_tables_shrink_gets_its_bytes() {
    const PAGES: usize = 16;
    for mode in [CacheMode::Writeback, CacheMode::Writethrough] {
        let pool = DmaPool::new(PoolOptions::frames(2048)).unwrap();
        let ram = Arc::new(RamDevice::new(8 << 20, 512, pool).unwrap());
        let options = CacheOptions { mode, shards: 1, ..CacheOptions::frames(2048) };
        let cache = Cache::new(ram, options).unwrap();
        let flusher = FlusherThread::start(&cache);
        let written = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _ends = Ends(&written);
                let lane = Lane::new(Arc::clone(&cache), 4, 4, Arc::new(PollsAnyway)).unwrap();
                let (random, handle) = (fastrand::Rng::new(), cache.open());
                let mut worker =
                    Worker { lane, handle, random, own: 0, bytes: Vec::new(), seed: 0 };
                for round in 0..3000 {
                    let from =
                        worker.random.usize(..(8 << 20) / FRAME_SIZE / PAGES) * PAGES * FRAME_SIZE;
                    let bytes = vec![round as u8; PAGES * FRAME_SIZE];
                    worker.run(OpKind::Write { stable: false, direct: false }, from, bytes.clone());
                    let got =
                        worker.run(OpKind::Read { direct: false }, from, vec![0; bytes.len()]);
                    assert!(got == bytes, "round {round} reads something else at {from}");
                }
            });
            while !written.load(Ordering::Acquire) {
                cache.resize(64).unwrap();
                std::thread::sleep(Duration::from_micros(200));
                cache.resize(2048).unwrap();
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        cache.assert_sound();
        assert_eq!(cache.frames_lent(), 0, "frames were lost");
        flusher.drain();
    }
}

/// Says that a thread has ended, also one that panics.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn bytes_of_one_writer_never_disturb_another_in_writeback() {
    stress(CacheMode::Writeback, 16, 1, 512);
    stress(CacheMode::Writeback, 64, 4, 512);
    stress(CacheMode::Writeback, 32, 2, 4096);
}

#[test]
fn bytes_of_one_writer_never_disturb_another_in_writethrough() {
    stress(CacheMode::Writethrough, 16, 1, 512);
    stress(CacheMode::Writethrough, 64, 2, 1024);
}

#[test]
fn bytes_of_one_writer_never_disturb_another_without_a_cache() {
    if reads_directly() {
        stress(CacheMode::None, 16, 1, 512);
    }
}

/// They all wait for one read of one page; it ends while a third of them is being cancelled.
#[test]
fn thousands_who_wait_for_one_page_are_each_answered_once() {
    const WAITERS: u64 = 1000;
    let pool = DmaPool::new(PoolOptions::frames(64)).unwrap();
    let device = SimDevice::new(SimOptions::sized(1 << 20, 512), 1, pool).unwrap();
    let cache = Cache::new(Arc::new(device.clone()), CacheOptions::frames(64)).unwrap();
    let open =
        |operations| Lane::new(Arc::clone(&cache), operations, 4, Arc::new(PollsAnyway)).unwrap();
    let start = |lane: &mut Lane, id| {
        let (token, handle) = (Token::from_u64(id), cache.open());
        let (kind, buffer) = (OpKind::Read { direct: false }, Buffer::Bytes(vec![1; 512]));
        let operation = Operation { token, kind, offset: 0, len: 512, buffer, handle };
        assert!(lane.start(operation).is_ok());
    };
    device.set_fault(Fault::new(FaultOn::Reads, Effect::Stuck));
    let mut first = open(1);
    start(&mut first, 0);
    first.turn();
    let barrier = std::sync::Barrier::new(THREADS + 1);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let mut lane = open(WAITERS as usize);
            let (barrier, start) = (&barrier, &start);
            scope.spawn(move || {
                (0..WAITERS).for_each(|id| start(&mut lane, id));
                barrier.wait();
                let mut cancelled = vec![false; WAITERS as usize];
                let mut answered = vec![0; WAITERS as usize];
                let mut next = 0;
                while lane.in_flight() > 0 || next < WAITERS {
                    if next < WAITERS {
                        let outcome = lane.cancel(Token::from_u64(next));
                        assert_ne!(outcome, Cancelled::RunsOn, "a read changes nothing");
                        cancelled[next as usize] = outcome == Cancelled::Finished;
                        next += 3;
                    }
                    if next % 32 == 0 || next >= WAITERS {
                        lane.turn();
                    }
                    while let Some(Finished { token, result, buffer }) = lane.pop_finished() {
                        let id = token.to_u64() as usize;
                        answered[id] += 1;
                        let Buffer::Bytes(bytes) = buffer else { panic!("{id} lost its buffer") };
                        if cancelled[id] {
                            assert_eq!(result.unwrap_err().kind, IoErrorKind::Cancelled);
                            assert_eq!(bytes, [1; 512]);
                        } else {
                            assert_eq!((result, bytes), (Ok(()), vec![0; 512]));
                        }
                    }
                }
                assert!(
                    answered.iter().all(|count| *count == 1),
                    "not everybody was answered once"
                );
            });
        }
        barrier.wait();
        device.clear_faults();
        while first.pop_finished().is_none() {
            first.turn();
        }
    });
    assert_eq!(device.counts().reads, 1, "they were not merged");
    assert_eq!(cache.frames_lent(), 0, "a pin was lost");
    cache.assert_sound();
}

/// On four threads, each with a thousand stable writers of the same page at once, a third of them taken back.
/// Each is woken when it is its turn, so the waits are as many as the writers, whatever the threads do.
#[test]
fn thousands_of_stable_writers_of_one_page_take_turns() {
    const WRITERS: u64 = 1000;
    let pool = DmaPool::new(PoolOptions::frames(64)).unwrap();
    let device = Arc::new(RamDevice::new(1 << 20, 512, pool).unwrap());
    let cache = Cache::new(device, CacheOptions::frames(64)).unwrap();
    std::thread::scope(|scope| {
        for own in 0..THREADS as u64 {
            let cache = Arc::clone(&cache);
            scope.spawn(move || {
                let mut lane =
                    Lane::new(Arc::clone(&cache), WRITERS as usize, 4, Arc::new(PollsAnyway))
                        .unwrap();
                for id in 0..WRITERS {
                    let (token, handle) = (Token::from_u64(id), cache.open());
                    let kind = OpKind::Write { stable: true, direct: false };
                    let buffer = Buffer::Bytes(vec![own as u8 + 1; 512]);
                    let offset = own * 512;
                    let operation = Operation { token, kind, offset, len: 512, buffer, handle };
                    assert!(lane.start(operation).is_ok());
                }
                let mut answered = vec![0; WRITERS as usize];
                let started = std::time::Instant::now();
                let mut next = 0;
                while lane.in_flight() > 0 {
                    if next < WRITERS {
                        _ = lane.cancel(Token::from_u64(next));
                        next += 3;
                    }
                    if !lane.turn() {
                        std::thread::yield_now();
                    }
                    while let Some(Finished { token, result, .. }) = lane.pop_finished() {
                        answered[token.to_u64() as usize] += 1;
                        let taken_back =
                            matches!(result, Err(error) if error.kind == IoErrorKind::Cancelled);
                        assert!(result.is_ok() || taken_back, "{result:?}");
                    }
                    assert!(started.elapsed().as_secs() < 60, "they hang: {:?}", cache.stats());
                }
                assert!(answered.iter().all(|times| *times == 1), "{answered:?}");
            });
        }
    });
    cache.assert_sound();
    assert_eq!(cache.frames_lent(), 0);
    let (waits, writers) = (cache.stats().merged, THREADS as u64 * WRITERS);
    assert!(waits <= 2 * writers, "{waits} waits of {writers} writers");
    let mut bytes = [0; 512 * THREADS];
    assert!(cache.try_read(0, &mut bytes));
    (0..THREADS).for_each(|own| assert_eq!(bytes[512 * own], own as u8 + 1));
}
