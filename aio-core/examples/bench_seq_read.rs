//! `seq-read`: a cold file read in order, 128 KiB at a time, through our cache, against `pread` through
//! the kernel's page cache: with a cache that the file fits into, as it fits into the kernel's, and with one
//! of a quarter of it, where each page that comes in has another one go.
//!
//! Each round prints a line for each cache, `ROUND ROW OURS_NS PEER_NS`, nanoseconds for one read of 128 KiB.
//!
//! `bench_seq_read [ROUNDS]`, 11 rounds by default.

mod on_file;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use on_file::{Result, Served, TestFile};
use uaio_core::OpenOptions;
use uaio_driver::FRAME_SIZE;

const SIZE_BYTES: u64 = 512 << 20;
const READ_BYTES: usize = 128 << 10;

fn main() -> Result<()> {
    let rounds = on_file::rounds(11)?;
    let file = TestFile::new("seq-read", SIZE_BYTES)?;
    let quarter = SIZE_BYTES as usize / FRAME_SIZE / 4;
    for (row, frames) in [("fits", on_file::frames_for(&file)), ("quarter", quarter)] {
        let served = Served::new(&file, frames)?;
        for round in 0..=rounds {
            let mut took = [0.0; 2];
            let mut sums = [0; 2];
            for side in [round % 2, 1 - round % 2] {
                served.volume.cache().drop_clean(0..u64::MAX);
                file.drop_caches()?;
                (took[side], sums[side]) = read_all(&file, &served, side == 0)?;
            }
            assert_eq!(sums[0], sums[1], "the two sides read different data");
            if round > 0 {
                println!("ROUND {row} {:.0} {:.0}", took[0], took[1]);
            }
        }
        served.close()?;
    }
    Ok(())
}

/// Reads the file in order, and says how long a read took and what the sum of it was.
fn read_all(file: &TestFile, served: &Served, ours: bool) -> Result<(f64, u64)> {
    let handle = served.open(OpenOptions::default());
    let kernel = File::open(file.path())?;
    let mut buffer = vec![0; READ_BYTES];
    let mut sum = 0;
    let start = Instant::now();
    for offset in (0..SIZE_BYTES).step_by(READ_BYTES) {
        match ours {
            true => assert_eq!(handle.pread(&mut buffer, offset)?, READ_BYTES),
            false => assert_eq!(kernel.read_at(&mut buffer, offset)?, READ_BYTES),
        }
        sum = u64::wrapping_add(sum, checksum(&buffer));
    }
    let took_ns = start.elapsed().as_nanos() as f64;
    Ok((took_ns / (SIZE_BYTES / READ_BYTES as u64) as f64, sum))
}

/// A word of each page: that it is the right data, at no cost that would hide the difference.
fn checksum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(FRAME_SIZE).filter_map(|page| page.first_chunk());
    words.fold(0, |sum: u64, word| sum.rotate_left(7).wrapping_add(u64::from_ne_bytes(*word)))
}
