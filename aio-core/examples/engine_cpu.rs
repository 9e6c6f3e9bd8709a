//! `engine-cpu`: what a 4 KiB read of a host file costs from `Context::submit_all` to its event, in
//! instructions, the kernel's not counted. The file is in the kernel's cache, so that each read is done when the
//! ring is entered and nobody waits.
//!
//! Run it under callgrind, which collects inside `counted_engine`. The number of rounds is the only argument; a
//! round is 64 reads, 32 in flight.

use std::collections::VecDeque;
use std::error::Error;
use std::fs::File;
use std::sync::Arc;

use uaio_core::host::{Descriptor, HostOp, Position};
use uaio_core::{Context, ContextOptions, Event, Host, HostOptions, Iocb, Reactor};
use uaio_driver::{FRAME_SIZE, SystemClock};

const READS: usize = 64;
const DEPTH: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    let rounds = std::env::args().nth(1).map_or(Ok(200), |rounds| rounds.parse::<u64>())?;
    let path = std::env::temp_dir().join(format!("uaio-engine-cpu-{}", std::process::id()));
    std::fs::write(&path, vec![7; READS * FRAME_SIZE])?;
    let fd = Descriptor::new(File::open(&path)?);
    std::fs::remove_file(&path)?;
    let reactor = Reactor::new(Arc::new(SystemClock::new()))?;
    let host = reactor.attach_host(HostOptions { workers: 0, ..HostOptions::default() })?;
    let context = reactor.context(ContextOptions::events(DEPTH))?;
    let mut memory: VecDeque<Vec<u8>> = (0..DEPTH).map(|_| vec![0; FRAME_SIZE]).collect();
    let (mut iocbs, mut events) = (VecDeque::with_capacity(DEPTH), Vec::with_capacity(DEPTH));
    for _ in 0..rounds {
        counted_engine(&context, &host, &fd, &mut memory, &mut iocbs, &mut events);
    }
    Ok(())
}

#[inline(never)]
fn counted_engine(
    context: &Context,
    host: &Host,
    fd: &Descriptor,
    memory: &mut VecDeque<Vec<u8>>,
    iocbs: &mut VecDeque<Iocb>,
    events: &mut Vec<Event>,
) {
    for batch in 0..READS / DEPTH {
        for at in 0..DEPTH {
            let Some(buffer) = memory.pop_front() else {
                unreachable!("each event brings its own")
            };
            let at = Position::At(((batch * DEPTH + at) * FRAME_SIZE) as u64);
            let read = HostOp::Read { fd: fd.clone(), memory: buffer.into(), at, flags: 0 };
            iocbs.push_back(Iocb::host(host, read));
        }
        assert_eq!(context.submit_all(iocbs), Ok(DEPTH));
        assert_eq!(context.get_events(DEPTH, DEPTH, events, None), Ok(DEPTH));
        for event in events.drain(..) {
            assert_eq!(event.result, Ok(FRAME_SIZE));
            memory.extend(event.buffers.into_host().map(HostOp::into_bytes));
        }
    }
}
