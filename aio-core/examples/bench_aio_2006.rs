//! `aio-2006`: the table that came with the patch set of December 2006 ("Filesystem AIO read/write",
//! aio-stress on ext2), done again: 64 KiB records at depth 64, random and in order, cold reads and
//! writes that are stable when they end.
//!
//! Ours is the retry through our cache on a file. The peers are the kernel's own `pread` and `pwrite`, one
//! at a time (what AIO on a file came to before the patches), and the POSIX AIO of the C library, 64 at
//! a time on threads. All on the same file. Each round prints, for each row and again for the row with
//! `-glibc`, `ROUND ROW OURS_IOPS PEER_IOPS`.
//!
//! `bench_aio_2006 [ROUNDS]`, 9 rounds by default.
#![expect(unsafe_code, reason = "POSIX AIO keeps addresses of what the program hands it")]

mod on_file;

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Instant;

use on_file::{Result, Served, TestFile, frames_for};
use uaio_core::{ContextOptions, Iocb, OpenOptions};

const SIZE_BYTES: u64 = 64 << 20;
/// How much of it is written: a stable write of the kernel's takes milliseconds.
const WRITTEN_BYTES: u64 = 16 << 20;
const RECORD_BYTES: usize = 64 << 10;
const DEPTH: usize = 64;

/// One of the four rows of 2006.
struct Row {
    name: &'static str,
    random: bool,
    writes: bool,
}

const ROWS: [Row; 4] = [
    Row { name: "random-read", random: true, writes: false },
    Row { name: "random-osync-write", random: true, writes: true },
    Row { name: "sequential-read", random: false, writes: false },
    Row { name: "sequential-osync-write", random: false, writes: true },
];

/// What one side is to do: records at these places, of this byte if they are written.
struct Work<'a> {
    file: &'a TestFile,
    offsets: &'a [u64],
    write: Option<u8>,
}

type Side = fn(&Work<'_>) -> Result<Outcome>;

/// How fast it was, and a sum of what was read.
struct Outcome {
    iops: f64,
    sum: u64,
}

fn main() -> Result<()> {
    let rounds = on_file::rounds(9)?;
    let file = TestFile::new("aio-2006", SIZE_BYTES)?;
    let sides: [Side; 3] = [ours, one_at_a_time, posix_aio];
    for round in 0..=rounds {
        for row in &ROWS {
            let len_bytes = if row.writes { WRITTEN_BYTES } else { SIZE_BYTES };
            let mut offsets: Vec<u64> = (0..len_bytes).step_by(RECORD_BYTES).collect();
            if row.random {
                fastrand::Rng::with_seed(round as u64).shuffle(&mut offsets);
            }
            let mut iops = [0.0; 3];
            let mut sums = [0; 3];
            for turn in 0..3 {
                // Who goes first changes.
                let side = (turn + round) % 3;
                file.drop_caches()?;
                let write = row.writes.then_some((3 * round + side) as u8 + 1);
                let work = Work { file: &file, offsets: &offsets, write };
                let outcome = sides[side](&work)?;
                (iops[side], sums[side]) = (outcome.iops, outcome.sum);
                if let Some(byte) = write {
                    let all = std::fs::read(file.path())?;
                    let same = all[..WRITTEN_BYTES as usize].iter().all(|have| *have == byte);
                    assert!(same, "{}: the file does not hold what was written", row.name);
                }
            }
            assert!(sums.iter().all(|sum| *sum == sums[0]), "{}: different data", row.name);
            // The first round of all only warms up.
            if round > 0 {
                println!("ROUND {} {:.0} {:.0}", row.name, iops[0], iops[1]);
                println!("ROUND {}-glibc {:.0} {:.0}", row.name, iops[0], iops[2]);
            }
        }
    }
    Ok(())
}

impl Work<'_> {
    /// Opens the file as the kernel's own caller does: buffered, and with O_DSYNC for writes.
    fn open(&self) -> Result<File> {
        let flags = if self.write.is_some() { libc::O_DSYNC } else { 0 };
        Ok(File::options().read(true).write(true).custom_flags(flags).open(self.file.path())?)
    }

    fn outcome(&self, start: Instant, sum: u64) -> Outcome {
        Outcome { iops: self.offsets.len() as f64 / start.elapsed().as_secs_f64(), sum }
    }
}

/// A word of each page, the order of records left out: they end in any.
fn sum_of(record: &[u8]) -> u64 {
    let words = record.chunks(4096).filter_map(|page| page.first_chunk());
    words.fold(0, |sum: u64, word| sum.wrapping_add(u64::from_ne_bytes(*word)))
}

fn ours(work: &Work<'_>) -> Result<Outcome> {
    let served = Served::new(work.file, frames_for(work.file))?;
    let dsync = work.write.is_some();
    let handle = served.open(OpenOptions { dsync, ..OpenOptions::default() });
    let context = served.reactor.context(ContextOptions::events(DEPTH))?;
    let submit = |memory: Vec<u8>, offset: u64| {
        let iocb = match work.write {
            Some(_) => Iocb::pwrite(&handle, offset, memory),
            None => Iocb::pread(&handle, offset, memory),
        };
        context.submit(iocb).map(drop).map_err(|refused| refused.reason)
    };
    let byte = work.write.unwrap_or(0);
    let mut memory: Vec<_> = (0..DEPTH).map(|_| vec![byte; RECORD_BYTES]).collect();
    let mut events = Vec::with_capacity(DEPTH);
    let (mut next, mut left, mut sum) = (work.offsets.iter(), work.offsets.len(), 0u64);
    let start = Instant::now();
    while left > 0 {
        while let Some(buffer) = memory.pop() {
            let Some(offset) = next.next() else { break };
            submit(buffer, *offset)?;
        }
        context.get_events(1, DEPTH, &mut events, None)?;
        for event in events.drain(..) {
            assert_eq!(event.result, Ok(RECORD_BYTES));
            let buffer = event.buffers.into_bytes();
            if work.write.is_none() {
                sum = sum.wrapping_add(sum_of(&buffer));
            }
            memory.push(buffer);
            left -= 1;
        }
    }
    let outcome = work.outcome(start, sum);
    drop(context);
    served.close()?;
    Ok(outcome)
}

fn one_at_a_time(work: &Work<'_>) -> Result<Outcome> {
    let file = work.open()?;
    let mut buffer = vec![work.write.unwrap_or(0); RECORD_BYTES];
    let mut sum = 0u64;
    let start = Instant::now();
    for &offset in work.offsets {
        if work.write.is_some() {
            assert_eq!(file.write_at(&buffer, offset)?, RECORD_BYTES);
        } else {
            assert_eq!(file.read_at(&mut buffer, offset)?, RECORD_BYTES);
            sum = sum.wrapping_add(sum_of(&buffer));
        }
    }
    Ok(work.outcome(start, sum))
}

/// A request of the C library's, and its memory. It stays where it is while it is in progress.
struct Request {
    control: libc::aiocb,
    memory: Vec<u8>,
    busy: bool,
}

impl Request {
    fn start(&mut self, fd: RawFd, offset: u64, write: bool) -> Result<()> {
        self.control.aio_fildes = fd;
        self.control.aio_offset = offset as i64;
        self.control.aio_buf = self.memory.as_mut_ptr().cast();
        self.control.aio_nbytes = RECORD_BYTES;
        let control = &raw mut self.control;
        let started = match write {
            // SAFETY: the request and its memory stay where they are, and unused, until it is done.
            true => unsafe { libc::aio_write(control) },
            // SAFETY: as above.
            false => unsafe { libc::aio_read(control) },
        };
        self.busy = started == 0;
        if self.busy { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
    }

    /// Whether it is done, and well.
    fn finish(&mut self) -> bool {
        let control = &raw mut self.control;
        // SAFETY: it was started, and its result not taken yet.
        if !self.busy || unsafe { libc::aio_error(control) } == libc::EINPROGRESS {
            return false;
        }
        self.busy = false;
        // SAFETY: it is done, and its result not taken yet.
        assert_eq!(unsafe { libc::aio_return(control) }, RECORD_BYTES as isize);
        true
    }
}

fn posix_aio(work: &Work<'_>) -> Result<Outcome> {
    let file = work.open()?;
    let fd = file.as_raw_fd();
    let write = work.write.is_some();
    let byte = work.write.unwrap_or(0);
    let request = |_| Request {
        // SAFETY: a structure of numbers and addresses, for which zero is a value: no signal.
        control: unsafe { std::mem::zeroed() },
        memory: vec![byte; RECORD_BYTES],
        busy: false,
    };
    let mut requests: Box<[Request]> = (0..DEPTH).map(request).collect();
    for request in &mut requests {
        request.control.aio_sigevent.sigev_notify = libc::SIGEV_NONE;
    }
    let (mut next, mut left, mut sum) = (work.offsets.iter(), work.offsets.len(), 0u64);
    let start = Instant::now();
    for request in &mut requests {
        if let Some(offset) = next.next() {
            request.start(fd, *offset, write)?;
        }
    }
    while left > 0 {
        let mut list = [std::ptr::null(); DEPTH];
        for (entry, request) in list.iter_mut().zip(&requests) {
            if request.busy {
                *entry = &raw const request.control;
            }
        }
        // SAFETY: null, or requests that were started; no limit.
        let waited = unsafe { libc::aio_suspend(list.as_ptr(), DEPTH as i32, std::ptr::null()) };
        assert_eq!(waited, 0);
        for request in &mut requests {
            if !request.finish() {
                continue;
            }
            left -= 1;
            if !write {
                sum = sum.wrapping_add(sum_of(&request.memory));
            }
            if let Some(offset) = next.next() {
                request.start(fd, *offset, write)?;
            }
        }
    }
    Ok(work.outcome(start, sum))
}
