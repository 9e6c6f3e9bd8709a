//! `hit-cpu` and `miss-cpu`: what a cached and an uncached 4 KiB read cost from `Context::submit` to
//! its event, in instructions, over a device in RAM that is not counted.
//!
//! Run it under callgrind, which collects inside `counted_hit` or `counted_miss`. The number of rounds
//! is the only argument; a round is 64 reads of each kind, 32 in flight.

use std::collections::VecDeque;
use std::error::Error;
use std::sync::Arc;

use uaio_core::{
    Context, ContextOptions, Event, Handle, Iocb, OpenOptions, Reactor, VolumeOptions,
};
use uaio_driver::ram::RamDevice;
use uaio_driver::{DmaPool, FRAME_SIZE, PoolOptions, SystemClock};
use uaio_page_cache::{Cache, CacheOptions};

const READS: usize = 64;
const DEPTH: usize = 32;
const PAGES: u64 = 2048;
/// From one page that is read to the next, in pages: no read follows another, whatever their order, nor is
/// anything read around them.
const APART: u64 = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let rounds = std::env::args().nth(1).map_or(Ok(200), |rounds| rounds.parse::<u64>())?;
    let frames = 2 * PAGES as usize;
    let pool = DmaPool::new(PoolOptions::frames(frames + 64))?;
    let device = Arc::new(RamDevice::new(PAGES * APART * FRAME_SIZE as u64, 4096, pool)?);
    let cache = Cache::new(device, CacheOptions::frames(frames))?;
    let reactor = Reactor::new(Arc::new(SystemClock::new()))?;
    let volume = reactor.attach(cache, VolumeOptions::default())?;
    let handle = volume.open(OpenOptions::default());
    let context = reactor.context(ContextOptions::events(DEPTH))?;
    let mut memory: VecDeque<Vec<u8>> = (0..DEPTH).map(|_| vec![0; FRAME_SIZE]).collect();
    let mut events = Vec::with_capacity(DEPTH);
    // Shuffled, the same way each time: nothing could be read ahead from it, neither a sequence nor
    // reads at one distance.
    let mut order: Vec<u64> = (0..PAGES).map(|page| page * APART * FRAME_SIZE as u64).collect();
    fastrand::Rng::with_seed(1).shuffle(&mut order);
    let mut order = order.chunks_exact(READS).cycle();
    for _ in 0..rounds {
        let Some(offsets) = order.next() else { unreachable!("it begins anew") };
        for &offset in offsets {
            volume.cache().drop_clean(offset..offset + FRAME_SIZE as u64);
        }
        counted_miss(&context, &handle, offsets, &mut memory, &mut events);
        counted_hit(&context, &handle, offsets, &mut memory, &mut events);
    }
    let stats = volume.cache().stats();
    assert_eq!((stats.misses, stats.hits), (rounds * READS as u64, rounds * READS as u64));
    Ok(())
}

#[inline(never)]
fn counted_miss(
    context: &Context,
    handle: &Handle,
    offsets: &[u64],
    memory: &mut VecDeque<Vec<u8>>,
    events: &mut Vec<Event>,
) {
    reads(context, handle, offsets, memory, events);
}

#[inline(never)]
fn counted_hit(
    context: &Context,
    handle: &Handle,
    offsets: &[u64],
    memory: &mut VecDeque<Vec<u8>>,
    events: &mut Vec<Event>,
) {
    // Not the same as the other, or the two would be one function.
    std::hint::black_box(());
    reads(context, handle, offsets, memory, events);
}

#[inline(always)]
fn reads(
    context: &Context,
    handle: &Handle,
    offsets: &[u64],
    memory: &mut VecDeque<Vec<u8>>,
    events: &mut Vec<Event>,
) {
    for offsets in offsets.chunks(DEPTH) {
        for &offset in offsets {
            let Some(buffer) = memory.pop_front() else {
                unreachable!("each event brings its own")
            };
            assert!(context.submit(Iocb::pread(handle, offset, buffer)).is_ok());
        }
        let taken = context.get_events(offsets.len(), offsets.len(), events, None);
        assert_eq!(taken, Ok(offsets.len()));
        for event in events.drain(..) {
            assert_eq!(event.result, Ok(FRAME_SIZE));
            memory.push_back(event.buffers.into_bytes());
        }
    }
}
