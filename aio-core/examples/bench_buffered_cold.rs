//! `buffered-cold`: cold 4 KiB random reads of a file at depth 32, every block once, through our
//! cache, against fio with libaio and with io_uring through the kernel's; and with io_uring past it, with
//! O_DIRECT, which is what disk and kernel give at most.
//!
//! Each side starts with nothing of the file in its cache, and takes its turn; each round prints
//! `ROUND libaio OURS_IOPS PEER_IOPS` and the same for `io_uring`. There ours reads around
//! (`around.rs` of the cache): where reads have come close to each other it brings in what lies between, so
//! that most reads are hits by the time they come. `alone-io_uring` and `alone-direct` are the same with
//! `Advice::Random`: each read is a command of its own, as it is for the peers.
//!
//! `bench_buffered_cold [ROUNDS]`, 9 rounds by default.

mod on_file;

use std::collections::VecDeque;
use std::time::Instant;

use on_file::{Fio, Result, Served, TestFile, every_block, frames_for};
use uaio_core::{ContextOptions, Iocb, OpenOptions};
use uaio_driver::FRAME_SIZE;
use uaio_page_cache::Advice;

const SIZE_BYTES: u64 = 128 << 20;
const DEPTH: usize = 32;

fn main() -> Result<()> {
    let rounds = on_file::rounds(9)?;
    let file = TestFile::new("buffered-cold", SIZE_BYTES)?;
    let served = Served::new(&file, frames_for(&file))?;
    for round in 0..=rounds as u64 {
        // Who goes first changes, and the first round of all only warms up.
        let (mut ours, mut libaio, mut io_uring, mut direct) = (0.0, 0.0, 0.0, 0.0);
        let mut alone = 0.0;
        for side in 0..5 {
            match (side + round) % 5 {
                0 => ours = cold_reads(&served, &every_block(&file, round), Advice::Normal)?,
                4 => alone = cold_reads(&served, &every_block(&file, round), Advice::Random)?,
                1 => libaio = Fio::cold_random_reads(&file, "libaio", round + 1)?.iops,
                2 => io_uring = Fio::cold_random_reads(&file, "io_uring", round + 1)?.iops,
                _ => direct = Fio::direct_random_reads(&file, "io_uring", round + 1)?.iops,
            }
        }
        if round > 0 {
            println!("ROUND libaio {ours:.0} {libaio:.0}");
            println!("ROUND io_uring {ours:.0} {io_uring:.0}");
            println!("ROUND alone-io_uring {alone:.0} {io_uring:.0}");
            println!("ROUND alone-direct {alone:.0} {direct:.0}");
        }
    }
    served.close()
}

/// Reads a second.
fn cold_reads(served: &Served, offsets: &[u64], advice: Advice) -> Result<f64> {
    let cache = served.volume.cache();
    cache.drop_clean(0..u64::MAX);
    let misses = cache.stats().misses;
    let handle = served.open(OpenOptions::default());
    handle.advise(0..u64::MAX, advice);
    let context = served.reactor.context(ContextOptions::events(DEPTH))?;
    let mut memory: Vec<_> = (0..DEPTH).map(|_| vec![0; FRAME_SIZE]).collect();
    let mut iocbs = VecDeque::with_capacity(DEPTH);
    let mut events = Vec::with_capacity(DEPTH);
    let mut next = offsets.iter();
    let mut done = 0;
    let start = Instant::now();
    while done < offsets.len() {
        while let Some(buffer) = memory.pop() {
            let Some(&offset) = next.next() else { break };
            iocbs.push_back(Iocb::pread(&handle, offset, buffer));
        }
        if !iocbs.is_empty() {
            context.submit_all(&mut iocbs)?;
        }
        context.get_events(1, DEPTH, &mut events, None)?;
        for event in events.drain(..) {
            assert_eq!(event.result, Ok(FRAME_SIZE));
            memory.push(event.buffers.into_bytes());
            done += 1;
        }
    }
    let took = start.elapsed();
    let hits = offsets.len() as u64 - (cache.stats().misses - misses);
    assert!(advice != Advice::Random || hits == 0, "{hits} reads were not cold");
    Ok(offsets.len() as f64 / took.as_secs_f64())
}
