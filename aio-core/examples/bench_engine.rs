//! `engine`: 4 KiB random reads of a host file at depth 32, every block once, by iocb and event through the host
//! engine, against the `io-uring` crate in a tight loop, in the same thread and with the same memory: cold and
//! buffered, and past the cache with `O_DIRECT`.
//!
//! Each side takes its turn; each round prints `ROUND buffered-32 OURS_IOPS PEER_IOPS` and the same for
//! `direct-32`.
//!
//! `bench_engine [ROUNDS]`, 15 rounds by default.
#![expect(unsafe_code, reason = "the ring and raw memory take addresses")]

mod on_file;

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Instant;

use io_uring::{IoUring, opcode, types};
use on_file::{Result, TestFile, every_block};
use uaio_core::host::{Descriptor, HostOp, Memory, Position};
use uaio_core::{ContextOptions, HostOptions, Iocb, Reactor};
use uaio_driver::{FRAME_SIZE, SystemClock};

const SIZE_BYTES: u64 = 128 << 20;
const DEPTH: usize = 32;
/// Bytes of a read.
const BLOCK: usize = FRAME_SIZE;

/// Memory that `O_DIRECT` takes.
#[repr(align(4096))]
struct Block([u8; BLOCK]);

fn main() -> Result<()> {
    let rounds = on_file::rounds(15)?;
    let file = TestFile::new("engine", SIZE_BYTES)?;
    let mut blocks: Vec<Block> = (0..DEPTH).map(|_| Block([0; BLOCK])).collect();
    let mut ours = Ours::new()?;
    let mut ring = IoUring::new(DEPTH as u32)?;
    for round in 0..=rounds as u64 {
        for (row, flags) in [("buffered-32", 0), ("direct-32", libc::O_DIRECT)] {
            let open = || OpenOptions::new().read(true).custom_flags(flags).open(file.path());
            let offsets = every_block(&file, round);
            let (mut mine, mut raw) = (0.0, 0.0);
            // Who goes first changes, and the first round of all only warms up.
            for side in 0..2 {
                file.drop_caches()?;
                let fd = Descriptor::new(open()?);
                match (side + round) % 2 {
                    0 => mine = ours.reads(&fd, &offsets, &mut blocks)?,
                    _ => raw = raw_reads(&mut ring, &fd, &offsets, &mut blocks)?,
                }
            }
            if round > 0 {
                println!("ROUND {row} {mine:.0} {raw:.0}");
            }
        }
    }
    Ok(())
}

/// A reactor without a thread, and the host.
struct Ours {
    reactor: Reactor,
    host: uaio_core::Host,
}

impl Ours {
    fn new() -> Result<Self> {
        let reactor = Reactor::new(Arc::new(SystemClock::new()))?;
        let host = reactor.attach_host(HostOptions {
            operations: DEPTH,
            inbox: DEPTH,
            ..HostOptions::default()
        })?;
        Ok(Self { reactor, host })
    }

    /// Reads a second.
    fn reads(&mut self, fd: &Descriptor, offsets: &[u64], blocks: &mut [Block]) -> Result<f64> {
        let context = self.reactor.context(ContextOptions::events(DEPTH))?;
        let mut iocbs = VecDeque::with_capacity(DEPTH);
        let mut events = Vec::with_capacity(DEPTH);
        let mut free: Vec<usize> = (0..blocks.len()).collect();
        let (mut next, mut done) = (offsets.iter(), 0);
        let start = Instant::now();
        while done < offsets.len() {
            while let Some(at) = free.pop() {
                let Some(&offset) = next.next() else { break };
                // SAFETY: the block is used for this read alone until its event, and lives longer than
                // the context, which waits for what is in progress.
                let memory = unsafe { Memory::raw(blocks[at].0.as_mut_ptr(), BLOCK) };
                let (fd, position) = (fd.clone(), Position::At(offset));
                let read = HostOp::Read { fd, memory, at: position, flags: 0 };
                iocbs.push_back(Iocb::host(&self.host, read).with_user_data(at as u64));
            }
            if !iocbs.is_empty() {
                context.submit_all(&mut iocbs)?;
            }
            context.get_events(1, DEPTH, &mut events, None)?;
            for event in events.drain(..) {
                assert_eq!(event.result, Ok(BLOCK));
                free.push(event.user_data as usize);
                done += 1;
            }
        }
        Ok(offsets.len() as f64 / start.elapsed().as_secs_f64())
    }
}

/// Reads a second.
fn raw_reads(
    ring: &mut IoUring,
    fd: &Descriptor,
    offsets: &[u64],
    blocks: &mut [Block],
) -> Result<f64> {
    let mut free: Vec<usize> = (0..blocks.len()).collect();
    let (mut next, mut done) = (offsets.iter(), 0);
    let fd = types::Fd(fd.as_raw_fd());
    let start = Instant::now();
    while done < offsets.len() {
        while let Some(at) = free.pop() {
            let Some(&offset) = next.next() else { break };
            let read = opcode::Read::new(fd, blocks[at].0.as_mut_ptr(), BLOCK as u32);
            let entry = read.offset(offset).build().user_data(at as u64);
            // SAFETY: the block is used for this read alone until its completion, which is waited for.
            unsafe { ring.submission().push(&entry) }?;
        }
        ring.submit_and_wait(1)?;
        for entry in ring.completion() {
            assert_eq!(entry.result(), BLOCK as i32);
            free.push(entry.user_data() as usize);
            done += 1;
        }
    }
    Ok(offsets.len() as f64 / start.elapsed().as_secs_f64())
}
