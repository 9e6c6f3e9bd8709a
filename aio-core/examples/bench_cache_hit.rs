//! `cache-hit`: 4 KiB random reads of cached pages, against `pread` of a page-cached file.
//!
//! Three rows: copied from a set of 1 MiB, copied from one of 256 MiB, and pinned in that set, where
//! both sides add up one word of each cache line. The two sides take turns, in one process, on the
//! same sequence of offsets; each round prints `ROUND ROW OURS_NS PEER_NS`, nanoseconds for one
//! read. What both sides read is compared at the end.
//!
//! `bench_cache_hit [ROUNDS]`, 11 rounds by default.

use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use uaio_core::{Handle, OpenOptions, Reactor, VolumeOptions};
use uaio_driver::ram::RamDevice;
use uaio_driver::{DmaPool, FRAME_SIZE, PoolOptions, SystemClock};
use uaio_page_cache::{Cache, CacheOptions};

/// Reads of one side in one round.
const READS: usize = 100_000;
/// Words of 8 bytes in a cache line.
const LINE_WORDS: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let rounds = std::env::args().nth(1).map_or(Ok(11), |rounds| rounds.parse())?;
    measure("copied-1M", 1 << 20, rounds, copy_ours, copy_peer)?;
    measure("copied-256M", 256 << 20, rounds, copy_ours, copy_peer)?;
    measure("pinned-256M", 256 << 20, rounds, sum_ours, sum_peer)?;
    Ok(())
}

type Side<T> = fn(&T, &[u64], &mut [u8]) -> u64;

fn measure(
    row: &str,
    set_bytes: u64,
    rounds: usize,
    ours: Side<Handle>,
    peer: Side<File>,
) -> Result<(), Box<dyn Error>> {
    let pages = set_bytes / FRAME_SIZE as u64;
    // More frames than the set has pages: they are spread over the shards by hash, not evenly.
    let frames = pages as usize * 3 / 2;
    let pool = DmaPool::new(PoolOptions::frames(frames + 64))?;
    let device = Arc::new(RamDevice::new(set_bytes, 4096, pool)?);
    let cache = Cache::new(device, CacheOptions::frames(frames))?;
    let reactor = Reactor::new(Arc::new(SystemClock::new()))?;
    let volume = reactor.attach(cache, VolumeOptions::default())?;
    let handle = volume.open(OpenOptions::default());
    let mut file = unnamed_file()?;

    let mut page = vec![0; FRAME_SIZE];
    for index in 0..pages {
        page.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&index.to_ne_bytes()));
        assert_eq!(handle.pwrite(&page, index * FRAME_SIZE as u64)?, FRAME_SIZE);
        file.write_all(&page)?;
    }
    handle.fsync()?;
    file.sync_all()?;

    let misses = volume.cache().stats().misses;
    let mut random = fastrand::Rng::with_seed(1);
    let mut offsets = vec![0; READS];
    for round in 0..=rounds {
        offsets.fill_with(|| random.u64(..pages) * FRAME_SIZE as u64);
        // Who goes first changes, and the first round of all only warms up.
        let mut took = [0.0; 2];
        let mut seen = [0; 2];
        for side in [round % 2, 1 - round % 2] {
            let start = Instant::now();
            seen[side] = match side {
                0 => ours(&handle, &offsets, &mut page),
                _ => peer(&file, &offsets, &mut page),
            };
            took[side] = start.elapsed().as_nanos() as f64 / READS as f64;
        }
        assert_eq!(seen[0], seen[1], "the two sides read different data");
        if round > 0 {
            println!("ROUND {row} {:.1} {:.1}", took[0], took[1]);
        }
    }
    assert_eq!(volume.cache().stats().misses, misses, "a read missed the cache");
    reactor.close().map_err(|errors| errors[0].to_string())?;
    Ok(())
}

/// A file without a name, in the directory for temporary files.
fn unnamed_file() -> Result<File, Box<dyn Error>> {
    let path = std::env::temp_dir().join(format!("uaio-bench-{}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

fn first_word(page: &[u8]) -> u64 {
    page.first_chunk().map_or(0, |word| u64::from_ne_bytes(*word))
}

fn copy_ours(handle: &Handle, offsets: &[u64], page: &mut [u8]) -> u64 {
    let mut seen = 0u64;
    for &offset in offsets {
        match handle.pread(page, offset) {
            Ok(FRAME_SIZE) => seen = seen.wrapping_add(first_word(black_box(page))),
            other => panic!("a cached read came to {other:?}"),
        }
    }
    seen
}

fn copy_peer(file: &File, offsets: &[u64], page: &mut [u8]) -> u64 {
    let mut seen = 0u64;
    for &offset in offsets {
        match file.read_at(page, offset) {
            Ok(FRAME_SIZE) => seen = seen.wrapping_add(first_word(black_box(page))),
            other => panic!("a read of the file came to {other:?}"),
        }
    }
    seen
}

fn sum_ours(handle: &Handle, offsets: &[u64], _: &mut [u8]) -> u64 {
    let mut seen = 0u64;
    for &offset in offsets {
        let Some(pin) = handle.try_pin(offset) else { panic!("page {offset} is not cached") };
        for line in pin.frame().words().chunks_exact(LINE_WORDS) {
            seen = seen.wrapping_add(line[0].load(std::sync::atomic::Ordering::Relaxed));
        }
    }
    seen
}

fn sum_peer(file: &File, offsets: &[u64], page: &mut [u8]) -> u64 {
    let mut seen = 0u64;
    for &offset in offsets {
        match file.read_at(page, offset) {
            Ok(FRAME_SIZE) => {}
            other => panic!("a read of the file came to {other:?}"),
        }
        for line in page.chunks_exact(8 * LINE_WORDS) {
            seen = seen.wrapping_add(first_word(line));
        }
    }
    seen
}
