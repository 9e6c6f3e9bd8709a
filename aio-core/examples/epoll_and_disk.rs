//! Epoll and disk in one loop: what the patch set of 2007 was for ("Combining epoll and disk file AIO").
//!
//! `epoll_and_disk FILE`: reads FILE with many reads in flight, while an epoll descriptor with a timer
//! in it delivers its events through the same context. It prints the progress at each tick, and
//! at the end how many bytes there were and their sum.

use std::error::Error;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use uaio_core::host::Descriptor;
use uaio_core::{Context, ContextOptions, Event, Host, HostOptions, Iocb, Reactor, ops};
use uaio_driver::SystemClock;

/// Bytes of one read.
const CHUNK: usize = 64 << 10;
/// Reads in flight.
const DEPTH: usize = 32;

/// What the word of an iocb says: the epoll wait; reads have where they are.
const EPOLL: u64 = u64::MAX;
/// What the epoll descriptor says of the timer.
const TIMER: u64 = 7;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: epoll_and_disk FILE")?;
    let tick = Duration::from_millis(10);
    let read = run(File::open(path)?, tick, &mut |bytes| println!("{bytes} bytes so far"))?;
    println!("{} bytes, sum {}, {} ticks meanwhile", read.bytes, read.sum, read.ticks);
    Ok(())
}

/// What was read, and how often the timer rang meanwhile.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) bytes: u64,
    pub(crate) sum: u64,
    pub(crate) ticks: u64,
}

/// Reads a file to its end, and calls `progress` at each tick of a timer.
pub(crate) fn run(
    file: File,
    tick: Duration,
    progress: &mut dyn FnMut(u64),
) -> Result<Read, Box<dyn Error>> {
    let len = file.metadata()?.len();
    let reactor = Reactor::new(Arc::new(SystemClock::new()))?;
    let host = reactor.attach_host(HostOptions::default())?;
    let context = reactor.context(ContextOptions::events(DEPTH + 1))?;
    let file = Descriptor::new(file);

    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let timer = timer(tick)?;
    epoll::add(&epoll, &timer, epoll::EventData::new_u64(TIMER), epoll::EventFlags::IN)?;
    let epoll = Descriptor::new(epoll);

    submit(&context, Iocb::host(&host, ops::epoll_wait(&epoll, 16)).with_user_data(EPOLL))?;
    let mut next = 0;
    while next < len && next < (DEPTH * CHUNK) as u64 {
        read_at(&context, &host, &file, vec![0; CHUNK], next)?;
        next += CHUNK as u64;
    }
    let (mut read, mut in_flight) = (Read::default(), next.div_ceil(CHUNK as u64));
    let mut events = Vec::with_capacity(DEPTH + 1);
    while in_flight > 0 {
        context.get_events(1, DEPTH + 1, &mut events, None)?;
        for Event { user_data, result, buffers, .. } in events.drain(..) {
            let op = buffers.into_host().ok_or("an answer without its operation")?;
            let done = result.map_err(|error| std::io::Error::from_raw_os_error(error.errno()))?;
            if user_data == EPOLL {
                for event in &op.into_epoll_events()[..done] {
                    if event.u64 == TIMER {
                        read.ticks += expirations(timer.as_fd())?;
                        progress(read.bytes);
                    }
                }
                let wait = Iocb::host(&host, ops::epoll_wait(&epoll, 16));
                submit(&context, wait.with_user_data(EPOLL))?;
                continue;
            }
            in_flight -= 1;
            let bytes = op.into_bytes();
            read.bytes += done as u64;
            read.sum += bytes[..done].iter().map(|byte| u64::from(*byte)).sum::<u64>();
            if next < len {
                read_at(&context, &host, &file, bytes, next)?;
                next += CHUNK as u64;
                in_flight += 1;
            }
        }
    }
    // The epoll wait that is left is cancelled with the context.
    Ok(read)
}

fn read_at(
    context: &Context,
    host: &Host,
    file: &Descriptor,
    buffer: Vec<u8>,
    offset: u64,
) -> Result<(), Box<dyn Error>> {
    let read = Iocb::host(host, ops::pread(file, buffer, offset)).with_user_data(offset);
    submit(context, read)
}

fn submit(context: &Context, iocb: Iocb) -> Result<(), Box<dyn Error>> {
    context.submit(iocb).map_err(|refused| refused.reason)?;
    Ok(())
}

fn timer(tick: Duration) -> Result<OwnedFd, Box<dyn Error>> {
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
    let tick = Timespec::try_from(tick)?;
    let every = Itimerspec { it_interval: tick, it_value: tick };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &every)?;
    Ok(timer)
}

/// How often the timer rang since it was asked last (timerfd_create(2)).
fn expirations(timer: impl AsFd) -> Result<u64, Box<dyn Error>> {
    let mut count = [0; 8];
    rustix::io::read(timer, &mut count)?;
    Ok(u64::from_ne_bytes(count))
}
