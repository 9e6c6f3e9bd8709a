//! Random commands from several handles and contexts, against a map of bytes.
//!
//! Commands in flight do not overlap where one of them writes, so each has one right answer: what was
//! acknowledged. The device is simulated: it takes its time, in an order of its own, from one seed.
//! When a sync has succeeded and nothing is in flight, the device's *durable* image is the map. Small
//! caches, few operations and few requests make every wait happen.

use std::ops::Range;
use std::sync::Arc;

use uaio_core::{
    Buffers, Context, ContextOptions, Event, Handle, Iocb, OpenOptions, Reactor, VolumeOptions,
};
use uaio_driver::sim::{SimDevice, SimOptions};
use uaio_driver::{DmaPool, PoolOptions, SystemClock};
use uaio_page_cache::{Cache, CacheMode, CacheOptions};

const SIZE: usize = 2 << 20;
const BLOCK: usize = 512;
const COMMANDS: usize = 1500;

/// What was submitted: the bytes it covers, and whether it writes them.
struct Flight {
    range: Range<usize>,
    writes: bool,
}

struct Model {
    bytes: Vec<u8>,
    flights: Vec<Option<Flight>>,
    contexts: Vec<Context>,
    random: fastrand::Rng,
}

impl Model {
    fn name(&mut self, flight: Flight) -> u64 {
        self.flights.push(Some(flight));
        self.flights.len() as u64 - 1
    }

    fn clashes(&self, range: &Range<usize>, writes: bool) -> bool {
        self.flights.iter().flatten().any(|other| {
            (other.writes || writes)
                && other.range.start < range.end
                && range.start < other.range.end
        })
    }

    fn check(&mut self, event: Event) {
        let flight = self.flights[event.user_data as usize].take().expect("an event twice");
        assert_eq!(event.result, Ok(flight.range.len()), "command {}", event.user_data);
        if flight.writes || flight.range.is_empty() {
            return;
        }
        let seen = match event.buffers {
            Buffers::One(bytes) => bytes,
            Buffers::Many(pieces) => pieces.concat(),
            _ => Vec::new(),
        };
        let len = flight.range.len();
        let right = self.bytes[flight.range.clone()] == seen[..len];
        assert!(right, "command {} read wrong bytes at {:?}", event.user_data, flight.range);
    }

    /// Gets at least `min` events of a context.
    fn gather(&mut self, context: usize, min: usize) {
        let mut events = Vec::new();
        let min = min.min(self.contexts[context].outstanding());
        self.contexts[context].get_events(min, 64, &mut events, None).unwrap();
        events.into_iter().for_each(|event| self.check(event));
    }

    fn finish(&mut self) {
        for context in 0..self.contexts.len() {
            while self.contexts[context].outstanding() > 0 {
                self.gather(context, 1);
            }
            self.gather(context, 0);
        }
        assert!(self.flights.iter().all(Option::is_none), "a command without an event");
    }

    /// Cuts `len` bytes into a few buffers, some empty.
    fn pieces(&mut self, data: Vec<u8>) -> Vec<Vec<u8>> {
        let mut rest = &data[..];
        let mut pieces = Vec::new();
        for _ in 0..self.random.usize(..5) {
            let (piece, left) = rest.split_at(self.random.usize(..=rest.len()));
            pieces.push(piece.to_vec());
            rest = left;
        }
        pieces.push(rest.to_vec());
        pieces
    }

    fn random_command(&mut self, handles: &[Handle]) {
        let handle = &handles[self.random.usize(..handles.len())];
        let context = self.random.usize(..self.contexts.len());
        let kind = self.random.u8(..20);
        if kind == 0 {
            let name = self.name(Flight { range: 0..0, writes: false });
            self.submit(context, Iocb::fdatasync(handle).with_user_data(name));
            return;
        }
        let grain = if handle.options().direct { BLOCK } else { 1 };
        let most = if self.random.u8(..40) == 0 { SIZE } else { 20_000 };
        let start = self.random.usize(..SIZE) / grain * grain;
        let asked = self.random.usize(..most) / grain * grain;
        // Past the end it is short.
        let range = start..(start + asked).min(SIZE);
        let writes = kind.is_multiple_of(2);
        if self.clashes(&range, writes) {
            self.finish();
        }
        let offset = start as u64;
        let mut data = vec![0; asked];
        if writes {
            self.random.fill(&mut data);
            let len = range.len();
            self.bytes[range.clone()].copy_from_slice(&data[..len]);
        }
        let name = self.name(Flight { range, writes });
        let iocb = match (writes, self.random.bool()) {
            (false, false) => Iocb::pread(handle, offset, data),
            (false, true) => Iocb::preadv(handle, offset, self.pieces(data)),
            (true, false) => Iocb::pwrite(handle, offset, data),
            (true, true) => Iocb::pwritev(handle, offset, self.pieces(data)),
        };
        self.submit(context, iocb.with_user_data(name));
    }

    fn submit(&mut self, context: usize, mut iocb: Iocb) {
        while let Err(refused) = self.contexts[context].submit(iocb) {
            assert_eq!(refused.reason.errno(), 11, "{:?}", refused.reason);
            self.gather(context, 1);
            iocb = refused.iocb;
        }
    }
}

fn run(mode: CacheMode, frames: usize, options: VolumeOptions) {
    let seed = fastrand::u64(..);
    println!("{mode:?}, {frames} frames: seed {seed}");
    let pool = DmaPool::new(PoolOptions::frames(frames + 64)).unwrap();
    let device = SimDevice::new(SimOptions::sized(SIZE as u64, BLOCK as u32), seed, pool).unwrap();
    let device = Arc::new(device);
    let cache = Cache::new(device.clone(), CacheOptions { mode, ..CacheOptions::frames(frames) });
    let cache = cache.unwrap();
    let reactor = Reactor::new(Arc::new(SystemClock::new())).unwrap();
    let volume = reactor.attach(Arc::clone(&cache), options).unwrap();
    let handles = [(false, false), (false, false), (true, false), (false, true), (true, true)]
        .map(|(direct, dsync)| volume.open(OpenOptions { direct, dsync }));
    let contexts = [3, 17]
        .map(|events| reactor.context(ContextOptions::events(events)).unwrap())
        .into_iter()
        .collect();
    let mut model = Model {
        bytes: vec![0; SIZE],
        flights: Vec::new(),
        contexts,
        random: fastrand::Rng::with_seed(seed),
    };
    for command in 0..COMMANDS {
        model.random_command(&handles);
        if model.random.u8(..4) == 0 {
            let (context, min) = (model.random.usize(..2), model.random.usize(..4));
            model.gather(context, min);
        }
        if command % 250 == 249 {
            model.finish();
            handles[0].fsync().unwrap();
            assert!(device.durable_image() == model.bytes, "the sync was no sync (seed {seed})");
            cache.assert_sound();
            assert_eq!(cache.frames_lent(), 0, "seed {seed}");
        }
    }
    model.finish();
    // The synchronous calls see the same bytes.
    let mut all = vec![0; SIZE];
    assert_eq!(handles[0].pread(&mut all, 0), Ok(SIZE));
    assert!(all == model.bytes, "seed {seed}");
    drop(model);
    reactor.close().unwrap();
    assert_eq!(cache.dirty_ranges(), []);
}

#[test]
fn reads_give_what_was_acknowledged_through_a_writeback_cache() {
    run(CacheMode::Writeback, 256, VolumeOptions::default());
}

#[test]
fn reads_give_what_was_acknowledged_through_a_writethrough_cache() {
    run(CacheMode::Writethrough, 256, VolumeOptions::default());
}

#[test]
fn reads_give_what_was_acknowledged_without_a_cache() {
    run(CacheMode::None, 64, VolumeOptions::default());
}

#[test]
fn reads_give_what_was_acknowledged_with_hardly_any_room() {
    let narrow = VolumeOptions { operations: 2, inbox: 3, depth: 2, writeback: true };
    for _ in 0..3 {
        run(CacheMode::Writeback, CacheOptions::FRAMES_MIN, narrow);
    }
}
