//! `osync`: sequential 64 KiB writes of a file, each stable when it ends, through our cache, against
//! `pwrite` on the same file opened with O_DSYNC, one at a time.
//!
//! Rows: ours at depth 64 and at depth 1 over blocks that are there, and at depth 64 into holes, which
//! the file system has to fill. Each round prints `ROUND ROW OURS_IOPS PEER_IOPS`.
//!
//! `bench_osync [ROUNDS]`, 9 rounds by default.

mod on_file;

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Instant;

use on_file::{Result, Served, TestFile};
use rustix::fs::{FallocateFlags, OFlags};
use uaio_core::{ContextOptions, Iocb, OpenOptions};

const SIZE_BYTES: u64 = 32 << 20;
const WRITE_BYTES: usize = 64 << 10;
const WRITES: u64 = SIZE_BYTES / WRITE_BYTES as u64;
/// Twice the file.
const FRAMES: usize = 2 * SIZE_BYTES as usize / uaio_driver::FRAME_SIZE;

fn main() -> Result<()> {
    let rounds = on_file::rounds(9)?;
    let file = TestFile::new("osync", SIZE_BYTES)?;
    for round in 0..=rounds {
        for (row, depth, holes) in
            [("depth-64", 64, false), ("depth-1", 1, false), ("depth-64-holes", 64, true)]
        {
            let mut iops = [0.0; 2];
            for side in [round % 2, 1 - round % 2] {
                let byte = (2 * round + side) as u8;
                if holes {
                    punch(&file)?;
                }
                iops[side] = match side {
                    0 => ours(&file, depth, byte)?,
                    _ => peer(&file, byte)?,
                };
                check(&file, byte)?;
            }
            // The first round of all only warms up.
            if round > 0 {
                println!("ROUND {row} {:.0} {:.0}", iops[0], iops[1]);
            }
        }
    }
    Ok(())
}

/// Writes a second, `depth` in flight.
fn ours(file: &TestFile, depth: usize, byte: u8) -> Result<f64> {
    let served = Served::new(file, FRAMES)?;
    let handle = served.open(OpenOptions { dsync: true, ..OpenOptions::default() });
    let context = served.reactor.context(ContextOptions::events(depth))?;
    let mut memory: Vec<_> = (0..depth).map(|_| vec![byte; WRITE_BYTES]).collect();
    let mut iocbs = VecDeque::with_capacity(depth);
    let mut events = Vec::with_capacity(depth);
    let mut next = 0..WRITES;
    let mut done = 0;
    let start = Instant::now();
    while done < WRITES {
        while let Some(buffer) = memory.pop() {
            let Some(index) = next.next() else { break };
            iocbs.push_back(Iocb::pwrite(&handle, index * WRITE_BYTES as u64, buffer));
        }
        if !iocbs.is_empty() {
            context.submit_all(&mut iocbs)?;
        }
        context.get_events(1, depth, &mut events, None)?;
        for event in events.drain(..) {
            assert_eq!(event.result, Ok(WRITE_BYTES));
            memory.push(event.buffers.into_bytes());
            done += 1;
        }
    }
    let iops = WRITES as f64 / start.elapsed().as_secs_f64();
    served.close()?;
    Ok(iops)
}

/// Writes a second, one after the other.
fn peer(file: &TestFile, byte: u8) -> Result<f64> {
    let flags = OFlags::DSYNC.bits() as i32;
    let kernel = File::options().write(true).custom_flags(flags).open(file.path())?;
    let buffer = vec![byte; WRITE_BYTES];
    let start = Instant::now();
    for index in 0..WRITES {
        assert_eq!(kernel.write_at(&buffer, index * WRITE_BYTES as u64)?, WRITE_BYTES);
    }
    Ok(WRITES as f64 / start.elapsed().as_secs_f64())
}

/// Takes the file's blocks away.
fn punch(file: &TestFile) -> Result<()> {
    let kernel = File::options().write(true).open(file.path())?;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&kernel, flags, 0, SIZE_BYTES)?;
    Ok(kernel.sync_all()?)
}

/// Whether the file holds what was written, and drops it from the kernel's cache.
fn check(file: &TestFile, byte: u8) -> Result<()> {
    let same = std::fs::read(file.path())?.iter().all(|have| *have == byte);
    assert!(same, "not what was written");
    file.drop_caches()
}
