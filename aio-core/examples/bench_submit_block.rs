//! `submit-block`: how long a submit takes, 99 of 100, with cold 4 KiB random reads of a file at depth
//! 32, every block once: `Context::submit` through our cache, against `io_submit` of fio with libaio
//! through the kernel's. Our reactor has a thread, to which a submit leaves it to tell a disk that is busy.
//!
//! Each round prints `ROUND - OURS_NS PEER_NS`. `bench_submit_block [ROUNDS]`, 9 rounds by default.

mod on_file;

use std::time::{Duration, Instant};

use on_file::{Fio, Result, Served, TestFile, every_block, frames_for};
use uaio_core::{ContextOptions, Iocb, OpenOptions};
use uaio_driver::FRAME_SIZE;
use uaio_page_cache::Advice;

const SIZE_BYTES: u64 = 128 << 20;
const DEPTH: usize = 32;

fn main() -> Result<()> {
    let rounds = on_file::rounds(9)?;
    let file = TestFile::new("submit-block", SIZE_BYTES)?;
    let served = Served::new(&file, frames_for(&file))?;
    std::thread::scope(|threads| {
        threads.spawn(|| served.reactor.run());
        let measured = measure(rounds, &file, &served);
        served.reactor.stop();
        measured
    })?;
    served.close()
}

fn measure(rounds: usize, file: &TestFile, served: &Served) -> Result<()> {
    for round in 0..=rounds as u64 {
        let (mut ours, mut peer) = (0.0, 0.0);
        for side in 0..2 {
            match (side + round) % 2 {
                0 => ours = submit_p99_ns(served, &every_block(file, round))?,
                _ => peer = Fio::cold_random_reads(file, "libaio", round + 1)?.submit_p99_ns,
            }
        }
        if round > 0 {
            println!("ROUND - {ours:.0} {peer:.0}");
        }
    }
    Ok(())
}

/// The time in submit that 99 of 100 do not exceed.
fn submit_p99_ns(served: &Served, offsets: &[u64]) -> Result<f64> {
    served.volume.cache().drop_clean(0..u64::MAX);
    let handle = served.open(OpenOptions::default());
    // Each one misses.
    handle.advise(0..u64::MAX, Advice::Random);
    let context = served.reactor.context(ContextOptions::events(DEPTH))?;
    let mut memory: Vec<_> = (0..DEPTH).map(|_| vec![0; FRAME_SIZE]).collect();
    let mut events = Vec::with_capacity(DEPTH);
    let mut took = Vec::<Duration>::with_capacity(offsets.len());
    for &offset in offsets {
        if memory.is_empty() {
            context.get_events(1, DEPTH, &mut events, None)?;
            for event in events.drain(..) {
                assert_eq!(event.result, Ok(FRAME_SIZE));
                memory.push(event.buffers.into_bytes());
            }
        }
        let Some(buffer) = memory.pop() else { unreachable!("an event brought its memory") };
        let iocb = Iocb::pread(&handle, offset, buffer);
        let start = Instant::now();
        let taken = context.submit(iocb);
        took.push(start.elapsed());
        assert!(taken.is_ok(), "a slot was free");
    }
    let left = DEPTH - memory.len();
    context.get_events(left, DEPTH, &mut events, None)?;
    took.sort_unstable();
    Ok(took[took.len() * 99 / 100].as_nanos() as f64)
}
