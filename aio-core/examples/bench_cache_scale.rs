//! `cache-scale`: what a second thread gains on hits, against what it gains on memcpy alone.
//!
//! Each thread reads 4 KiB pages of a cached set of 64 MiB in random order, through a handle of its own; the peer
//! copies the same pages of ordinary memory. A round measures one thread and two, of each, in turns, and
//! prints `ROUND - OURS PEER`: how many pages two threads read, in percent of those that one reads in the same time.
//!
//! `bench_cache_scale [ROUNDS]`, 11 rounds by default.

use std::error::Error;
use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::time::Instant;

use uaio_core::{OpenOptions, Reactor, VolumeOptions};
use uaio_driver::ram::RamDevice;
use uaio_driver::{DmaPool, FRAME_SIZE, PoolOptions, SystemClock};
use uaio_page_cache::{Cache, CacheOptions};

const SET_BYTES: u64 = 64 << 20;
/// Reads of one thread in one measurement.
const READS: usize = 60_000;

fn main() -> Result<(), Box<dyn Error>> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(11), |rounds| rounds.parse())?;
    if std::thread::available_parallelism()?.get() < 2 {
        println!("MISSING - this machine has one processor");
        return Ok(());
    }
    let pages = SET_BYTES / FRAME_SIZE as u64;
    // More frames than the set has pages: they are spread over the shards by hash, not evenly.
    let frames = pages as usize * 3 / 2;
    let pool = DmaPool::new(PoolOptions::frames(frames + 64))?;
    let device = Arc::new(RamDevice::new(SET_BYTES, 4096, pool)?);
    let cache = Cache::new(device, CacheOptions::frames(frames))?;
    let reactor = Reactor::new(Arc::new(SystemClock::new()))?;
    let volume = reactor.attach(cache, VolumeOptions::default())?;
    let handles = [volume.open(OpenOptions::default()), volume.open(OpenOptions::default())];
    let mut memory = vec![0u8; SET_BYTES as usize];
    for (index, page) in memory.chunks_exact_mut(FRAME_SIZE).enumerate() {
        page.fill(index as u8);
        assert_eq!(handles[0].pwrite(page, (index * FRAME_SIZE) as u64)?, FRAME_SIZE);
    }
    handles[0].fsync()?;
    let misses = volume.cache().stats().misses;

    let hits =
        |thread: usize, offset: u64, page: &mut [u8]| match handles[thread].pread(page, offset) {
            Ok(FRAME_SIZE) => {}
            other => panic!("a cached read came to {other:?}"),
        };
    let copies = |_: usize, offset: u64, page: &mut [u8]| {
        page.copy_from_slice(&memory[offset as usize..offset as usize + FRAME_SIZE]);
    };
    for round in 0..=rounds {
        let mut gains = [0.0; 2];
        // Who goes first changes, and the first round of all only warms up.
        for side in [round % 2, 1 - round % 2] {
            gains[side] = if side == 0 { gain(&hits, round) } else { gain(&copies, round) };
        }
        if round > 0 {
            println!("ROUND - {:.1} {:.1}", gains[0], gains[1]);
        }
    }
    assert_eq!(volume.cache().stats().misses, misses, "a read missed the cache");
    reactor.close().map_err(|errors| errors[0].to_string())?;
    Ok(())
}

/// How many pages two threads read, in percent of those that one reads in the same time.
fn gain(read: &(impl Fn(usize, u64, &mut [u8]) + Sync), round: usize) -> f64 {
    let (before, two, after) = (took(read, 1, round), took(read, 2, round), took(read, 1, round));
    // One thread before and after: a machine that becomes slower meanwhile is not taken for a gain.
    100.0 * (before + after) / two
}

/// Seconds in which each of `threads` threads has made its reads.
fn took(read: &(impl Fn(usize, u64, &mut [u8]) + Sync), threads: usize, round: usize) -> f64 {
    let start = Barrier::new(threads + 1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread| {
                let start = &start;
                scope.spawn(move || {
                    let pages = SET_BYTES / FRAME_SIZE as u64;
                    let mut random = fastrand::Rng::with_seed((round * 2 + thread) as u64);
                    let mut page = vec![0; FRAME_SIZE];
                    start.wait();
                    for _ in 0..READS {
                        let index = random.u64(..pages);
                        read(thread, index * FRAME_SIZE as u64, black_box(&mut page));
                        assert_eq!(page[FRAME_SIZE - 1], index as u8, "page {index}");
                    }
                })
            })
            .collect();
        start.wait();
        let began = Instant::now();
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        began.elapsed().as_secs_f64()
    })
}
