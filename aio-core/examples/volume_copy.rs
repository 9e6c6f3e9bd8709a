//! Copies a file onto a volume and back, with many commands in flight, and compares the two.
//!
//! `volume_copy FILE`. The volume is a RAM device of the file's size behind a small cache: put any
//! other `BlockDevice` in its place.

use std::collections::VecDeque;
use std::error::Error;
use std::sync::Arc;

use uaio_core::{Context, ContextOptions, Iocb, OpenOptions, Reactor, Refusal, VolumeOptions};
use uaio_driver::ram::RamDevice;
use uaio_driver::{DmaPool, PoolOptions, SystemClock};
use uaio_page_cache::{Cache, CacheOptions};

/// Bytes of one command.
const CHUNK: usize = 64 << 10;
/// Commands in flight.
const DEPTH: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: volume_copy FILE")?;
    let data = std::fs::read(&path)?;
    let size = data.len().next_multiple_of(4096).max(4096);

    let device = RamDevice::new(size as u64, 4096, DmaPool::new(PoolOptions::frames(1024))?)?;
    let cache = Cache::new(Arc::new(device), CacheOptions::frames(512))?;
    let reactor = Reactor::new(Arc::new(SystemClock::new()))?;
    let volume = reactor.attach(cache, VolumeOptions::default())?;
    let handle = volume.open(OpenOptions::default());

    let context = reactor.context(ContextOptions::events(DEPTH))?;
    let writes = data
        .chunks(CHUNK)
        .zip(0u64..)
        .map(|(chunk, at)| Iocb::pwrite(&handle, at * CHUNK as u64, chunk.to_vec()));
    transfer(&context, writes, |_, _| {})?;
    handle.fsync()?;

    let mut back = vec![0; data.len()];
    let reads = (0..data.len()).step_by(CHUNK).map(|start| {
        let len = CHUNK.min(data.len() - start);
        Iocb::pread(&handle, start as u64, vec![0; len]).with_user_data(start as u64)
    });
    transfer(&context, reads, |start, bytes| {
        back[start as usize..start as usize + bytes.len()].copy_from_slice(bytes);
    })?;
    if back != data {
        return Err("what came back is not what was written".into());
    }
    println!("{} bytes there and back; {:?}", data.len(), volume.cache().stats());
    reactor.close().map_err(|errors| errors[0].to_string())?;
    Ok(())
}

/// Keeps as many commands in flight as the context holds, until all are done.
fn transfer(
    context: &Context,
    mut iocbs: impl Iterator<Item = Iocb>,
    mut done: impl FnMut(u64, &[u8]),
) -> Result<(), Box<dyn Error>> {
    let mut events = Vec::with_capacity(DEPTH);
    let mut waiting = VecDeque::with_capacity(DEPTH);
    loop {
        waiting.extend(iocbs.by_ref().take(DEPTH - waiting.len()));
        if waiting.is_empty() && context.outstanding() == 0 {
            break;
        }
        match context.submit_all(&mut waiting) {
            // No room now: events make some.
            Ok(_) | Err(Refusal::NoSlot | Refusal::Busy) => {}
            Err(refusal) => return Err(refusal.into()),
        }
        let min = usize::from(context.outstanding() > 0);
        context.get_events(min, DEPTH, &mut events, None)?;
        for event in events.drain(..) {
            event.result?;
            done(event.user_data, &event.buffers.into_bytes());
        }
    }
    // Events of commands that were answered at once.
    context.get_events(0, DEPTH, &mut events, None)?;
    for event in events {
        event.result?;
        done(event.user_data, &event.buffers.into_bytes());
    }
    Ok(())
}
